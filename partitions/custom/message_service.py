"""The server's end of a client that sends, and waits for the reply: one thread, one request at a time.

What a predecessor had begun its client sends again, and that is all there is to it: a request may be served twice, and
nobody has to wait for that.
"""

import contextlib
import socket
import threading
from typing import Final

from bus.seam import Seam, Step
from partitions.custom.message_client import MESSAGE_BYTES_MAX, send_marked
from partitions.custom.serving import check_reply, error_of, lock_of, too_long
from partitions.custom.wire import ERROR, MARK_BYTES, PLAIN, REQUEST_BYTES_MAX, Mark
from partitions.sdk.custom import CustomDriver
from partitions.storage.backends import BackendError


class CustomService:
    """An EndpointService. Statistics may be read from any thread."""

    phase: Final = 0  # nothing is ever half done
    settled: Final = True

    def __init__(self, driver: CustomDriver, lock: threading.Lock, seam: Seam | None = None) -> None:
        """`lock`: the driver's. `seam`: passed between serving and reply, where a test may have the process die."""
        self._driver, self._device_lock, self._seam = driver, lock, seam or Seam()
        self._begin()
        self._buffer = bytearray(MESSAGE_BYTES_MAX)
        self._view = memoryview(self._buffer)
        self.refuses_resent = False
        self.served = 0
        self.busy = False
        self.dropped = 0

    def _begin(self) -> None:
        self._opened = self._driver.opened()
        self._lock = lock_of(self._opened, self._driver, self._device_lock)

    def serve_one(self, sock: socket.socket) -> bool:
        """Receive, have it served, reply. False: the client is gone, or has broken the protocol."""
        try:
            received, _, flags, _ = sock.recvmsg_into((self._buffer,))
        except OSError:
            return False
        if not received:
            return False
        mark = self._buffer[received - MARK_BYTES]
        if mark == Mark.OPENED:
            self._begin()
            return True
        if flags & socket.MSG_TRUNC or mark != Mark.PLAIN:
            self.dropped += 1
            return False
        request = bytes(self._view[: received - MARK_BYTES])
        self.served += 1
        self.busy = True
        try:
            data, reply_mark = self._answer(request)
            self._seam.passing(Step.EXECUTE)
        finally:
            self.busy = False
        return send_marked(sock, data, reply_mark)

    serve = serve_one

    def _answer(self, request: bytes) -> tuple[bytes, bytes]:
        """A reply and its mark."""
        try:
            with self._lock or contextlib.nullcontext():
                reply = check_reply(self._opened.answer(request))
            if len(reply) > REQUEST_BYTES_MAX:
                raise too_long(len(reply))
        except BackendError as error:
            return error_of(error), ERROR
        return reply, PLAIN

    def hold(self) -> None:
        """Nobody else has to be kept away."""

    def let_go(self) -> None:
        """See hold."""

    def statistics(self) -> dict[str, int]:
        return {"requests": self.served, "dropped": self.dropped}
