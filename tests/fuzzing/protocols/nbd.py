"""NBD: a hostile client's handshake, and then its requests at the server in C, with a real ring and disk behind it."""

import select
import socket
import struct
import time
from collections import Counter
from contextlib import ExitStack, suppress
from functools import cache
from typing import Final

from partitions.nbd.negotiation import OPTIONS_MAX, Negotiation, Outcome
from partitions.nbd.wire import (
    CLIENT_FLAGS_BYTES,
    OPTION_BYTES_MAX,
    OPTION_HEAD_BYTES,
    REPLY_MAGIC,
    ExportDescription,
    HandshakeFlags,
    Option,
)
from partitions.storage._blockio import NbdEngine
from partitions.storage.backends import MemoryBackend
from partitions.storage.disk import Disk
from tests.fuzzing.pieces import cut, join
from tests.fuzzing.targets import Side, declare, target
from tests.partitions import nbd_pair as wire
from tests.partitions.storage_pair import Pair, connected

_DISK_BYTES: Final = 64 << 10
_BLOCK: Final = 512
_PATIENCE_S: Final = 10.0
_TURN_NS: Final = 20_000_000
_REQUEST: Final = struct.Struct(">IHHQQI")
_REPLY: Final = struct.Struct(">IIQ")
_ERRORS: Final = {0, 1, 5, 12, 22, 28, 95, 108}  # those that the protocol has
_EXPORT: Final = ExportDescription("disk0", "a disk", _DISK_BYTES, _BLOCK, 4096, 1 << 18, False, True)
_END: Final = b"end of the handshake"  # a piece: what follows is the transmission phase

declare("nbd", Side.SERVER)


def _option(number: int, data: bytes = b"") -> bytes:
    return struct.pack(">8sII", b"IHAVEOPT", number, len(data)) + data


def _asked(number: int, name: bytes, *kinds: int) -> bytes:
    return _option(
        number, struct.pack(">I", len(name)) + name + struct.pack(f">H{len(kinds)}H", len(kinds), *kinds)
    )


def _request(command: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0) -> bytes:
    return _REQUEST.pack(wire.REQUEST_MAGIC, flags, command, offset + 7, offset, length) + data


def _seeds() -> list[bytes]:
    flags, go = struct.pack(">I", 3), _asked(Option.GO, b"", 1, 2, 3, 99)
    options = [_option(Option.LIST), _asked(Option.INFO, b"disk0", 0, 3), _asked(Option.INFO, b"other")]
    requests = [
        _request(wire.WRITE, 512, 1024, b"w" * 1024),
        _request(wire.READ, 512, 4096),
        _request(wire.WRITE, 4096, 512, b"v" * 512, wire.FUA),
        _request(wire.FLUSH),
        _request(wire.TRIM, 0, 4096),
        _request(wire.WRITE_ZEROES, 8192, 8192, flags=wire.NO_HOLE),
        _request(wire.READ, _DISK_BYTES, 512),
        _request(wire.READ, 0, _DISK_BYTES),
        _request(wire.CACHE, 0, 512),
    ]
    leave = _request(wire.DISCONNECT)
    return [
        join([flags, *options, go, _END, *requests, leave]),
        join([flags, _option(Option.EXPORT_NAME, b"disk0"), _END, *requests[:3], leave, *requests]),
        join([flags, _option(77, b"data"), _option(Option.ABORT), _END, leave]),
        join([_END, *requests * 3]),
        join([flags, _option(Option.LIST) * (OPTIONS_MAX + 9), go]),
    ]


@target("nbd", Side.SERVER, _seeds)
def server(data: bytes) -> None:
    pieces = list(cut(data))
    middle = pieces.index(_END) if _END in pieces else len(pieces)
    _negotiate(b"".join(pieces[:middle]))
    _transmit(b"".join(pieces[middle + 1 :]))


def _negotiate(stream: bytes) -> None:
    """Never more is read than an option has; replies are whole; who is let in was admitted, once."""
    admitted = 0

    def admit() -> bool:
        nonlocal admitted
        admitted += 1
        return True

    negotiation, outcome, turns = Negotiation(_EXPORT, admit), Outcome.GO_ON, 0
    flags = int.from_bytes(stream[:CLIENT_FLAGS_BYTES], "big")
    assert negotiation.wants == CLIENT_FLAGS_BYTES
    while outcome is Outcome.GO_ON and len(stream) >= negotiation.wants:
        assert 0 < negotiation.wants <= max(OPTION_BYTES_MAX, OPTION_HEAD_BYTES)
        taken, stream = stream[: negotiation.wants], stream[negotiation.wants :]
        turns += 1
        said, outcome = negotiation.receive(taken)
        if outcome is Outcome.TRANSMIT and not said.startswith(REPLY_MAGIC.to_bytes(8, "big")):
            assert len(said) == 10 + (0 if flags & HandshakeFlags.NO_ZEROES else 124)
            continue
        while said:
            magic, _, _, length = struct.unpack_from(">QIII", said)
            assert magic == REPLY_MAGIC
            assert len(said) >= 20 + length
            said = said[20 + length :]
    assert admitted == (outcome is Outcome.TRANSMIT)
    assert turns <= 1 + 2 * (OPTIONS_MAX + 1)  # an option's head, and its data


@cache
def _world() -> tuple[Pair, NbdEngine, MemoryBackend, ExitStack]:
    """One for all inputs: what a client leaves behind is the next one's trouble."""
    stack = ExitStack()
    backend = MemoryBackend(_DISK_BYTES)
    pair = stack.enter_context(connected(backend, ring_pages=16, data_pages=8 * 64 + 1))
    return pair, _engine(pair), backend, stack


def _engine(pair: Pair) -> NbdEngine:
    disk = Disk(pair.guest, pair.data, pair.data_gpfn, timeout_s=_PATIENCE_S)
    buffer = disk.allocate(disk.pool.longest_run_bytes)
    blocks = _DISK_BYTES // _BLOCK
    sequence = disk.requests.sequence
    return NbdEngine(
        pair.guest, buffer.view, buffer.gpfn, _BLOCK, blocks, 1 << 18, 1 << 20, False, True, sequence
    )


def _transmit(stream: bytes) -> None:
    """Replies are of requests that were made, and have the protocol's errors; the next client finds all in order."""
    _, engine, backend, _ = _world()
    _replies_of(stream, engine)
    assert backend.size_bytes == _DISK_BYTES
    assert engine.statistics()["connections"] == 0
    block = b"an honest client's block".ljust(_BLOCK, b".")
    honest = _request(wire.WRITE, _BLOCK, _BLOCK, block) + _request(wire.FLUSH)
    assert _replies_of(honest + _request(wire.DISCONNECT), engine) == _REPLY.pack(
        wire.REPLY_MAGIC, 0, _BLOCK + 7
    ) + _REPLY.pack(wire.REPLY_MAGIC, 0, 7)
    got = _replies_of(_request(wire.READ, _BLOCK, _BLOCK) + _request(wire.DISCONNECT), engine)
    assert got == _REPLY.pack(wire.REPLY_MAGIC, 0, _BLOCK + 7) + block


def _replies_of(stream: bytes, engine: NbdEngine) -> bytes:
    """All that one client gets, once its connection has ended; checked against what it asked for."""
    with ExitStack() as stack:
        ours, theirs = (stack.enter_context(one) for one in socket.socketpair())
        ours.setblocking(False)
        number = engine.attach(theirs.fileno())
        assert number >= 0
        theirs.close()
        left, got, ended = stream, b"", False
        deadline = time.monotonic() + _PATIENCE_S
        while not ended:
            assert time.monotonic() < deadline, "its connection does not end"
            with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                if left:
                    left = left[ours.send(left) :]
                if not left:
                    ours.shutdown(socket.SHUT_WR)
            engine.run(_TURN_NS if not select.select([ours], [], [], 0)[0] else 0)
            for fragment, _ in engine.take_failed():
                engine.settle(fragment, 5)
            with suppress(BlockingIOError, ConnectionResetError):
                while piece := ours.recv(1 << 20):
                    got += piece
            ended = any(one == number for one, _ in engine.take_ended())
        with suppress(BlockingIOError, ConnectionResetError):
            while piece := ours.recv(1 << 20):
                got += piece
    _check(stream, got)
    return got


def _check(stream: bytes, got: bytes) -> None:
    asked: Counter[int] = Counter()
    reads: dict[int, set[int]] = {}
    while len(stream) >= _REQUEST.size:
        magic, _, command, cookie, _, length = _REQUEST.unpack_from(stream)
        if magic != wire.REQUEST_MAGIC or command == wire.DISCONNECT:
            break
        asked[cookie] += 1
        reads.setdefault(cookie, set()).add(length if command == wire.READ else 0)
        stream = stream[_REQUEST.size + (length if command == wire.WRITE else 0) :]
    while len(got) >= _REPLY.size:
        magic, error, cookie = _REPLY.unpack_from(got)
        assert magic == wire.REPLY_MAGIC
        assert error in _ERRORS
        assert asked[cookie] > 0, "a reply to nothing"
        asked[cookie] -= 1
        if len(reads[cookie]) > 1:  # one cookie for several requests: whose it is, nobody can say
            return
        got = got[_REPLY.size + (0 if error else next(iter(reads[cookie]))) :]
