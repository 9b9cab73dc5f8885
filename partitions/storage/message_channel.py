"""The client's end of a storage server that is reached by send, receive and reply: for `Disk` a channel like any other.

Requests that were submitted wait in `MessageCalls` in their order; one at a time is with the server. The server may
die: then the socket ends, a new one is asked for, and the request that was not replied to is sent again, before all
others. Until then nobody has acknowledged it, and a storage request may be executed twice (docs/recovery.md). C moves
messages; who dies and who comes next is dealt with here, also for `MessageQueue` and `Forward`, on the same calls.

The end of the old socket is also the proof that nothing of the old server runs any more: the kernel closes it once the
last thread of that process has left its last system call.
"""

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Final

from bus.memory import PAGE_BYTES, PFN_BYTES
from bus.native import RingClosed, RingFull
from bus.packets import PacketType
from partitions.calls.endpoint import adopt_endpoint
from partitions.storage._blockio import BROKEN, MAX_CALLS, NOTHING, MessageCalls
from partitions.storage.message_wire import Kind, MessageHead
from partitions.storage.protocol import PACKET_BYTES
from partitions.storage.transport import Packet

WAITING_REQUESTS_MAX: Final = 4096
assert WAITING_REQUESTS_MAX == MAX_CALLS
RECONNECTS_MAX: Final = 1_000  # in a row, without a reply in between
_PAUSE_S_MAX: Final = 0.1  # between two of them, doubling
_NS_PER_S: Final = 1_000_000_000

Connect = Callable[[], int]
"""A new socket to the server. Raises ConnectionError where there will be none any more."""


class MessageChannel:
    """What `Disk`, `AsyncDisk` and `MessageQueue` use of a `bus.native.Channel`. One thread; any may close.

    Raises RingClosed once it is closed or the server is gone for good; RingFull: too many requests wait.
    """

    def __init__(self, connect: Connect, data: memoryview, data_gpfn: int) -> None:
        """`data`: the area whose pages requests name; its first is page `data_gpfn`. Owned by the caller."""
        self._connect, self._data_gpfn = connect, data_gpfn
        self.calls: Final = MessageCalls(data)
        self._replies: list[Packet] = []
        self._socket: socket.socket | None = None
        self._poll = select.epoll()  # whose descriptor stays while sockets come and go
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll.register(self._stop_fd, select.EPOLLIN)
        self._closed = False
        self._failures = 0  # in a row
        self._replies_before = 0  # the failures
        self.reconnects = self.malformed = 0
        self._attach()

    def fileno(self) -> int:
        """Readable when a reply may be there, and once our own side has closed. The same while servers come and go."""
        return self._poll.fileno()

    # -- sending

    def send(self, payload: bytes, transaction_id: int = 0, completion: bool = False) -> None:
        self._submit(payload, transaction_id, 0, 0)

    def send_gpa_direct(
        self,
        payload: bytes,
        byte_offset: int,
        byte_count: int,
        pfns: bytes,
        transaction_id: int,
        completion: bool = True,
    ) -> None:
        """ValueError: the pages are not of the data area, or too many."""
        first = int.from_bytes(pfns[:PFN_BYTES], "little") - self._data_gpfn
        self._submit(payload, transaction_id, first * PAGE_BYTES + byte_offset, byte_count)

    def _submit(self, payload: bytes, transaction_id: int, start: int, count: int) -> None:
        self._check_open()
        if not self.calls.add(payload, transaction_id, start, count):
            raise RingFull(f"{WAITING_REQUESTS_MAX} requests wait")
        if not self.calls.send():
            self.recover(False)

    # -- receiving

    def receive_batch(self, max_packets: int, timeout_ns: int = -1) -> list[Packet]:
        """As a channel's, but for replies alone; nothing is held."""
        deadline = None if timeout_ns < 0 else time.monotonic_ns() + timeout_ns
        while not self._replies:
            self._check_open()
            if self._receive(block=deadline is None and self.calls.waiting > 0):
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
        """Take a reply in, if there is one; the next request is sent."""
        result = self.calls.receive(block)
        self._check_open()
        if isinstance(result, int):
            if result != NOTHING:
                self.recover(result == BROKEN)
            return False
        transaction_id, payload = result
        self._replies.append((PacketType.COMPLETION, 0, transaction_id, b"", payload))
        if self.calls.lost:
            self.recover(False)
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
        sock = adopt_endpoint(fd)
        self._socket = sock
        self.calls.connect(sock.fileno())
        self._poll.register(sock.fileno(), select.EPOLLIN)
        if (
            self._closed
        ):  # meanwhile: whoever did saw the old socket, and nobody would wake who waits at this one
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def recover(self, broken: bool) -> None:
        """Until the request without a reply is with a server, or with the next one's socket.

        Also for those who use `calls` themselves. Whatever it raises, the channel is closed then, and nothing of a
        request will be asked for again. `broken`: it does not keep to the protocol; a server has no claim on us.
        """
        self.malformed += broken
        try:
            self._reconnect()
        except BaseException:
            self.close()
            raise

    def _reconnect(self) -> None:
        while True:
            self._detach()
            self._check_open()
            if (replies := self.calls.packets_received) != self._replies_before:
                self._failures, self._replies_before = 0, replies
            self._failures += 1
            if self._failures > RECONNECTS_MAX:
                self.close()
                raise RingClosed(f"the server left {RECONNECTS_MAX} times in a row without a reply")
            if self._failures > 1:
                time.sleep(min(0.001 * 2 ** min(self._failures, 10), _PAUSE_S_MAX))
            self.reconnects += 1
            self._attach()
            if self.calls.send():
                return

    def _detach(self) -> None:
        sock, self._socket = self._socket, None
        self.calls.connect(-1)
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
        self.calls.close()
        if (sock := self._socket) is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            os.eventfd_write(self._stop_fd, 1)

    def destroy(self) -> None:
        """Give the descriptors back, once no thread is inside any more. Idempotent."""
        self.close()
        self._detach()
        self.calls.release()
        self._poll.close()
        if self._stop_fd >= 0:
            os.close(self._stop_fd)
            self._stop_fd = -1

    def statistics(self) -> dict[str, int]:
        """A ring's names, so that programs need not know which they have. Nobody is interrupted: the kernel wakes."""
        return {
            "signals_sent": 0,
            "signals_suppressed": 0,
            "packets_sent": self.calls.packets_sent,
            "packets_received": self.calls.packets_received,
            "reconnects": self.reconnects,
            "malformed": self.malformed,
        }
