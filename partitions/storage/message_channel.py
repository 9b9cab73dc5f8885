"""The client's end of a storage server that is reached by send, receive and reply: for `Disk` a channel like any other.

Requests that were submitted wait here in their order; one at a time is with the server. The server may die: then the
socket ends, a new one is asked for, and the request that was not replied to is sent again, before all others. Until
then nobody has acknowledged it, and a storage request may be executed twice (docs/recovery.md).

The end of the old socket is also the proof that nothing of the old server runs any more: the kernel closes it once the
last thread of that process has left its last system call.
"""

import contextlib
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bus.memory import PAGE_BYTES, PFN_BYTES
from bus.native import RingClosed, RingFull
from bus.packets import PacketType
from partitions.storage.message_wire import (
    DIRECTION_AT,
    HEAD_BYTES,
    MESSAGE_DATA_BYTES_MAX,
    SOCKET_BUFFER_BYTES,
    Kind,
    MalformedMessage,
    MessageFlags,
    MessageHead,
)
from partitions.storage.protocol import PACKET_BYTES, Direction
from partitions.storage.transport import Packet

WAITING_REQUESTS_MAX: Final = 4096
RECONNECTS_MAX: Final = 1_000  # in a row, without a reply in between
_PAUSE_S_MAX: Final = 0.1  # between two of them, doubling
_NS_PER_S: Final = 1_000_000_000

Connect = Callable[[], int]
"""A new socket to the server. Raises ConnectionError where there will be none any more."""


@dataclass(slots=True)
class _Request:
    head: bytes
    packet: bytes
    transaction_id: int
    sent: memoryview | None  # data that goes with it
    target: memoryview | None  # where the reply's data goes


class MessageChannel:
    """What `Disk`, `AsyncDisk` and `MessageQueue` use of a `bus.native.Channel`. One thread; any may close.

    Raises RingClosed once it is closed or the server is gone for good; RingFull: too many requests wait.
    """

    def __init__(self, connect: Connect, data: memoryview, data_gpfn: int) -> None:
        """`data`: the area whose pages requests name; its first is page `data_gpfn`. Owned by the caller."""
        self._connect, self._data, self._data_gpfn = connect, data, data_gpfn
        self._waiting: deque[_Request] = deque()
        self._with_server: _Request | None = None
        self._replies: list[Packet] = []
        self._socket: socket.socket | None = None
        self._poll = select.epoll()  # whose descriptor stays while sockets come and go
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll.register(self._stop_fd, select.EPOLLIN)
        self._closed = False
        self._began = False  # something was sent: the session has begun
        self._head, self._packet = bytearray(HEAD_BYTES), bytearray(PACKET_BYTES)
        self._failures = 0  # in a row
        self.packets_sent = self.packets_received = self.reconnects = self.malformed = 0
        self._attach()

    def fileno(self) -> int:
        """Readable when a reply may be there, and once our own side has closed. The same while servers come and go."""
        return self._poll.fileno()

    # -- sending

    def send(self, payload: bytes, transaction_id: int = 0, completion: bool = False) -> None:
        self._submit(payload, transaction_id, None)

    def send_gpa_direct(
        self,
        payload: bytes,
        byte_offset: int,
        byte_count: int,
        pfns: bytes,
        transaction_id: int,
        completion: bool = True,
    ) -> None:
        first = int.from_bytes(pfns[:PFN_BYTES], "little") - self._data_gpfn
        start = first * PAGE_BYTES + byte_offset
        if byte_count > MESSAGE_DATA_BYTES_MAX or start < 0 or start + byte_count > len(self._data):
            raise ValueError(f"{byte_count} bytes at page {first}: not of the data area, or too many")
        self._submit(payload, transaction_id, self._data[start : start + byte_count])

    def submit_transfer(self, payload: bytes, area: memoryview, transaction_id: int) -> None:
        self._submit(payload, transaction_id, area)

    def _submit(self, payload: bytes, transaction_id: int, area: memoryview | None) -> None:
        if self._closed:
            raise RingClosed("the channel is closed")
        if len(self._waiting) >= WAITING_REQUESTS_MAX:
            raise RingFull(f"{WAITING_REQUESTS_MAX} requests wait")
        writes = area is not None and payload[DIRECTION_AT] == Direction.WRITE
        flags = MessageFlags(0) if self._began else MessageFlags.FIRST
        area_bytes = len(area) if area is not None else 0
        head = MessageHead(
            transaction_id, area_bytes, area_bytes if writes else 0, Kind.REQUEST, len(payload), flags
        )
        self._began = True
        self._waiting.append(
            _Request(
                head.encode(),
                payload.ljust(PACKET_BYTES, b"\0"),
                transaction_id,
                area if writes else None,
                area if not writes else None,
            )
        )
        if self._with_server is None:
            self._send_next()

    def _send_next(self) -> None:
        while self._with_server is None and self._waiting:
            self._with_server = self._waiting.popleft()
            if not self._send_out():
                self._reconnect()

    def _send_out(self) -> bool:
        """What the server owes us a reply to. False: it is gone. One message fits an empty socket: this never waits."""
        request = self._with_server
        if request is None:
            return True
        parts = [request.head, request.packet] + ([request.sent] if request.sent is not None else [])
        assert self._socket is not None
        try:
            self._socket.sendmsg(parts, (), socket.MSG_NOSIGNAL)
        except OSError:
            return False
        self.packets_sent += 1
        return True

    # -- receiving

    def receive_batch(self, max_packets: int, timeout_ns: int = -1) -> list[Packet]:
        """As a channel's, but for replies alone; nothing is held."""
        deadline = None if timeout_ns < 0 else time.monotonic_ns() + timeout_ns
        while not self._replies:
            self._check_open()
            if self._receive(block=deadline is None and self._with_server is not None):
                break
            if deadline is not None and time.monotonic_ns() >= deadline:
                break
            self._wait(deadline)
        replies, self._replies = self._replies[:max_packets], self._replies[max_packets:]
        return replies

    def _check_open(self) -> None:
        if self._closed:
            raise RingClosed("the channel is closed")

    def _wait(self, deadline: int | None) -> None:
        seconds = -1.0 if deadline is None else max(deadline - time.monotonic_ns(), 0) / _NS_PER_S
        self._poll.poll(seconds)

    def _receive(self, *, block: bool) -> bool:
        """Take a reply in, if there is one, and send the next request."""
        request, sock = self._with_server, self._socket
        if sock is None:
            raise RingClosed("the channel is closed")
        into = [self._head, self._packet]
        if request is not None and request.target is not None:
            into.append(request.target)  # type: ignore[arg-type]
        try:
            received, _, flags, _ = sock.recvmsg_into(into, 0, 0 if block else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            received, flags = 0, 0
        self._check_open()
        if not received:
            self._reconnect()
            return False
        if request is None or not self._accept(request, received, flags):
            self.malformed += 1
            self._reconnect()  # who does not keep to the protocol is left; a server has no claim on us
            return False
        self._failures = 0
        self._with_server = None
        self.packets_received += 1
        self._send_next()
        return True

    def _accept(self, request: _Request, received: int, flags: int) -> bool:
        if flags & socket.MSG_TRUNC or received < HEAD_BYTES + PACKET_BYTES:
            return False
        try:
            head = MessageHead.decode(self._head, received)
        except MalformedMessage:
            return False
        if head.kind != Kind.REPLY or head.transaction_id != request.transaction_id:
            return False
        payload = bytes(self._packet[: head.packet_bytes])
        self._replies.append((PacketType.COMPLETION, 0, head.transaction_id, b"", payload))
        return True

    def release(self) -> None:
        """Nothing is held."""

    def wait_writable(self, packet_bytes: int, timeout_ns: int = -1) -> bool:
        """There is always room for one more, as long as the number of requests in flight is bounded."""
        self._check_open()
        return True

    def arm(self) -> bool:
        return not self._replies

    def disarm(self) -> None:
        pass

    # -- the server's death

    def _attach(self) -> None:
        """RingClosed: there is no server any more."""
        try:
            fd = self._connect()
        except ConnectionError as error:
            self.close()
            raise RingClosed(str(error)) from error
        sock = socket.socket(fileno=fd)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        self._socket = sock
        self._poll.register(sock.fileno(), select.EPOLLIN)

    def _reconnect(self) -> None:
        """Until the request without a reply is with a server, or with the next one's socket."""
        while True:
            self._detach()
            self._check_open()
            self._failures += 1
            if self._failures > RECONNECTS_MAX:
                self.close()
                raise RingClosed(f"the server left {RECONNECTS_MAX} times in a row without a reply")
            if self._failures > 1:
                time.sleep(min(0.001 * 2 ** min(self._failures, 10), _PAUSE_S_MAX))
            self.reconnects += 1
            self._attach()
            if self._send_out():
                return

    def _detach(self) -> None:
        sock, self._socket = self._socket, None
        if sock is not None:
            with contextlib.suppress(OSError):
                self._poll.unregister(sock.fileno())
            sock.close()

    def settled(self) -> None:
        """Say that nothing of a predecessor of ours is left to be done. No reply."""
        head = MessageHead(0, 0, 0, Kind.SETTLED, PACKET_BYTES)
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendmsg([head.encode(), bytes(PACKET_BYTES)], (), socket.MSG_NOSIGNAL)

    # -- ending

    def close(self) -> None:
        """Wakes who waits here, in any thread; from now on all calls raise RingClosed."""
        if self._closed:
            return
        self._closed = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            os.eventfd_write(self._stop_fd, 1)

    def destroy(self) -> None:
        """Give the descriptors back, once no thread is inside any more. Idempotent."""
        self.close()
        self._detach()
        self._poll.close()
        if self._stop_fd >= 0:
            os.close(self._stop_fd)
            self._stop_fd = -1

    def statistics(self) -> dict[str, int]:
        """A ring's names, so that programs need not know which they have. Nobody is interrupted: the kernel wakes."""
        return {
            "signals_sent": 0,
            "signals_suppressed": 0,
            "packets_sent": self.packets_sent,
            "packets_received": self.packets_received,
            "reconnects": self.reconnects,
            "malformed": self.malformed,
        }
