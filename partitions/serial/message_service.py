"""The server's ends of a client that has a line without rings: one for what it writes, one for what it is to read.

What the driver took of a call stands in the connection's record, which outlives this process: a call that is sent again
goes on behind it. A piece that was read is kept until the client has said that it has got it.
"""

import socket
import struct
import threading
import time
from typing import Final
from zlib import crc32

from bus.seam import Seam, Step
from partitions.calls.call_service import CallService
from partitions.calls.serving import reply, wait_beside
from partitions.sdk.serial import SerialDriver
from partitions.serial.message_wire import (
    MESSAGE_BYTES_MAX,
    MalformedCall,
    Piece,
    Read,
    Write,
    Written,
    decode_call,
)
from partitions.serial.vsp import POLL_MS, DriverMisbehaved
from partitions.serial.wire import PIECE_BYTES_MAX
from partitions.storage.backends import BackendError

_RECORD: Final = struct.Struct("<QIII")  # a call's number, checksum and length; how much of it was taken
_RECORD_AT: Final = 40  # in a connection's record
assert _RECORD_AT + _RECORD.size <= 64


class ReadAhead:
    """Of one line: the piece that was read of its driver, and that nobody has said to have got."""

    def __init__(self) -> None:
        self.lock: Final = threading.Lock()
        self._numbers = time.monotonic_ns()  # from where no server before us has counted
        self._kept: Piece | None = None

    def waiting(self, taken: int) -> Piece | None:
        """What is to be said again to a client that has got the piece of that number."""
        if self._kept is not None and self._kept.number == taken:
            self._kept = None
        return self._kept

    def keep(self, data: bytes) -> Piece:
        self._numbers += 1
        self._kept = Piece(self._numbers, data)
        return self._kept


class _Service(CallService[Write | Read]):
    """What was half done is in the record."""

    def __init__(self, driver: SerialDriver) -> None:
        super().__init__(MESSAGE_BYTES_MAX, decode_call, MalformedCall)
        self._driver = driver
        self.errors = 0


class WriteService(_Service):
    """Of a client's first connection."""

    def __init__(self, driver: SerialDriver, lock: threading.Lock, record: memoryview, seam: Seam) -> None:
        """`lock`: of the driver."""
        super().__init__(driver)
        self._lock, self._record, self._seam = lock, record, seam
        self.bytes_written = 0

    def serve_one(self, sock: socket.socket) -> bool:
        call = self._take(sock)
        if not isinstance(call, Write):
            self.malformed += call is not None
            return False
        self.busy = True
        try:
            self._seam.passing(Step.TAKE)
            taken = self._write(call)
        finally:
            self.busy = False
        return reply(sock, Written(call.number, taken).encode())

    def _write(self, call: Write) -> int:
        """How many of its bytes are the driver's now."""
        data, at = call.data, 0
        name = call.number, crc32(data), len(data)
        if call.again:
            *noted, done = _RECORD.unpack_from(self._record, _RECORD_AT)
            at = min(done, len(data)) if tuple(noted) == name else 0
        self._note(*name, at)
        while at < len(data):
            try:
                with self._lock:
                    taken = self._driver.write(data[at:])
            except BackendError:  # those bytes are lost, and the line goes on
                self.errors += 1
                taken = len(data) - at
            if not 0 <= taken <= len(data) - at:
                raise DriverMisbehaved(f"write took {taken} of {len(data) - at} bytes")
            self._seam.passing(Step.EXECUTE)
            if not taken:
                break
            at += taken
            self.bytes_written += taken
            self._note(*name, at)
        return at

    def _note(self, number: int, checksum: int, length: int, taken: int) -> None:
        _RECORD.pack_into(self._record, _RECORD_AT, number, checksum, length, taken)

    def statistics(self) -> dict[str, int]:
        return {
            "requests": self.served,
            "errors": self.errors,
            "dropped": self.malformed,
            "bytes_written": self.bytes_written,
        }


class ReadService(_Service):
    """Of a client's second connection."""

    def __init__(self, driver: SerialDriver, lock: threading.Lock, ahead: ReadAhead) -> None:
        super().__init__(driver)
        self._lock, self._ahead = lock, ahead
        self.bytes_read = 0

    def serve_one(self, sock: socket.socket) -> bool:
        call = self._take(sock)
        if not isinstance(call, Read):
            self.malformed += call is not None
            return False
        while (piece := self._next(call)) is None:
            if not wait_beside(sock, self._driver.descriptor, POLL_MS):
                return False
        return reply(sock, piece.encode())

    def _next(self, call: Read) -> Piece | None:
        """None: no bytes wait."""
        with self._ahead.lock:
            if (kept := self._ahead.waiting(call.taken)) is not None:
                return kept
            self.busy = True
            try:
                with self._lock:
                    data = self._driver.read(PIECE_BYTES_MAX)
            except BackendError:
                self.errors += 1
                return None
            finally:
                self.busy = False
            if len(data) > PIECE_BYTES_MAX:
                raise DriverMisbehaved(f"read returned {len(data)} bytes of {PIECE_BYTES_MAX}")
            self.bytes_read += len(data)
            return self._ahead.keep(data) if data else None

    def statistics(self) -> dict[str, int]:
        return {
            "requests": self.served,
            "errors": self.errors,
            "dropped": self.malformed,
            "bytes_read": self.bytes_read,
        }
