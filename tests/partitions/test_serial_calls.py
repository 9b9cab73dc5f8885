"""A serial line without rings, at both ends of real sockets: bytes both ways, deaths of the server, liars."""

import contextlib
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.seam import Seam
from partitions.sdk.context import DriverContext
from partitions.sdk.serial import SerialDriver
from partitions.serial import message_wire as wire
from partitions.serial.message_line import MessageLine
from partitions.serial.message_service import ReadAhead, ReadService, WriteService
from partitions.serial.passed_on import PassedOnLine
from partitions.serial.port import SerialClosedError
from partitions.storage.backends import BackendError
from tests.partitions.called import Died, Endpoint

WAIT_S = 30.0
KEPT_BYTES = 16384


@dataclass
class Slow(SerialDriver):
    """Takes some of what it is given, and may be the death of who gives it, behind what it took."""

    rng: random.Random
    taken: bytearray = field(default_factory=bytearray)
    waiting: bytearray = field(default_factory=bytearray)
    calls_to_death: int | None = None
    takes_nothing: bool = False
    refuses: int = 0

    def __post_init__(self) -> None:
        super().__init__(DriverContext("line", "serial", {}, None, 512, False, None, None))

    def write(self, data: bytes) -> int:
        if self.refuses:
            self.refuses -= 1
            raise BackendError(5, "refused")
        if self.calls_to_death is not None:
            self.calls_to_death -= 1
            if self.calls_to_death < 0:
                raise Died
        count = 0 if self.takes_nothing else min(self.rng.choice([0, 1, 7, 1000, 1000]), len(data))
        self.taken += data[:count]
        return count

    def read(self, limit: int) -> bytes:
        data = bytes(self.waiting[: min(limit, self.rng.choice([1, 100, limit]))])
        del self.waiting[: len(data)]
        return data


@dataclass
class World:
    driver: Slow
    calls: Endpoint
    reads: Endpoint

    def restart(self) -> None:
        """Another process of the server's: of what the last one had, the record is left."""
        self.calls.end()
        self.reads.end()
        self.start()

    def start(self) -> None:
        self.ahead = ReadAhead()
        self.calls.start()
        self.reads.start()


@contextmanager
def a_world(seed: int = 1) -> Iterator[World]:
    driver, record = Slow(random.Random(seed)), memoryview(bytearray(64))
    lock = threading.Lock()
    world = World(
        driver,
        Endpoint(lambda: WriteService(driver, lock, record, Seam())),
        Endpoint(lambda: ReadService(driver, lock, world.ahead)),
    )
    world.start()
    try:
        yield world
    finally:
        world.calls.close()
        world.reads.close()


@contextmanager
def a_line(world: World) -> Iterator[MessageLine]:
    line = MessageLine(world.calls.connect, world.reads.connect, KEPT_BYTES)
    try:
        yield line
    finally:
        line.close()


@pytest.mark.parametrize("seed", range(3))
def test_every_byte_arrives_once_and_in_order_over_deaths_of_the_server_between_two_calls_of_its_driver(
    seed: int,
) -> None:
    """Death comes before the driver takes anything of a call; what it took before stands in the record."""
    rng = random.Random(seed)
    with a_world(seed) as world, a_line(world) as line:
        data = rng.randbytes(40_000)
        world.driver.calls_to_death = rng.randrange(1, 6)
        done = line.write(data, 0)
        for _ in range(4):
            while world.driver.calls_to_death >= 0 and done < len(data):
                done += line.write(data[done:], 0.01)
            world.driver.calls_to_death = rng.randrange(1, 6)
            world.restart()
        world.driver.calls_to_death = None
        world.restart()
        while done < len(data):
            done += line.write(data[done:], WAIT_S)
        assert line.flush(WAIT_S)
        assert bytes(world.driver.taken) == data


@pytest.mark.parametrize("seed", range(2))
def test_what_the_driver_has_is_read_in_order_and_a_piece_that_a_reader_did_not_get_is_there_for_the_next(
    seed: int,
) -> None:
    with a_world(seed) as world:
        data = random.Random(seed).randbytes(20_000)
        world.driver.waiting += data
        got = b""
        while len(got) < len(data):
            with a_line(world) as line:  # closed with a READ outstanding, or a piece on its way
                got += line.read(5000, WAIT_S)
                got += bytes(line._read)  # of what it took in, which goes with it
        assert got == data


def test_what_nobody_takes_is_kept_up_to_a_bound_and_a_writer_waits_no_longer_than_it_was_told() -> None:
    with a_world() as world, a_line(world) as line:
        world.driver.takes_nothing = True
        assert line.write(bytes(3 * KEPT_BYTES), 0.02) == KEPT_BYTES
        assert not line.flush(0.02)
        assert line.read(10, 0) == b""
        world.driver.takes_nothing = False
        assert line.flush(WAIT_S)
        world.driver.refuses = 1
        assert line.write(b"lost") == 4
        assert line.flush(WAIT_S)
        assert bytes(world.driver.taken) == bytes(KEPT_BYTES)


def test_a_line_whose_server_is_gone_for_good_says_so_to_writer_and_reader() -> None:
    with a_world() as world, a_line(world) as line:
        world.calls.close()
        world.reads.close()
        line.write(b"x")
        with pytest.raises(SerialClosedError):
            line.flush(WAIT_S)
        with pytest.raises(SerialClosedError):
            line.write(b"x")
        with pytest.raises(SerialClosedError):
            line.read(1, WAIT_S)
    with a_world() as world:
        world.calls.is_gone = world.reads.is_gone = True
        with pytest.raises(SerialClosedError):
            MessageLine(world.calls.connect, world.reads.connect, KEPT_BYTES)
        with pytest.raises(ConnectionError):
            PassedOnLine(world.calls.connect, world.reads.connect)


@settings(max_examples=40)
@given(st.binary(max_size=64))
def test_nonsense_is_a_typed_error_on_both_sides(data: bytes) -> None:
    for decode in (wire.decode_call, wire.decode_reply):
        try:
            message = decode(memoryview(data))
        except wire.MalformedCall:
            continue
        assert message.encode() == data


@settings(max_examples=40)
@given(
    st.one_of(
        st.builds(
            wire.Write,
            st.integers(0, 2**64 - 1),
            st.binary(min_size=1, max_size=wire.WRITE_BYTES_MAX),
            st.booleans(),
        ),
        st.builds(wire.Read, st.integers(0, 2**64 - 1)),
    ),
    st.one_of(
        st.builds(wire.Written, st.integers(0, 2**64 - 1), st.integers(0, wire.WRITE_BYTES_MAX)),
        st.builds(wire.Piece, st.integers(1, 2**64 - 1), st.binary(min_size=1, max_size=2048)),
    ),
)
def test_what_is_said_is_what_is_heard(
    call: wire.Write | wire.Read, reply: wire.Written | wire.Piece
) -> None:
    assert wire.decode_call(memoryview(call.encode())) == call
    assert wire.decode_reply(memoryview(reply.encode())) == reply
    with pytest.raises(wire.MalformedCall):
        wire.decode_reply(memoryview(call.encode()))


def test_a_client_that_lies_or_does_not_wait_loses_its_socket_and_nothing_else() -> None:
    lies = [b"", b"x", bytes(16), wire.Written(1, 1).encode(), bytes(wire.MESSAGE_BYTES_MAX + 1)]
    lies += [wire.Write(1, b"data").encode() + b"x", wire.Piece(1, b"x").encode()]
    with a_world() as world:
        for endpoint, other in ((world.calls, wire.Read(0)), (world.reads, wire.Write(1, b"not here"))):
            for lie in (*lies, other.encode()):
                with socket.socket(fileno=endpoint.connect()) as liar:
                    liar.settimeout(WAIT_S)
                    liar.send(lie)
                    assert liar.recv(100) == b""
        with socket.socket(
            fileno=world.reads.connect()
        ) as liar:  # a second READ before the first was answered
            liar.settimeout(WAIT_S)
            liar.send(wire.Read(0).encode())
            liar.send(wire.Read(0).encode())
            with contextlib.suppress(ConnectionResetError):  # it was not read
                assert liar.recv(100) == b""
        with a_line(world) as line:
            assert line.write(b"well", WAIT_S) == 4
            assert line.flush(WAIT_S)
        assert bytes(world.driver.taken) == b"well"
        assert world.calls.failures == world.reads.failures == []


class Liar:
    """A server that answers nonsense so often, and then rightly."""

    phase = 0
    settled = True
    busy = False
    refuses_resent = False
    served = 0

    def __init__(self, *lies: bytes) -> None:
        self._lies = list(lies)

    def serve_one(self, sock: socket.socket) -> bool:
        if not (data := sock.recv(wire.MESSAGE_BYTES_MAX)):
            return False
        call = wire.decode_call(memoryview(data))
        if self._lies:
            sock.send(self._lies.pop(0))
            return True
        assert isinstance(call, wire.Write)
        sock.send(wire.Written(call.number, len(call.data)).encode())
        return True

    serve = serve_one

    def hold(self) -> None: ...
    def let_go(self) -> None: ...
    def statistics(self) -> dict[str, int]:
        return {}


def test_a_server_that_lies_is_left_and_asked_again_and_counted() -> None:
    lies = (b"x", bytes(16), wire.Written(7, 1).encode(), wire.Piece(1, b"x").encode(), bytes(20_000))
    calls, reads = Endpoint(lambda: Liar(*lies)), Endpoint(Liar)
    calls.start()
    try:
        line = MessageLine(calls.connect, reads.connect, KEPT_BYTES)
        assert line.write(b"data") == 4
        assert line.flush(WAIT_S)
        assert line.statistics()["malformed"] == len(lies)
        line.close()
    finally:
        calls.close()
        reads.close()
