"""A serial line at the two ends of a real channel: bytes both ways, deaths of the server, liars on both sides."""

import mmap
import os
import random
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.byte_pipe import decode_piece, encode_piece, ring_bytes_of
from bus.channel_messages import OfferFlags
from bus.memory import PAGE_BYTES
from bus.native import Channel, RingError, ServiceBudget
from bus.packets import MAX_PIPE_BYTES, PacketError
from bus.seam import Seam
from partitions.sdk.context import DriverContext
from partitions.sdk.serial import SerialDriver
from partitions.serial.port import SerialLine
from partitions.serial.vsp import SerialVsp
from partitions.serial.wire import SERIAL_INTERFACE, framing_of
from partitions.storage.backends import BackendError
from tests.partitions.storage_pair import JOIN_S, guest_end, host_end
from tests.patience import WAIT_S, until

RING_BYTES = 4 * PAGE_BYTES
ONE_PROCESSOR = 0x10000  # as a budget's share counts


class Died(BaseException):
    """As after SIGKILL: nothing more of it happens."""


@dataclass
class Backend(SerialDriver):
    """Takes some of what it is given, as a slow terminal does; and may be the death of who gives it."""

    rng: random.Random = field(default_factory=lambda: random.Random(1))
    taken: bytearray = field(default_factory=bytearray)
    waiting: bytearray = field(default_factory=bytearray)
    takes: Callable[[int], int] | None = None  # how much of so many bytes; None: any part of them
    calls_to_death: int | None = None
    fails: list[Exception] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(DriverContext("line", "serial", {}, None, 512, False, None, None))

    def write(self, data: bytes) -> int:
        if self.fails:
            raise self.fails.pop()
        if self.calls_to_death is not None:
            self.calls_to_death -= 1
            if self.calls_to_death < 0:
                raise Died
        count = min(self.rng.choice([0, 1, 7, len(data), len(data)]), len(data))
        if self.takes is not None:
            count = self.takes(len(data))
        self.taken += data[:count]
        return count

    def read(self, limit: int) -> bytes:
        data = bytes(self.waiting[: min(limit, self.rng.choice([1, 100, limit]))])
        del self.waiting[: len(data)]
        return data


@dataclass
class Line:
    guest: Channel
    line: SerialLine
    backend: Backend
    memory: mmap.mmap
    bells: tuple[int, int]
    ring_bytes: int
    record: memoryview = field(default_factory=lambda: memoryview(bytearray(64)))
    failures: list[BaseException] = field(default_factory=list)
    budget: ServiceBudget | None = None
    host: Channel | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> SerialVsp:
        self.host = host_end(self.memory, self.ring_bytes, *self.bells, "block")
        self._stop = threading.Event()
        vsp = SerialVsp(self.host, self.backend, threading.Lock(), self.record, Seam(), self.budget)

        def serve() -> None:
            try:
                vsp.serve(self._stop)
            except (RingError, Exception, Died) as error:
                self.failures.append(error)

        self._thread = threading.Thread(target=serve, daemon=True)
        self._thread.start()
        return vsp

    def end(self) -> None:
        self._stop.set()
        if self.host is not None:
            self.host.close()
        if self._thread is not None:
            self._thread.join(JOIN_S)
            assert not self._thread.is_alive()


@contextmanager
def a_line(*, serves: bool = True, ring_bytes: int = RING_BYTES) -> Iterator[Line]:
    memory = mmap.mmap(-1, 2 * (PAGE_BYTES + ring_bytes))
    bells = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    guest = guest_end(memory, ring_bytes, *bells)
    line = Line(guest, SerialLine(guest, ring_bytes), Backend(), memory, bells, ring_bytes)
    if serves:
        line.start()
    try:
        yield line
    finally:
        line.end()
        guest.close()
        for bell in bells:
            os.close(bell)


@given(st.binary(max_size=2048), st.binary(max_size=7))
def test_a_piece_there_and_back_whatever_padding_follows(data: bytes, padding: bytes) -> None:
    encoded = encode_piece(data)
    assert encoded == struct.pack("<II", 1, len(data)) + data
    assert decode_piece(encoded + padding) == data
    assert ring_bytes_of(len(data)) % 8 == 0


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\1\0\0\0",
        struct.pack("<II", 2, 0),
        struct.pack("<II", 3, 0),
        struct.pack("<II", 1, 9) + bytes(8),
        struct.pack("<II", 1, MAX_PIPE_BYTES + 1) + bytes(MAX_PIPE_BYTES + 1),
    ],
)
def test_what_is_no_data_packet_is_a_typed_error(payload: bytes) -> None:
    with pytest.raises(PacketError):
        decode_piece(payload)


def test_the_offer_says_that_packets_are_framed() -> None:
    framing = framing_of(SERIAL_INTERFACE)
    assert framing["flags"] is OfferFlags.NAMED_PIPE
    assert framing["user_data"][:4] == bytes(4)


def test_what_the_server_reads_for_a_guest_with_a_cap_is_paid_by_it() -> None:
    """By the second thread; the first one, which takes what the guest writes, has nothing to do here."""
    with a_line(serves=False) as line:
        line.budget, data = ServiceBudget(ONE_PROCESSOR // 2), bytes(range(250)) * 400
        line.backend.waiting += data
        line.start()
        back = b""
        while len(back) < len(data):
            back += line.line.read(len(data), WAIT_S)
        assert back == data
        assert line.budget.statistics()["served_ns"] > 0


@pytest.mark.parametrize("ring_bytes", [RING_BYTES, PAGE_BYTES])
def test_bytes_travel_both_ways_at_once_in_order(ring_bytes: int) -> None:
    """Also through rings that are too small for the largest piece."""
    rng = random.Random(2)
    with a_line(ring_bytes=ring_bytes) as line:
        out, back = rng.randbytes(60_000), rng.randbytes(60_000)
        line.backend.waiting += back
        got = bytearray()

        def read() -> None:
            while len(got) < len(back) and (data := line.line.read(rng.choice([1, 500, 5000]), WAIT_S)):
                got.extend(data)

        reader = threading.Thread(target=read)
        reader.start()
        assert line.line.write(out, WAIT_S) == len(out)
        assert line.line.flush(WAIT_S)
        reader.join(WAIT_S)
        assert line.backend.taken == out
        assert got == back


def test_a_driver_that_takes_nothing_holds_bytes_back_and_loses_none() -> None:
    with a_line() as line:
        line.backend.takes = lambda count: 0
        written = line.line.write(bytes(3 * RING_BYTES), 0.05)
        assert 0 < written < 2 * RING_BYTES
        assert not line.line.flush(0)
        line.backend.takes = None
        assert line.line.flush(WAIT_S)
        assert len(line.backend.taken) == written


@pytest.mark.parametrize("seed", range(4))
def test_over_deaths_of_the_server_no_byte_that_was_written_is_lost(seed: int) -> None:
    """It dies in calls of the driver, anywhere in a piece: its successor goes on behind what was taken."""
    rng, sent = random.Random(seed), bytearray()
    with a_line(serves=False) as line:
        line.backend.rng = rng
        for _ in range(12):
            line.backend.calls_to_death = rng.randrange(6)
            line.start()
            data = rng.randbytes(rng.randrange(3000))
            sent += data[: line.line.write(data, 0)]
            until(lambda: bool(line.failures) or line.line.flush(0))
            line.end()
            line.failures.clear()
        line.backend.calls_to_death = None
        line.start()
        assert line.line.flush(WAIT_S)
        assert line.backend.taken == sent


def test_a_piece_that_was_taken_and_not_noted_comes_twice_and_nothing_is_lost() -> None:
    """What is promised: the successor repeats at most what the driver took in its last call."""
    with a_line(serves=False) as line:
        line.backend.takes = lambda count: count
        line.start()
        assert line.line.write(b"first", WAIT_S) == 5
        assert line.line.flush(WAIT_S)
        line.end()
        line.line.write(b"second")
        line.backend.taken += b"second"  # and died before it could say so
        line.start()
        assert line.line.flush(WAIT_S)
        assert line.backend.taken == b"firstsecondsecond"


@pytest.mark.parametrize("noted", [(1, b"other!", 6), (2, b"second", 6), (1, b"second", 6)])
def test_what_was_noted_of_another_packet_does_not_count(noted: tuple[int, bytes, int]) -> None:
    """Its server died between releasing that one and forgetting it."""
    identity, data, taken = noted
    with a_line(serves=False) as line:
        struct.pack_into("<IIII", line.record, 40, identity, crc32(data), len(data), taken)
        line.line.write(b"second")
        line.start()
        assert line.line.flush(WAIT_S)
        assert bytes(line.backend.taken) == (b"" if noted == (1, b"second", 6) else b"second")


def test_an_error_of_the_backend_costs_its_bytes_and_the_line_goes_on() -> None:
    with a_line() as line:
        line.backend.fails.append(BackendError(5, "gone"))
        line.line.write(b"lost")
        assert line.line.flush(WAIT_S)
        line.line.write(b"kept")
        assert line.line.flush(WAIT_S)
        assert line.backend.taken == b"kept"
        assert not line.failures


def test_a_guest_that_lies_is_counted_and_what_is_right_arrives() -> None:
    rng = random.Random(5)
    with a_line(serves=False) as line:
        vsp, good = line.start(), 0
        for number in range(60):
            match number % 4:
                case 0:
                    line.guest.send(rng.randbytes(rng.choice([0, 8, 64])), number)
                case 1:
                    line.guest.send_completion(rng.randbytes(8), number)
                case 2:
                    line.guest.send(struct.pack("<II", 1, rng.choice([100, 2**32 - 1])), number, True)
                case 3:
                    line.guest.send(encode_piece(b"good"), 1)  # the same id every time
                    good += 1
            assert line.line.flush(WAIT_S)
        assert line.backend.taken == b"good" * good
        assert vsp.dropped == 60 - good
        assert not line.failures


def test_a_server_that_lies_is_counted_by_its_guest() -> None:
    with a_line(serves=False) as line:
        line.start()
        line.end()
        host = host_end(line.memory, RING_BYTES, *line.bells, "block")
        host.send(struct.pack("<II", 1, 5000) + bytes(8))
        host.send(b"")
        host.send_completion(b"", 7)
        host.send(encode_piece(b"true"))
        assert line.line.read(100, WAIT_S) == b"true"
        assert line.line.malformed == 3
        host.send(encode_piece(b""))
        assert line.line.read(100, WAIT_S) == b""  # the end of the stream
        host.close()
