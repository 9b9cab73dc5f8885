"""Integration services at the two ends of a real channel: beats, times, hostile guests, deaths of servers."""

import mmap
import os
import random
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from bus.memory import PAGE_BYTES
from bus.native import Channel, RingError
from bus.seam import Seam
from partitions.integration import bodies
from partitions.integration.bodies import (
    Heartbeat,
    TimeFlags,
    TimeSync,
    wall_ns_of,
)
from partitions.integration.guest_session import GuestSession, Reply, Request
from partitions.integration.host_session import Answer, NotNow
from partitions.integration.services import (
    HEARTBEAT,
    KEY_VALUE,
    TIME_SYNC,
    IcService,
)
from partitions.integration.vsp import BEATS_MISSED_MAX, IcVsp
from partitions.integration.wire import (
    HEADER_BYTES,
    MESSAGE_BYTES_MAX,
    answer_to,
)
from tests.partitions.storage_pair import JOIN_S, guest_end, host_end
from tests.patience import WAIT_S, until

RING_BYTES = 4 * PAGE_BYTES


@contextmanager
def served(service: IcService) -> Iterator[tuple[Channel, IcVsp, Callable[[], IcVsp], list[BaseException]]]:
    """The guest's end, the server, how to let a successor take over, and what became of servers."""
    memory = mmap.mmap(-1, 2 * (PAGE_BYTES + RING_BYTES))
    bells = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    guest = guest_end(memory, RING_BYTES, *bells)
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


def test_heartbeats_begin_by_themselves_and_a_guest_that_stops_answering_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("partitions.integration.vsp.BEAT_MS", 10)
    with served(HEARTBEAT) as (guest, vsp, _, failures):
        assert vsp.heartbeat == "no contact"
        session = GuestSession(HEARTBEAT)

        def is_answered() -> bool:
            request = take(guest, session)
            beat = Heartbeat.decode(request.message.body)
            guest.send(answer_to(request.message, Heartbeat(beat.sequence + 1, 1).encode()).encode())
            return vsp.heartbeat == "healthy"  # for as long as a few beats: it has to go on meanwhile

        until(is_answered)
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
        asking = threading.Thread(target=ask_when_ready, args=(vsp, b"x", answers), daemon=True)
        asking.start()
        take(guest, session)
        asking.join(WAIT_S)
        vsp = start()
        until(lambda: answers == [None])
        reply = session.receive(next_message(guest))
        assert isinstance(reply, Reply)
        guest.send(reply.payload)
        until(lambda: vsp.is_ready)
        with pytest.raises(NotNow, match="does not read"):
            fill(vsp)
