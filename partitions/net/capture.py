"""A capture on a switch: every frame, or those of one port, as pcap records into a socket. No file, no thread.

Whoever forwards a frame also puts it into the socket, and waits for nothing: what the socket has no room for is dropped
and counted. Wire: runtime.machine.capture_wire.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Sequence
from typing import Final

from runtime.machine.capture_wire import PACKET_HEAD, RECORD_HEAD, RECORDS_BYTES_MAX, SNAP_BYTES_MAX

_NS_PER_S: Final = 1_000_000_000
EVERY_PORT: Final = b""


class Capture:
    """`saw` may be called by several threads at a time."""

    def __init__(self, sock: socket.socket, snap_bytes: int, port: bytes | None = EVERY_PORT) -> None:
        """`port`: the address of the port whose frames are wanted, in and out; None: the one to the outside;
        EVERY_PORT: each frame once, as it comes in."""
        self._socket, self._snap_bytes, self._port = sock, min(snap_bytes, SNAP_BYTES_MAX), port
        self.lock: Final = threading.Lock()  # of the socket: whoever has something to say first holds it
        self.frames = self.dropped = 0
        self.ended = False  # the other end is gone

    def came_in(self, port: bytes | None, frames: Sequence[memoryview]) -> None:
        if self._port == EVERY_PORT or self._port == port:
            self.saw(frames)

    def goes_out(self, port: bytes | None, frames: Sequence[memoryview]) -> None:
        if self._port == port:
            self.saw(frames)

    def saw(self, frames: Sequence[memoryview]) -> None:
        with self.lock:
            seconds, nanoseconds = divmod(time.time_ns(), _NS_PER_S)
            parts: list[bytes | memoryview] = [b""]
            size = count = 0
            for frame in frames:
                kept = frame[: self._snap_bytes]
                if size + RECORD_HEAD.size + len(kept) > RECORDS_BYTES_MAX:
                    self._send(parts, count)
                    parts, size, count = [b""], 0, 0
                parts += (RECORD_HEAD.pack(seconds, nanoseconds, len(kept), len(frame)), kept)
                size += RECORD_HEAD.size + len(kept)
                count += 1
            self._send(parts, count)

    def _send(self, parts: list[bytes | memoryview], count: int) -> None:
        """With the lock held. A packet goes whole or not at all."""
        if not count:
            return
        parts[0] = PACKET_HEAD.pack(self.dropped)
        try:
            self._socket.send(b"".join(parts), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            self.dropped += count
        except OSError:
            self.dropped += count
            self.ended = True
        else:
            self.frames += count

    def end(self) -> None:
        """As if the client had enough."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def farewell(self) -> bytes:
        """The last packet."""
        with self.lock:
            return PACKET_HEAD.pack(self.dropped)
