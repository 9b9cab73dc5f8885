"""One stream's channel joined to a socket, from one thread: bytes of the guest's into the socket, its to the guest.

A packet of the guest's is released when all of it is in the socket: a guest whose ring is empty knows that nothing is
left here. The other end of the socket is a program's of the host, or that of another guest's stream.

All relays of a root share its interpreter, so each call moves as much as there is: a ring's packets in one sendmsg, a
socket's bytes as many packets with one signal. Who waits for room in a ring is woken by it, never by the clock alone.
"""

import contextlib
import select
import socket
import threading
from collections.abc import Callable
from typing import Final

from bus.byte_pipe import decode_piece, encode_piece, ring_bytes_of
from bus.native import Channel, RingClosed, RingCorrupt
from bus.packets import PIPE_HEADER_BYTES, PacketError, PacketType
from bus.trace import Hop
from partitions.streams.wire import END, LINGER_S, PIECE_BYTES_MAX

BATCH_PACKETS: Final = 16  # of the guest's, in hand at a time
STOP_POLL_MS: Final = 100  # how late `stop` may be seen
_FULL_WAIT_NS: Final = 1_000_000  # for room in the guest's ring; so late may be seen what it sends
TAKEN_BYTES_MAX: Final = 256 << 10  # of the socket's, in hand at a time
_PIECE_BYTES_MIN: Final = 256
PAIR_BYTES: Final = 1 << 20  # wanted between two guests' ends, each way; the host may allow less
_INBAND: Final = int(PacketType.INBAND)


class StreamEnd:
    """A socket, and whether the other one of its pair was left in the middle. Owned by a relay once there is one."""

    def __init__(self, sock: socket.socket, greeting: bytes = b"") -> None:
        """`greeting`: said into the socket first."""
        sock.setblocking(False)
        self.socket, self.greeting = sock, greeting
        self.other: StreamEnd | None = None
        self.was_left = False  # the other side went away without an end of its direction

    def close(self, *, finished: bool) -> None:
        if self.other is not None and not finished:
            self.other.was_left = True
        self.socket.close()


def pair() -> tuple[StreamEnd, StreamEnd]:
    """Two ends, for two guests."""
    first, second = (StreamEnd(sock) for sock in socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM))
    first.other, second.other = second, first
    for end in (first, second):
        end.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PAIR_BYTES)
    return first, second


class StreamRelay:
    """A Service."""

    def __init__(self, channel: Channel, end: StreamEnd, ended: Callable[[], None]) -> None:
        """`ended`: called once, by the thread that serves, when the stream is over."""
        self._channel, self._end, self._ended = channel, end, ended
        self._pending = [memoryview(end.greeting)] if end.greeting else []  # no room for it in the socket yet
        self._taken = memoryview(bytearray(TAKEN_BYTES_MAX))
        self._packets: list[bytes] = []  # for the guest, whose ring has no room for them yet
        self._piece_bytes = PIECE_BYTES_MAX
        self._guest_ended = self._socket_ended = self._told_socket = False
        self.waits_for_guest = False  # also: for whoever is to read what it writes
        self._next_id = 1  # of a packet for the guest
        self._is_traced = False
        self.bytes_read = self.bytes_written = self.requests = 0

    def replay(self) -> None:
        """A stream does not outlive who serves it: there is nothing of a predecessor's."""

    def serve(self, stop: threading.Event) -> None:
        """Until the stream is over. RingCorrupt: the guest said what no stream says."""
        self._is_traced = self._channel.is_traced  # a stamp is for nobody otherwise
        try:
            self._relay(stop)
            if not stop.is_set() and self._is_over:
                stop.wait(LINGER_S)  # the guest has all that we wrote only when it lets go
        except (RingClosed, OSError):
            pass
        finally:
            self._end.close(finished=self._guest_ended and not self._pending)
            self._ended()

    @property
    def _is_over(self) -> bool:
        return self._told_socket and self._socket_ended

    def _relay(self, stop: threading.Event) -> None:
        poller, channel, sock = select.poll(), self._channel, self._end.socket
        poller.register(channel.fileno(), select.POLLIN)
        while not stop.is_set() and not self._is_over:
            moved = self._take_from_guest()
            has_room = self._socket_ended or self._has_room()
            if has_room and not self._socket_ended:
                moved |= self._give_to_guest()
            if moved:
                continue
            wanted = select.POLLOUT if self._pending else 0
            if not self._socket_ended and has_room:
                wanted |= select.POLLIN
            if wanted:
                poller.register(sock, wanted)
            self.waits_for_guest = bool(self._pending) or not has_room
            if not has_room:
                channel.wait_writable(ring_bytes_of(self._piece_bytes), _FULL_WAIT_NS)
            elif self._pending or channel.arm():  # what waits in the ring then stays there
                poller.poll(STOP_POLL_MS)
                if self._is_traced:
                    self._channel.stamp(Hop.WAKE)
            channel.disarm()
            self.waits_for_guest = False
            if wanted:
                poller.unregister(sock)

    def _take_from_guest(self) -> bool:
        if self._pending:
            return self._flush()
        if self._guest_ended:
            if self._channel.receive_batch(1, 0):
                raise RingCorrupt("bytes behind the end of the stream")
            return False
        packets = self._channel.receive_batch(BATCH_PACKETS, 0)
        for kind, _, _, _, payload in packets:
            self.requests += 1
            try:
                if kind != _INBAND:
                    raise PacketError(f"packet type {kind}")
                data = decode_piece(payload)
            except PacketError as error:
                raise RingCorrupt(str(error)) from error
            if self._guest_ended:
                raise RingCorrupt("bytes behind the end of the stream")
            if data:
                self._pending.append(memoryview(data))
            self._guest_ended = not data
        if packets:
            self._flush()
        return bool(packets)

    def _flush(self) -> bool:
        """Into the socket, as far as there is room; then the packets are released, and an end passed on."""
        if self._pending:
            try:
                if self._is_traced:
                    self._channel.stamp(Hop.BACKEND_BEGIN)
                sent = self._end.socket.sendmsg(self._pending, (), socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return False
            if self._is_traced:
                self._channel.stamp(Hop.BACKEND_END)
            self.bytes_read += sent
            while sent >= len(self._pending[0]):
                sent -= len(self._pending.pop(0))
                if not self._pending:
                    break
            else:
                self._pending[0] = self._pending[0][sent:]
        if not self._pending:
            self._channel.release()
            if self._guest_ended and not self._told_socket:
                self._told_socket = True
                with contextlib.suppress(OSError):  # it has gone away: that is its end, too
                    self._end.socket.shutdown(socket.SHUT_WR)
        return True

    def _has_room(self) -> bool:
        while True:
            try:
                return self._channel.wait_writable(ring_bytes_of(self._piece_bytes), 0)
            except ValueError:  # no ring of this size ever has
                if self._piece_bytes <= _PIECE_BYTES_MIN:
                    raise RingCorrupt("rings that are too small for a stream") from None
                self._piece_bytes //= 2

    def _give_to_guest(self) -> bool:
        """There is room for a piece."""
        if not self._packets:
            try:
                if self._is_traced:
                    self._channel.stamp(Hop.BACKEND_BEGIN)
                count = self._end.socket.recv_into(self._taken)
            except BlockingIOError:
                return False
            if self._is_traced:
                self._channel.stamp(Hop.BACKEND_END)
            if not count and self._end.was_left:
                raise ConnectionResetError("the other side went away")
            starts = range(0, count, self._piece_bytes)
            self._packets = [
                encode_piece(bytes(self._taken[at : min(at + self._piece_bytes, count)])) for at in starts
            ] or [END]
        sent = self._channel.send_many(self._packets, self._next_id)
        if not sent:
            raise RingCorrupt("the guest took back the room that there was")
        self._next_id += sent
        self._socket_ended = self._packets[sent - 1] == END
        self.bytes_written += sum(map(len, self._packets[:sent])) - sent * PIPE_HEADER_BYTES
        del self._packets[:sent]
        return True

    def statistics(self) -> dict[str, int]:
        return {
            "requests": self.requests,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
        }


class NoStream:
    """A Service of a stream that is over, or was a predecessor's."""

    waits_for_guest = True

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def replay(self) -> None: ...
    def serve(self, stop: threading.Event) -> None:
        while not stop.wait(STOP_POLL_MS / 1000) and not self._channel.is_closed:
            pass

    def statistics(self) -> dict[str, int]:
        return {}
