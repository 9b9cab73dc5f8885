"""The guest's end of a serial line without rings: the same methods as `partitions.serial.port.SerialLine`.

What was written and the driver has not taken is kept here, as much as a ring would hold; a thread makes the calls. So
`write` returns as it does with a ring, and a server's death costs none of it.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

from partitions.calls.call_socket import Connect
from partitions.serial.message_calls import Reading, Writing
from partitions.serial.message_wire import WRITE_BYTES_MAX
from partitions.serial.port import SerialClosedError

CLOSE_S_MAX: Final = 1.0  # how long `close` waits for a call that is under way
_PAUSE_S: Final = 0.002  # before a driver that took nothing is asked again; then twice as long, and so on
_PAUSE_S_MAX: Final = 0.05
_NS_PER_S: Final = 1_000_000_000


class MessageLine:
    """A Line, open from the start."""

    def __init__(self, calls: Connect, reads: Connect, kept_bytes: int) -> None:
        """SerialClosedError: there is no server. `kept_bytes`: of what the driver has not taken."""
        try:
            self._writing = Writing(calls)
            try:
                self._reading = Reading(reads)
            except BaseException:
                self._writing.socket.destroy()
                raise
            self._reading.begin()
        except ConnectionError as error:
            raise SerialClosedError(str(error)) from error
        self._kept_bytes = kept_bytes
        self._kept = bytearray()
        self._changed = threading.Condition()  # of what is kept
        self._failure: str | None = None
        self._closing = threading.Event()
        self._read = bytearray()  # taken in, and not asked for
        self.bytes_written = self.bytes_read = 0
        self._thread = threading.Thread(target=self._pass_on, name="line", daemon=True)
        self._thread.start()

    # -- out

    def write(self, data: bytes, timeout_s: float | None = None) -> int:
        deadline, at = _deadline_s(timeout_s), 0
        with self._changed:
            while at < len(data):
                if not self._wait(lambda: len(self._kept) < self._kept_bytes, deadline):
                    break
                piece = data[at : at + self._kept_bytes - len(self._kept)]
                self._kept += piece
                at += len(piece)
                self._changed.notify_all()
            self.bytes_written += at
        return at

    def flush(self, timeout_s: float | None = None) -> bool:
        with self._changed:
            return self._wait(lambda: not self._kept, _deadline_s(timeout_s))

    def _wait(self, condition: Callable[[], bool], deadline: float | None) -> bool:
        left = None if deadline is None else max(deadline - time.monotonic(), 0)
        self._changed.wait_for(lambda: condition() or self._failure is not None, left)
        if self._failure is not None:
            raise SerialClosedError(self._failure)
        return condition()

    def _pass_on(self) -> None:
        """In the thread: what is kept, call after call."""
        pause_s = _PAUSE_S
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._kept or self._closing.is_set())
                    piece = bytes(self._kept[:WRITE_BYTES_MAX])
                if not piece:
                    return
                taken = self._writing.write(piece)
                with self._changed:
                    del self._kept[:taken]
                    self._changed.notify_all()
                if taken:
                    pause_s = _PAUSE_S
                    continue
                if self._closing.wait(pause_s):
                    return  # nobody takes it
                pause_s = min(2 * pause_s, _PAUSE_S_MAX)
        except ConnectionError as error:
            with self._changed:
                self._failure = str(error)
                self._changed.notify_all()

    # -- in

    def read(self, limit: int, timeout_s: float | None = None) -> bytes:
        if not self._read:
            deadline = None if timeout_s is None else time.monotonic_ns() + int(timeout_s * _NS_PER_S)
            try:
                self._read += self._reading.take(deadline)
                self._reading.begin()
            except ConnectionError as error:
                raise SerialClosedError(str(error)) from error
        data = bytes(self._read[:limit])
        del self._read[: len(data)]
        self.bytes_read += len(data)
        return data

    # -- the end

    def close(self) -> None:
        """What the driver takes at once it still gets; what else is kept is lost, as it is in a ring: `flush` first."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(CLOSE_S_MAX)
        for one in (self._writing.socket, self._reading.socket):
            one.close()
        self._thread.join(CLOSE_S_MAX)
        if not self._thread.is_alive():
            self._writing.socket.destroy()
        self._reading.socket.destroy()

    def statistics(self) -> dict[str, int]:
        return {
            "bytes_written": self.bytes_written,
            "bytes_read": self.bytes_read,
            "malformed": self._writing.socket.malformed + self._reading.socket.malformed,
        }


def _deadline_s(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s
