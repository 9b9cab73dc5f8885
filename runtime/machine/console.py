"""The console line of a machine: every process writes records, the platform alone reads them.

One SOCK_SEQPACKET pair serves the whole machine. The kernel stamps each record with its sender's pid
(SO_PASSCRED), so a partition cannot speak in another's name. Writing never blocks a guest for long: when the
platform does not read, records are dropped, counted, and the count goes out with the next one that fits.
"""

import array
import contextlib
import fcntl
import io
import os
import socket
import struct
import termios
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgpack  # type: ignore[import-untyped]

RECORD_BYTES_MAX: Final = 64 * 1024
RAW: Final = "raw"
_TEXT_BYTES_MAX: Final = 16 * 1024
_PATIENCE_MS: Final = 200
_LOOK_AGAIN_S: Final = 0.001
_CREDENTIALS: Final = struct.Struct("=iII")  # pid, uid, gid


@dataclass(frozen=True, slots=True)
class ConsoleRecord:
    """What one process said. `pid` is the kernel's word; everything else is the sender's."""

    pid: int
    kind: str
    fields: Mapping[str, object]
    speaks_for: str | None = None  # one of several partitions in that process


class ConsoleWriter:
    """The writing end, inherited as a descriptor."""

    def __init__(self, fd: int, patience_ms: int = _PATIENCE_MS, speaks_for: str | None = None) -> None:
        """The writing end.

        Args:
            patience_ms: how long `emit` may wait for a reader that is behind; 0 for who must never wait.
            speaks_for: the partition's name, where it is not alone in its process: one that lives in the hypervisor.
        """
        self._patience_ms = patience_ms
        self._head = {} if speaks_for is None else {"for": speaks_for}
        self._socket = socket.socket(fileno=fd)
        self._dropped = 0

    def emit(self, kind: str, **fields: object) -> None:
        """Send one record. Never raises for a slow or vanished reader: a dead terminal is not a guest's fault."""
        if self._dropped:
            fields["records_dropped"] = self._dropped
        data = msgpack.packb(self._head | {"kind": kind, "fields": fields}, use_bin_type=True)
        if len(data) > RECORD_BYTES_MAX:
            raise ValueError(f"console record of {len(data)} bytes; at most {RECORD_BYTES_MAX}")
        deadline = time.monotonic() + self._patience_ms / 1000
        while True:
            try:
                self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.001)
                    continue
                self._dropped += 1
                return
            except OSError:
                self._dropped += 1
                return
            self._dropped = 0
            return

    def wait_until_read(self, patience_s: float) -> None:
        """Until the reader has taken in all that was sent, by whomever; at most so long. SIOCOUTQ of unix(7)."""
        deadline = time.monotonic() + patience_s
        waits = array.array("i", [0])
        with contextlib.suppress(OSError):  # this kernel does not tell
            while time.monotonic() < deadline:
                fcntl.ioctl(self._socket, termios.TIOCOUTQ, waits)
                if waits[0] == 0:
                    return
                time.sleep(_LOOK_AGAIN_S)

    def stream(self, name: str) -> io.TextIOBase:
        """A text stream whose every line becomes one `output` record; put it in sys.stdout's place."""
        return _LineStream(self, name)


class _LineStream(io.TextIOBase):
    def __init__(self, writer: ConsoleWriter, name: str) -> None:
        self._writer, self._name, self._partial = writer, name, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._partial = (self._partial + text).split("\n")
        for line in lines:
            self._writer.emit("output", stream=self._name, text=line[:_TEXT_BYTES_MAX])
        if len(self._partial) > _TEXT_BYTES_MAX:
            self.flush()
        return len(text)

    def flush(self) -> None:
        if self._partial:
            text, self._partial = self._partial, ""
            self._writer.emit("output", stream=self._name, text=text[:_TEXT_BYTES_MAX])


def console_pair() -> tuple[socket.socket, socket.socket]:
    """(reader, writer): the reader non-blocking and stamped with credentials, the writer to be inherited."""
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    reader.setblocking(False)
    return reader, writer


def _plain_text(data: bytes) -> str | None:
    """What a process writes to its descriptor 2 without our doing: a record's first byte is never that of a text."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return text if all(character.isprintable() or character in "\n\t" for character in text) else None


def read_record(reader: socket.socket) -> ConsoleRecord | None:
    """One record, or None for end of file. Garbage becomes a record of kind `garbage`, never an exception; text, which
    may be a piece of a line, one of kind RAW.

    Raises:
        BlockingIOError: nothing is there now.
    """
    data, ancillary, flags, _ = reader.recvmsg(
        RECORD_BYTES_MAX,
        socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(16 * 4),
        socket.MSG_CMSG_CLOEXEC,
    )
    pid = 0
    for level, kind, payload in ancillary:
        if (
            level == socket.SOL_SOCKET
            and kind == socket.SCM_CREDENTIALS
            and len(payload) >= _CREDENTIALS.size
        ):
            pid = _CREDENTIALS.unpack_from(payload)[0]
        elif level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:  # nobody asked for descriptors
            for (fd,) in struct.iter_unpack("i", payload[: len(payload) // 4 * 4]):
                os.close(fd)
    if not data:
        return None
    if flags & socket.MSG_TRUNC:
        return ConsoleRecord(pid, "garbage", {"reason": "record too long"})
    if (text := _plain_text(data)) is not None:
        return ConsoleRecord(pid, RAW, {"text": text})
    try:
        record = msgpack.unpackb(data, raw=False, max_map_len=256, max_array_len=4096)
        kind, fields, speaks_for = record["kind"], record["fields"], record.get("for")
        if (
            not isinstance(kind, str)
            or not isinstance(fields, dict)
            or not isinstance(speaks_for, str | None)
        ):
            raise TypeError("kind and for are strings, fields a map")
    except Exception as error:  # whatever msgpack makes of hostile bytes
        return ConsoleRecord(pid, "garbage", {"reason": str(error)[:200]})
    return ConsoleRecord(pid, kind, {str(key): value for key, value in fields.items()}, speaks_for)
