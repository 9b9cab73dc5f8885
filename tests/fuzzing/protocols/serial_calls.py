"""A serial line without rings: a hostile client's calls, and a hostile server's replies."""

import socket
import threading
from contextlib import ExitStack, closing, suppress
from itertools import repeat
from typing import Final

from bus.seam import Seam
from partitions.sdk.context import DriverContext
from partitions.serial.loopback import HELD_BYTES_MAX, LoopbackSerial
from partitions.serial.message_calls import Reading, Writing
from partitions.serial.message_service import ReadAhead, ReadService, WriteService
from partitions.serial.message_wire import (
    WRITE_BYTES_MAX,
    Kind,
    Piece,
    Read,
    Write,
    Written,
    decode_call,
    decode_reply,
)
from partitions.serial.wire import PIECE_BYTES_MAX
from tests.fuzzing.lying_server import LyingServer
from tests.fuzzing.pieces import cut, join
from tests.fuzzing.targets import Side, target

_ON_THE_SECOND: Final = 0x80  # bit of a piece's first byte: which connection it comes on
_ANSWER_BYTES_MAX: Final = 1 << 20


def _client_seeds() -> list[bytes]:
    def first(call: Write | Read) -> bytes:
        return b"\0" + call.encode()

    def second(taken: int) -> bytes:
        return bytes([_ON_THE_SECOND]) + Read(taken).encode()

    text = Write(7, b"hello\r\n")
    return [
        join([first(text), second(0), second(0), first(Write(8, bytes(5000))), second(1), second(2)]),
        join(
            [
                first(text),
                first(Write(7, text.data, again=True)),
                second(0),
                first(Write(9, b"x", again=True)),
            ]
        ),
        join([second(0), first(Read(0)), first(text)]),
    ]


class _Line(LoopbackSerial):
    """Counts what it took, and what was read of it."""

    def __init__(self) -> None:
        super().__init__(DriverContext("line", "serial", {}, None, 512, False, None, None))
        self.took, self.gave = bytearray(), bytearray()

    def write(self, data: bytes) -> int:
        count = super().write(data)
        self.took += data[:count]
        return count

    def read(self, limit: int) -> bytes:
        data = super().read(limit)
        self.gave += data
        return data


@target("serial-calls", Side.HOST, _client_seeds)
def host(data: bytes) -> None:
    """The driver has taken what replies say, of a call that is sent again as well; no byte is read twice of it."""
    with closing(_Line()) as line:
        lock = threading.Lock()
        writes = WriteService(line, lock, memoryview(bytearray(64)), Seam())
        reads, read = ReadService(line, lock, ReadAhead()), dict[int, bytes]()
        for piece in cut(data):
            if len(piece) < 2:
                continue
            before, is_first = bytes(line.took), not piece[0] & _ON_THE_SECOND
            answer, goes_on = _call(writes if is_first else reads, piece[1:])
            if answer is None:
                assert not goes_on
                assert line.took == before
                continue
            call, reply = decode_call(memoryview(piece[1:])), decode_reply(memoryview(answer))
            match call, reply:
                case Write(number, said, again), Written(answered, taken):
                    new = len(line.took) - len(before)
                    assert number == answered
                    assert new <= taken <= len(said)
                    assert again or new == taken
                    assert line.took == before + said[taken - new : taken]
                case Read(), Piece(number, got):
                    assert read.setdefault(number, got) == got  # the same again, until it was taken
                case _:
                    raise AssertionError(f"{reply} to {call}")
        assert b"".join(read.values()) == line.gave
        assert line.took.startswith(line.gave)
        assert len(line.took) - len(line.gave) <= HELD_BYTES_MAX


def _call(service: WriteService | ReadService, said: bytes) -> tuple[bytes | None, bool]:
    """The reply, if there is one, and whether the connection goes on."""
    with ExitStack() as stack:
        ours, theirs = (stack.enter_context(one) for one in socket.socketpair(type=socket.SOCK_SEQPACKET))
        ours.send(said)
        ours.shutdown(socket.SHUT_WR)  # nobody waits for bytes that will not come
        goes_on = service.serve_one(theirs)
        ours.setblocking(False)
        with suppress(BlockingIOError):
            return ours.recv(_ANSWER_BYTES_MAX), goes_on
    return None, goes_on


def _server_seeds() -> list[bytes]:
    """A client counts its calls from the clock: a reply of ours gets the number when it is run, see `_with_number`."""
    return [
        join([Written(0, 5).encode(), Written(0, 0).encode(), Written(0, 3).encode()]),
        join([Piece(5, b"bytes").encode(), Piece(6, bytes(PIECE_BYTES_MAX)).encode()]),
        join([Written(0, 99).encode(), Piece(1, b"x").encode(), Written(0, 2).encode()]),
    ]


def _with_number(reply: bytes, number: int) -> bytes:
    """Where it says 0, the call's own."""
    return reply[:8] + number.to_bytes(8, "little") + reply[16:] if reply[8:16] == bytes(8) else reply


@target("serial-calls", Side.GUEST, _server_seeds)
def guest(data: bytes) -> None:
    """It never believes that more was taken than it wrote, and goes on with the same call, said to be the same."""
    pieces = list(cut(data))
    with LyingServer([_with_number(piece, 1) for piece in pieces]) as server, suppress(ConnectionError):
        writing = Writing(server.connect)
        writing._numbers = repeat(1)
        try:
            for size in (5, 100, WRITE_BYTES_MAX + 1):
                assert 0 <= writing.write(bytes(size)) <= min(size, WRITE_BYTES_MAX)
        finally:
            writing.socket.destroy()
            calls = [decode_call(memoryview(one)) for one in server.calls()]
            assert all(isinstance(one, Write) and one.number == 1 for one in calls)
    with LyingServer(pieces) as server, suppress(ConnectionError):
        reading = Reading(server.connect)
        try:
            while found := reading.take():
                assert len(found) <= PIECE_BYTES_MAX
        finally:
            reading.socket.destroy()
            assert all(one[0] == Kind.READ for one in server.calls())
