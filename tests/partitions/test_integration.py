"""Integration services: the wire both ways, what is legal when, and quiet times."""

import struct
import threading
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.channel_messages import OfferFlags
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
    INSTANCES,
    KEY_VALUE,
    SERVICES,
    TIME_SYNC,
    IcService,
    framing_of,
)
from partitions.integration.wire import (
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

WAIT_S = 30.0
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


def test_numbers_are_those_that_linux_knows() -> None:
    assert [str(version) for version in FRAMEWORKS] == ["1.0", "3.0"]
    assert [int(kind) for kind in MessageType] == [0, 1, 2, 3, 4, 5]
