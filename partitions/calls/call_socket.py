"""A client's end of send, receive and reply: one call at a time, over sockets that come and go.

A server that dies ends its socket. A new one is asked for at once, and a call that is sent there waits for the next
server. Whether a call that had no reply is made again is its caller's to say: a frame must not come twice, and a byte
must not get lost.
"""

import contextlib
import select
import socket
import time
from collections.abc import Callable
from typing import Final

from partitions.calls.endpoint import adopt_endpoint

RECONNECTS_MAX: Final = 1_000  # in a row, without a reply in between
_PAUSE_S_MAX: Final = 0.1  # between two of them, doubling
_NS_PER_S: Final = 1_000_000_000

Connect = Callable[[], int]
"""A new socket to the server. Raises ConnectionError where there will be none any more."""


class CallLost(Exception):
    """Its server left without a reply: whether it did what was asked is open. A new socket is in place."""


class CallSocket:
    """One thread calls; any may close. ConnectionError, from all methods: the server is gone for good, or we closed."""

    def __init__(self, connect: Connect, message_bytes_max: int) -> None:
        """`message_bytes_max`: of a reply."""
        self._connect = connect
        self._buffer = bytearray(message_bytes_max)
        self._view = memoryview(self._buffer)
        self._poll = select.epoll()  # whose descriptor stays while sockets come and go
        self._socket: socket.socket | None = None
        self._closed = False
        self._failures = 0  # in a row
        self.reconnects = self.malformed = 0
        self._attach()

    def fileno(self) -> int:
        """Readable when a reply is there, or the server has left. The same while servers come and go."""
        return self._poll.fileno()

    def _attach(self) -> None:
        sock = adopt_endpoint(self._connect())
        self._socket = sock
        self._poll.register(sock.fileno(), select.EPOLLIN)
        if self._closed:  # meanwhile: whoever did so saw the old socket
            self._shut_down()

    def send(self, message: bytes) -> None:
        """Make a call. That its server has left is found out by `receive`."""
        with contextlib.suppress(OSError):
            self._open_socket().send(message, socket.MSG_NOSIGNAL)

    def receive(self, deadline_ns: int | None = None) -> memoryview | None:
        """The reply, good until the next call of this. None: the deadline, of CLOCK_MONOTONIC, has passed.

        Raises CallLost.
        """
        sock = self._open_socket()
        flags = 0
        if deadline_ns is not None:
            flags = socket.MSG_DONTWAIT
            if not self._poll.poll(max(deadline_ns - time.monotonic_ns(), 0) / _NS_PER_S):
                return None
        try:
            received, _, told, _ = sock.recvmsg_into((self._buffer,), 0, flags)
        except BlockingIOError:
            return None
        except OSError:
            received, told = 0, 0
        if not received:
            self._reconnect()
        if told & socket.MSG_TRUNC:
            self.reject()
        self._failures = 0
        return self._view[:received]

    def reject(self) -> None:
        """What came is no reply: such a server has no claim on us. Raises CallLost."""
        self.malformed += 1
        self._failures = max(self._failures, 1)  # with a pause: the next reply may be as bad
        self._reconnect()

    def renew(self) -> None:
        """Leave the server, and begin with it anew. Whoever waits in `receive` does not wake."""
        self._detach()
        self._attach()

    def _open_socket(self) -> socket.socket:
        if self._socket is None or self._closed:
            raise ConnectionError("this end was closed")
        return self._socket

    def _reconnect(self) -> None:
        """Raises CallLost, once a new socket is in place."""
        self._detach()
        if self._closed:
            raise ConnectionError("this end was closed")
        self._failures += 1
        if self._failures > RECONNECTS_MAX:
            raise ConnectionError(f"the server left {RECONNECTS_MAX} times in a row without a reply")
        if self._failures > 1:
            time.sleep(min(0.001 * 2 ** min(self._failures, 10), _PAUSE_S_MAX))
        self.reconnects += 1
        self._attach()
        raise CallLost

    def _detach(self) -> None:
        sock, self._socket = self._socket, None
        if sock is not None:
            with contextlib.suppress(OSError, ValueError):
                self._poll.unregister(sock.fileno())
            sock.close()

    def _shut_down(self) -> None:
        if (sock := self._socket) is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Wakes who is in `receive`. The server sees that we have left."""
        self._closed = True
        self._shut_down()

    def destroy(self) -> None:
        """Give the descriptors back, once no thread is inside any more. Idempotent."""
        self.close()
        self._detach()
        self._poll.close()
