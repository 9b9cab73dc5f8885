"""Integration services: the wire both ways, what is legal when, and liars on both sides of a real channel."""

import mmap
import os
import random
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.channel_messages import OfferFlags
from bus.memory import PAGE_BYTES
from bus.native import Channel, RingError
from bus.seam import Seam
from partitions.integration import bodies
from partitions.integration.bodies import (
    KVP_BODY_BYTES,
    Heartbeat,
    Kvp,
    KvpOperation,
    Pool,
    Shutdown,
    Snapshot,
    TimeFlags,
    TimeSync,
    ticks_of,
    wall_ns_of,
)
from partitions.integration.guest_session import GuestSession, Reply, Request
from partitions.integration.host_session import Answer, HostSession, Negotiated, NotNow, Phase
from partitions.integration.key_values import KEYS_MAX, KeyValues
from partitions.integration.quiet_times import QuietTimes
from partitions.integration.services import (
    FRAMEWORKS,
    HEARTBEAT,
    INSTANCES,
    KEY_VALUE,
    SERVICES,
    TIME_SYNC,
    IcService,
    framing_of,
)
from partitions.integration.vsp import BEATS_MISSED_MAX, IcVsp
from partitions.integration.wire import (
    HEADER_BYTES,
    MESSAGE_BYTES_MAX,
    Flags,
    IcError,
    IcHeader,
    IcMessage,
    MessageType,
    Status,
    Version,
    Versions,
    answer_to,
)
from tests.partitions.storage_pair import JOIN_S, host_end

RING_BYTES = 4 * PAGE_BYTES
WAIT_S = 10.0
versions = st.builds(Version, st.integers(0, 9), st.integers(0, 9))
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200)


# -- the wire


def test_a_negotiation_is_byte_for_byte_what_the_specification_says() -> None:
    data = HostSession(KEY_VALUE).negotiate()
    pipe, length = struct.unpack_from("<II", data)
    assert (pipe, length) == (1, len(data) - 8)
    assert struct.unpack_from("<HHH", data, 8)[2] == 0  # message type: negotiate
    body_bytes, status, transaction, flags, zero = struct.unpack_from("<HIBBH", data, 8 + 10)
    assert (body_bytes, status, transaction, flags, zero) == (len(data) - 28, 0, 1, 3, 0)
    assert struct.unpack_from("<HHI", data, 28) == (2, 4, 0)
    pairs = list(struct.iter_unpack("<HH", data[36:]))
    assert pairs == [(1, 0), (3, 0), (1, 0), (3, 0), (4, 0), (5, 0)]


def test_an_answered_negotiation_has_one_of_each_and_sixteen_bytes() -> None:
    """Linux and openvmm agree on that."""
    reply = GuestSession(KEY_VALUE).receive(HostSession(KEY_VALUE).negotiate())
    assert isinstance(reply, Reply)
    assert struct.unpack_from("<HIBBH", reply.payload, 18) == (16, 0, 1, 5, 0)
    assert reply.payload[28:] == struct.pack("<HHIHHHH", 1, 1, 0, 3, 0, 5, 0)


@given(st.lists(versions, max_size=8), st.lists(versions, max_size=8), st.binary(max_size=7))
def test_versions_there_and_back_whatever_padding_follows(
    framework: list[Version], message: list[Version], padding: bytes
) -> None:
    body = Versions(tuple(framework), tuple(message))
    assert Versions.decode(body.encode() + padding) == body
    header = IcHeader(Version(3, 0), 0, Version(1, 0), len(body.encode()), 7, 255, Flags.TRANSACTION)
    message_ = IcMessage(header, body.encode())
    assert IcMessage.decode(message_.encode() + padding) == message_


@given(st.sampled_from([0, 1, 2, 3]), st.sampled_from(Pool), words, words, st.integers(0, 2**32 - 1))
def test_a_pair_there_and_back(operation: int, pool: Pool, key: str, value: str, index: int) -> None:
    encoded = Kvp(operation, pool, key, value, index).encode()
    assert len(encoded) == KVP_BODY_BYTES
    assert encoded[:2] == bytes([operation, pool])
    found = Kvp.decode(encoded, is_answer=True)
    assert (found.key, found.value) == (key, value)
    assert found.index == (index if operation == KvpOperation.ENUMERATE else 0)


@given(
    st.integers(0, 2**63),
    st.integers(0, 2**63),
    st.sampled_from([Version(1, 0), Version(3, 0), Version(4, 0)]),
)
def test_times_there_and_back_and_none_but_version_4_tells_the_guests(
    host: int, reference: int, version: Version
) -> None:
    sync = TimeSync(host, reference, TimeFlags.SAMPLE)
    encoded = sync.encode(version)
    assert len(encoded) == (24 if version >= (4, 0) else 28)
    found = TimeSync.decode(encoded, version)
    assert found == TimeSync(host, reference if version >= (4, 0) else 0, TimeFlags.SAMPLE)


def test_sizes_and_epoch() -> None:
    assert ticks_of(0) == 116_444_736_000_000_000  # 1 January 1970, in 100 ns since 1601
    assert wall_ns_of(ticks_of(1_234_567_800)) == 1_234_567_800
    assert len(Shutdown(message="x" * 5000).encode()) == 2060
    assert Shutdown.decode(Shutdown(1, 2, 3, "why not").encode()) == Shutdown(1, 2, 3, "why not")
    assert len(Heartbeat(1).encode()) == 16
    assert len(Snapshot(5).encode()) == 12


@given(st.binary(max_size=200), st.sampled_from([Heartbeat, Shutdown, Kvp, Snapshot, Versions, IcMessage]))
def test_no_bytes_do_more_than_a_typed_error(data: bytes, kind: type) -> None:
    with suppress(IcError):
        kind.decode(data)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("key_bytes", "value_bytes", "kind"),
    [(1, 2, 1), (514, 2, 1), (2, 2050, 1), (2, 3, 1), (2, 8, 4), (2, 2, 99)],
)
def test_a_pair_that_lies_about_its_lengths_is_none(key_bytes: int, value_bytes: int, kind: int) -> None:
    head = bytes([KvpOperation.SET, 0, 0, 0])
    body = head + struct.pack("<III", kind, key_bytes, value_bytes) + bytes(2560)
    with pytest.raises(IcError):
        Kvp.decode(body)


def test_offers_are_message_pipes_with_the_fixed_instances() -> None:
    assert len({service.interface for service in SERVICES} | set(INSTANCES.values())) == 2 * len(SERVICES)
    for service in SERVICES:
        framing = framing_of(service.interface)
        assert framing["flags"] is OfferFlags.NAMED_PIPE
        assert framing["user_data"][:4] == struct.pack("<I", 4)


# -- sessions


def agreed(service: IcService) -> tuple[HostSession, GuestSession]:
    host, guest = HostSession(service), GuestSession(service)
    reply = guest.receive(host.negotiate())
    assert isinstance(reply, Reply)
    assert host.receive(reply.payload) == Negotiated(service.versions[-1])
    return host, guest


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.name)
def test_both_ends_agree_on_the_highest_version_and_exchange(service: IcService) -> None:
    host, guest = agreed(service)
    assert host.version == guest.version == max(service.versions)
    request = guest.receive(host.request(b"question"))
    assert isinstance(request, Request)
    with pytest.raises(NotNow):
        host.request(b"another")
    answer = answer_to(request.message, b"answer", Status.NOT_FOUND).encode()
    assert host.receive(answer) == Answer(Status.NOT_FOUND, b"answer")
    assert host.receive(answer) is None  # twice
    assert host.stale == 1


def test_no_version_in_common_is_said_and_ends_it() -> None:
    host, guest = HostSession(KEY_VALUE), GuestSession(TIME_SYNC)
    offered = Versions((Version(9, 9),), (Version(4, 0),)).encode()
    header = IcHeader(Version(1, 0), 0, Version(1, 0), len(offered), 0, 1, Flags.TRANSACTION | Flags.REQUEST)
    host.negotiate()
    reply = guest.receive(IcMessage(header, offered).encode())
    assert isinstance(reply, Reply)
    assert host.receive(reply.payload) == Negotiated(None)
    assert host.phase is Phase.REFUSED
    with pytest.raises(NotNow):
        host.request(b"")


def test_a_request_before_the_versions_are_agreed_on_is_no_request() -> None:
    host, _ = agreed(KEY_VALUE)
    with pytest.raises(IcError, match="agreed"):
        GuestSession(KEY_VALUE).receive(host.request(b""))


def test_a_successor_negotiates_anew_and_what_its_predecessor_asked_is_stale() -> None:
    host, guest = agreed(KEY_VALUE)
    old = guest.receive(host.request(b"asked by the dead"))
    assert isinstance(old, Request)
    successor = HostSession(KEY_VALUE)
    reply = guest.receive(successor.negotiate())
    assert isinstance(reply, Reply)
    assert successor.receive(answer_to(old.message, b"").encode()) is None
    assert successor.receive(reply.payload) == Negotiated(Version(5, 0))
    assert successor.stale == 1


@given(st.data())
def test_whatever_a_guest_sends_the_host_waits_for_the_right_answer(data: st.DataObject) -> None:
    """Garbage of every kind, in between; the state is as it was, and the true answer still counts."""
    host, guest = agreed(KEY_VALUE)
    request = guest.receive(host.request(b"q"))
    assert isinstance(request, Request)
    truth = answer_to(request.message, b"a").encode()
    for _ in range(data.draw(st.integers(0, 6))):
        lie = bytearray(truth)
        for _ in range(data.draw(st.integers(1, 3))):
            lie[data.draw(st.integers(0, len(lie) - 1))] ^= data.draw(st.integers(1, 255))
        if (
            lie[8:18] == truth[8:18] and lie[24] == truth[24]
        ):  # type, versions and transaction: that is an answer
            continue
        with suppress(IcError):
            assert not isinstance(host.receive(bytes(lie)), Answer | Negotiated)
    assert host.receive(truth) == Answer(0, b"a")


def test_versions_that_were_not_offered_are_refused_and_the_right_ones_still_count() -> None:
    host, guest = HostSession(KEY_VALUE), GuestSession(KEY_VALUE)
    asked = host.negotiate()
    reply = guest.receive(asked)
    assert isinstance(reply, Reply)
    body = Versions((Version(3, 0),), (Version(7, 7),)).encode()
    with pytest.raises(IcError, match="not offered"):
        host.receive(answer_to(IcMessage.decode(asked), body).encode())
    assert host.receive(reply.payload) == Negotiated(Version(5, 0))


# -- what a guest keeps


def test_pairs_are_bounded_and_only_the_hosts_pools_are_the_hosts_to_change() -> None:
    pairs = KeyValues()
    pairs.publish("state", "well")
    for operation in (KvpOperation.SET, KvpOperation.DELETE):
        assert pairs.answer(Kvp(operation, Pool.GUEST, "state", "x"))[1] == Status.FAIL
    assert pairs.answer(Kvp(KvpOperation.GET, Pool.GUEST, "state"))[0].value == "well"
    for number in range(KEYS_MAX):
        assert pairs.answer(Kvp(KvpOperation.SET, Pool.EXTERNAL, str(number), "v"))[1] == Status.OK
    assert pairs.answer(Kvp(KvpOperation.SET, Pool.EXTERNAL, "more", "v"))[1] == Status.FAIL
    assert pairs.answer(Kvp(KvpOperation.SET, Pool.EXTERNAL, "7", "new"))[1] == Status.OK
    assert pairs.get("7") == "new"
    found = [pairs.answer(Kvp(KvpOperation.ENUMERATE, Pool.EXTERNAL, index=i)) for i in range(KEYS_MAX + 1)]
    assert [status for _, status in found] == [Status.OK] * KEYS_MAX + [Status.NO_MORE_ITEMS]
    assert pairs.answer(Kvp(KvpOperation.DELETE, Pool.EXTERNAL, "gone"))[1] == Status.NOT_FOUND
    assert pairs.answer(Kvp(KvpOperation.GET_IP, Pool.EXTERNAL))[1] == Status.NOT_SUPPORTED
    assert pairs.answer(Kvp(KvpOperation.GET, 200, "x"))[1] == Status.FAIL
    with pytest.raises(ValueError, match="2048"):
        pairs.publish("long", "x" * 2000)


def test_a_quiet_time_waits_for_writers_and_holds_new_ones_off() -> None:
    quiet, inside, events = QuietTimes(), threading.Event(), list[str]()

    def write(word: str, hold: threading.Event | None = None) -> None:
        with quiet.writing():
            inside.set()
            if hold is not None:
                hold.wait(WAIT_S)
            events.append(word)

    hold = threading.Event()
    first = threading.Thread(target=write, args=("first", hold))
    first.start()
    assert inside.wait(WAIT_S)
    assert not quiet.begin(0.01, WAIT_S)  # somebody writes; then there is no quiet time
    hold.set()
    first.join(WAIT_S)
    assert quiet.begin(WAIT_S, WAIT_S)
    second = threading.Thread(target=write, args=("second",))
    second.start()
    time.sleep(0.02)
    assert events == ["first"]
    assert quiet.end()
    second.join(WAIT_S)
    assert events == ["first", "second"]
    assert not quiet.end()


def test_a_quiet_time_that_nobody_ends_ends_by_itself_and_says_so() -> None:
    quiet = QuietTimes()
    assert quiet.begin(0, 0.02)
    with quiet.writing():  # waits until then
        pass
    assert not quiet.end()


# -- a real channel


@contextmanager
def served(service: IcService) -> Iterator[tuple[Channel, IcVsp, Callable[[], IcVsp], list[BaseException]]]:
    """The guest's end, the server, how to let a successor take over, and what became of servers."""
    memory = mmap.mmap(-1, 2 * (PAGE_BYTES + RING_BYTES))
    bells = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    guest = Channel(
        memory,
        outgoing_offset=0,
        outgoing_bytes=RING_BYTES,
        incoming_offset=PAGE_BYTES + RING_BYTES,
        incoming_bytes=RING_BYTES,
        signal_fd=bells[0],
        wait_fd=bells[1],
        reset=True,
    )
    running: list[tuple[Channel, threading.Thread]] = []
    failures: list[BaseException] = []

    def end() -> None:
        while running:
            host, thread = running.pop()
            host.close()
            thread.join(JOIN_S)
            assert not thread.is_alive()

    def start() -> IcVsp:
        end()
        host = host_end(memory, RING_BYTES, *bells, "block")
        vsp = IcVsp(service, host, Seam(), lambda: 42)

        def serve() -> None:
            try:
                vsp.serve(threading.Event())
            except RingError as error:
                failures.append(error)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        running.append((host, thread))
        return vsp

    try:
        yield guest, start(), start, failures
    finally:
        end()
        guest.close()
        for bell in bells:
            os.close(bell)


def next_message(guest: Channel) -> bytes:
    payloads = guest.receive_payloads(1, int(WAIT_S * 1e9))
    assert payloads
    return payloads[0]


def take(guest: Channel, session: GuestSession) -> Request:
    """The next request; negotiations before it are answered."""
    while True:
        match session.receive(next_message(guest)):
            case Reply(payload):
                guest.send(payload)
            case Request() as request:
                return request


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_heartbeats_begin_by_themselves_and_a_guest_that_stops_answering_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("partitions.integration.vsp.BEAT_MS", 10)
    with served(HEARTBEAT) as (guest, vsp, _, failures):
        assert vsp.heartbeat == "no contact"
        session = GuestSession(HEARTBEAT)
        for _ in range(3):
            request = take(guest, session)
            beat = Heartbeat.decode(request.message.body)
            guest.send(answer_to(request.message, Heartbeat(beat.sequence + 1, 1).encode()).encode())
        until(lambda: vsp.heartbeat == "healthy")
        until(lambda: vsp.missed > BEATS_MISSED_MAX)
        assert vsp.heartbeat == "lost"
        assert not failures


def test_the_time_is_set_first_with_the_guests_own_reference_time() -> None:
    with served(TIME_SYNC) as (guest, _, _, _):
        request = take(guest, GuestSession(TIME_SYNC))
        told = TimeSync.decode(request.message.body, request.version)
        assert (told.flags, told.reference_time) == (TimeFlags.SYNC, 42)
        assert abs(wall_ns_of(told.host_time) - time.time_ns()) < 3600 * 10**9


def test_a_service_that_nobody_uses_sends_nothing_and_sleeps() -> None:
    with served(KEY_VALUE) as (guest, vsp, _, _):
        reply = GuestSession(KEY_VALUE).receive(next_message(guest))
        assert isinstance(reply, Reply)
        guest.send(reply.payload)
        until(lambda: vsp.is_ready)
        assert vsp._pause_ns() == -1
        assert vsp.requests == 1


@pytest.mark.parametrize("seed", range(3))
def test_a_hostile_guest_is_counted_and_its_true_answers_still_arrive(seed: int) -> None:
    """Garbage, other packet types, cut and stretched messages, between true answers; and a server's death."""
    rng = random.Random(seed)
    with served(KEY_VALUE) as (guest, vsp, start, failures):
        session = GuestSession(KEY_VALUE)
        lies = 0
        for number in range(30):
            if number == 15:
                vsp = start()
                lies = 0
                session = GuestSession(KEY_VALUE)
            answers: list[Answer | None] = []
            sender = threading.Thread(target=ask_when_ready, args=(vsp, b"%d" % number, answers))
            sender.start()
            request = take(guest, session)
            truth = answer_to(request.message, request.message.body).encode()
            for _ in range(3):
                lies += 1
                match rng.randrange(4):
                    case 0:
                        guest.send(rng.randbytes(rng.choice([0, 8, 64, 1000])))
                    case 1:
                        guest.send_completion(truth, 1)
                    case 2:
                        guest.send(truth[: rng.randrange(8, 4 + HEADER_BYTES)])
                    case 3:
                        guest.send(struct.pack("<II", 1, MESSAGE_BYTES_MAX + 1) + bytes(64))
            guest.send(truth)
            sender.join(WAIT_S)
            until(lambda answers=answers: bool(answers))  # type: ignore[misc]
            assert answers == [Answer(0, b"%d" % number)]
        assert vsp.malformed == lies
        assert not failures


def fill(vsp: IcVsp) -> None:
    for _ in range(20):
        vsp.ask(lambda _: bytes(bodies.KVP_BODY_BYTES), lambda answer: None)
        vsp.give_up()


def ask_when_ready(vsp: IcVsp, body: bytes, answers: list[Answer | None]) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            vsp.ask(lambda _: body, answers.append)
            return
        except NotNow:
            time.sleep(0.002)


def test_whoever_waits_is_told_when_the_channel_closes_and_a_guest_that_does_not_read_is_not_waited_for() -> (
    None
):
    with served(KEY_VALUE) as (guest, vsp, start, _):
        session, answers = GuestSession(KEY_VALUE), list[Answer | None]()
        threading.Thread(target=ask_when_ready, args=(vsp, b"x", answers), daemon=True).start()
        take(guest, session)
        vsp = start()
        until(lambda: answers == [None])
        reply = session.receive(next_message(guest))
        assert isinstance(reply, Reply)
        guest.send(reply.payload)
        until(lambda: vsp.is_ready)
        with pytest.raises(NotNow, match="does not read"):
            fill(vsp)


def test_numbers_are_those_that_linux_knows() -> None:
    assert [str(version) for version in FRAMEWORKS] == ["1.0", "3.0"]
    assert [int(kind) for kind in MessageType] == [0, 1, 2, 3, 4, 5]
