"""An NBD client that reads one block after the other, and knows when each was asked for and there. Blocking.

Source: NetworkBlockDevice/nbd doc/proto.md: fixed newstyle, NBD_OPT_GO, simple replies.
"""

import itertools
import random
import socket
import struct
from pathlib import Path
from typing import Final, Self

from bus.native import monotonic_ns
from runtime.exits import CommandError
from runtime.measure.devices.client_clock import ClientClock
from runtime.measure.devices.path_walk import ClientMoments

PATIENCE_S: Final = 10.0
BLOCK_BYTES: Final = 4096
_GREETING: Final = struct.Struct(">8s8sH")
_OPTION: Final = struct.Struct(">8sII")
_OPTION_REPLY: Final = struct.Struct(">QIII")
_INFO: Final = struct.Struct(">HQH")
_REQUEST: Final = struct.Struct(">IHHQQI")
_REPLY: Final = struct.Struct(">IIQ")
_FIXED_NO_ZEROES: Final = 3
_OPT_GO: Final = 7
_REP_ACK, _REP_INFO, _INFO_EXPORT = 1, 3, 0
_REQUEST_MAGIC, _REPLY_MAGIC = 0x25609513, 0x67446698
_READ, _DISCONNECT = 0, 2
_OFFSETS: Final = 4096  # drawn once, then taken in turn

assert (_REQUEST.size, _REPLY.size) == (28, 16)


class NbdReader:
    """Use it in a `with` block. CommandError: what is said there is no NBD; OSError: nothing comes, or it is gone."""

    def __init__(self, path: Path, export: str = "") -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._cookie = 0
        try:
            self._sock.settimeout(PATIENCE_S)
            self._sock.connect(str(path))
            self.size_bytes = self._agree(export.encode())
        except BaseException:
            self._sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def _agree(self, export: bytes) -> int:
        magic, version, flags = _GREETING.unpack(self._read(_GREETING.size))
        if (magic, version) != (b"NBDMAGIC", b"IHAVEOPT"):
            raise CommandError("the other side of the socket speaks no NBD of today")
        wanted = struct.pack(">I", len(export)) + export + struct.pack(">H", 0)
        head = _OPTION.pack(b"IHAVEOPT", _OPT_GO, len(wanted))
        self._sock.sendall(struct.pack(">I", flags & _FIXED_NO_ZEROES) + head + wanted)
        size_bytes = 0
        while True:
            _, _, kind, length = _OPTION_REPLY.unpack(self._read(_OPTION_REPLY.size))
            data = self._read(length)
            if kind == _REP_INFO and length == _INFO.size and _INFO.unpack(data)[0] == _INFO_EXPORT:
                size_bytes = _INFO.unpack(data)[1]
            elif kind == _REP_ACK:
                return size_bytes
            elif kind != _REP_INFO:
                raise CommandError(f"the server does not export {export.decode()!r}: reply {kind:#x}")

    def _read(self, count: int) -> bytes:
        data = self._sock.recv(count)
        while len(data) < count:
            if not (more := self._sock.recv(count - len(data))):
                raise ConnectionResetError("the server has closed the connection")
            data += more
        return data

    def read(self, offset: int) -> ClientMoments:
        """A block, whose bytes nobody wants to see. CommandError: the server refused it."""
        self._cookie += 1
        request = _REQUEST.pack(_REQUEST_MAGIC, 0, _READ, self._cookie, offset, BLOCK_BYTES)
        call = monotonic_ns()
        self._sock.sendall(request)
        reply = self._read(_REPLY.size + BLOCK_BYTES)
        returned = monotonic_ns()
        magic, error, cookie = _REPLY.unpack_from(reply)
        if (magic, error, cookie) != (_REPLY_MAGIC, 0, self._cookie):
            raise CommandError(f"an NBD read went wrong: error {error}, cookie {cookie} of {self._cookie}")
        return ClientMoments(call, returned, identity=cookie)

    def read_until(self, deadline: int, clock: ClientClock) -> None:
        """At random places, until that moment; then take leave."""
        rng = random.Random(1)
        blocks = self.size_bytes // BLOCK_BYTES
        offsets = [rng.randrange(blocks) * BLOCK_BYTES for _ in range(_OFFSETS)]
        for offset in itertools.cycle(offsets):
            begun = monotonic_ns()
            moments = self.read(offset)
            ended = monotonic_ns()
            clock.record(begun, ended, moments)
            if ended >= deadline:
                break
        self._sock.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, _DISCONNECT, 0, 0, 0))
