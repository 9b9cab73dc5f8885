"""What goes to one guest: frames and control messages, through pieces of the receive buffer that it lent.

A piece is the guest's from the packet that carries it until the guest's completion of that packet. So the buffer is the
port's queue: a guest that does not read fills it, and what is then for it is dropped and counted, as on a wire.

Many threads deliver here, each that of another port; `free` and the control messages come from the port's own.
"""

import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from bus.native import Channel, RingClosed, RingError, RingFull
from partitions.net import nvsp, rndis
from partitions.net.filtering import accepts
from partitions.net.frames import packet_header
from partitions.net.rndis import PACKET_HEADER_BYTES
from partitions.net.server_session import RESERVED_PIECES, ServerSession
from partitions.net.shared_buffer import SharedBuffer

PATIENCE_S: Final = (
    0.02  # how long a sender waits for a guest that reads, once, before frames for it are dropped
)
CONTROL_MESSAGES_MAX: Final = (
    64  # answers that wait for a piece; a guest that asks on and reads none loses its channel
)
_GENERATION_SHIFT: Final = 32
_SEQUENCE: Final = (1 << _GENERATION_SHIFT) - 1


class GuestDoesNotRead(RingError):
    """It asks and asks, and takes no answer in. Its channel is finished, as if it had broken its ring."""


class Port:
    """One guest's end of the switch."""

    def __init__(
        self,
        channel: Channel,
        session: ServerSession,
        send_lock: threading.Lock,
        ring: Callable[[], None] = lambda: None,
    ) -> None:
        """`send_lock`: of whoever sends on the channel, and then calls `ring`, which never blocks."""
        self.mac: Final = session.adapter.mac
        self._channel, self._session, self._lock, self._ring = channel, session, send_lock, ring
        self._buffer: SharedBuffer | None = None
        self._free: list[int] = []  # offsets of pieces
        self._out: dict[int, list[int]] = {}  # offsets of the pieces that the guest has, by packet id
        self._sequence = 0
        self._fence: int | None = None  # the id of our first packet, until the guest has read up to it
        self._fence_sent = True
        self._headers: dict[int, bytes] = {}
        self._control: deque[bytes] = deque()
        self._message = {
            kind: nvsp.SendRndisPacket(kind, nvsp.NO_SECTION, 0).encode(session.message_bytes)
            for kind in nvsp.Channel
        }
        self._room = threading.Event()
        self._wanted = 0  # free pieces that a sender waits for
        self._is_slow = False  # a sender waited for it in vain
        self._closed = False
        self.frames = self.dropped = self.unknown_ids = 0

    def attach(self, buffer: SharedBuffer, *, taken_over: bool) -> None:
        """The guest has lent the buffer: to us, or to a predecessor.

        A predecessor's pieces may be with the guest. It reads packets in their order, so they are all ours again when
        it has completed the first one that we send: a word about the link, in a piece that nothing else stands in.
        """
        shape = self._session.receive
        assert shape is not None
        with self._lock:
            self._buffer = buffer
            first, last = RESERVED_PIECES, shape.pieces
            self._free = [index * shape.piece_bytes for index in range(last - 1, first - 1, -1)]
            self._out.clear()
            self._sequence, self._fence, self._fence_sent = 0, None, True
            if taken_over:
                self._fence, self._fence_sent = self._next_id(), False
            self._wanted, self._is_slow = 0, False

    def detach(self) -> None:
        """The guest wants its buffer back: nothing of it is touched afterwards."""
        with self._lock:
            self._buffer = None
            self._free, self._fence = [], None
            self._out.clear()
            self._control.clear()

    def close(self) -> None:
        """For good. Whoever is in the middle of a delivery has ended it afterwards."""
        with self._lock:
            self._closed = True
        self.detach()
        self._room.set()

    # -- frames

    @property
    def packet_filter(self) -> int:
        """The guest's; 0 while it takes no frames."""
        return self._session.packet_filter if self._session.takes_frames else 0

    def accepts(self, address: bytes) -> bool:
        """By the guest's packet filter."""
        return accepts(self._session.packet_filter, self.mac, address)

    def deliver(self, frames: Sequence[memoryview], *, patient: bool) -> None:
        """Copy frames to the guest. `patient`: wait a little where it reads, and has no piece free at the moment."""
        done = 0
        while done < len(frames):
            with self._lock:
                taken = self._deliver_some(frames, done)
            done += taken
            if not taken and not (patient and self._wait_for_room()):
                self.dropped += len(frames) - done
                return

    def _deliver_some(self, frames: Sequence[memoryview], start: int) -> int:
        if self._closed or self._fence is not None or self._buffer is None or not self._session.takes_frames:
            return 0
        whole, frame_bytes_max = self._buffer.whole, self._session.frame_bytes_max
        count = min(len(frames) - start, len(self._free), nvsp.RANGES_MAX)
        pieces: list[int] = []
        ranges: list[int] = []
        for frame in frames[start : start + count]:
            size = len(frame)
            if size > frame_bytes_max:
                self.dropped += 1
                continue
            if (header := self._headers.get(size)) is None:
                header = self._headers[size] = packet_header(size)
            offset = self._free.pop()
            pieces.append(offset)
            if whole is not None:
                body = offset + PACKET_HEADER_BYTES
                whole[offset:body] = header
                whole[body : body + size] = frame
            else:
                self._buffer.write(offset, header + bytes(frame))
            ranges += (PACKET_HEADER_BYTES + size, offset)
        if pieces and not self._send(nvsp.Channel.DATA, ranges, pieces):
            return 0
        self.frames += len(pieces)
        return count

    def _wait_for_room(self) -> bool:
        if self._is_slow or self._closed or not self._session.takes_frames:
            return False
        shape = self._session.receive
        with self._lock:
            self._wanted = max((shape.pieces if shape is not None else 0) // 4, 1)
            if len(self._free) >= self._wanted and self._fence is None:
                return False  # it is the ring that is full
            self._room.clear()
        if self._room.wait(PATIENCE_S):
            return not self._closed
        self._is_slow = True
        return False

    def _next_id(self) -> int:
        self._sequence = (self._sequence + 1) & _SEQUENCE
        return self._session.generation << _GENERATION_SHIFT | self._sequence

    def _send(self, kind: nvsp.Channel, ranges: Sequence[int], pieces: list[int]) -> bool:
        """With the lock held. False: the ring is full or finished, and the pieces are free again."""
        packed = struct.pack(f"<{len(ranges)}I", *ranges)
        identity = self._next_id()
        self._out[identity] = pieces
        try:
            self._channel.send_transfer_pages(self._message[kind], nvsp.RECEIVE_BUFFER_ID, packed, identity)
        except (RingFull, RingClosed):
            pass
        except RingError:  # the guest broke its ring; its own thread will find that, and nobody else is hurt
            self._closed = True
        else:
            self._ring()
            return True
        self._free += self._out.pop(identity)
        return False

    def complete(self, identity: int) -> None:
        """The guest has read a packet of ours: its pieces are ours again."""
        if identity == self._fence:
            self._fence = None
            self._room.set()
            return
        with self._lock:
            pieces = self._out.pop(identity, None)
            if pieces is None:
                # of a predecessor, or of a buffer that was there before: nothing to give back
                self.unknown_ids += identity >> _GENERATION_SHIFT == self._session.generation
                return
            self._free += pieces
            if self._wanted and len(self._free) >= self._wanted:
                self._wanted, self._is_slow = 0, False
                self._room.set()
            elif self._is_slow and len(self._free) >= 2 * self._wanted:
                self._is_slow = False

    # -- control messages

    def say(self, message: rndis.Message) -> None:
        """Once there is a piece for it. GuestDoesNotRead: too many wait for that already."""
        if len(self._control) >= CONTROL_MESSAGES_MAX:
            raise GuestDoesNotRead(f"{CONTROL_MESSAGES_MAX} answers wait for a guest that takes none in")
        self._control.append(message.encode())
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as there is room."""
        with self._lock:
            if self._buffer is None or self._closed:
                return
            if not self._fence_sent:
                self._send_fence()
            while self._control and self._free and self._fence is None:
                data = self._control[0]
                offset = self._free.pop()
                self._buffer.write(offset, data)
                if not self._send(nvsp.Channel.CONTROL, (len(data), offset), [offset]):
                    return
                self._control.popleft()

    def _send_fence(self) -> None:
        assert self._buffer is not None
        assert self._fence is not None
        shape, data = self._session.receive, self._session.link_status().encode()
        assert shape is not None
        offset = 0 if self._session.adapter.link_up else shape.piece_bytes
        self._buffer.write(offset, data)
        packed = struct.pack("<II", len(data), offset)
        message = self._message[nvsp.Channel.CONTROL]
        try:
            self._channel.send_transfer_pages(message, nvsp.RECEIVE_BUFFER_ID, packed, self._fence)
        except RingFull:
            return  # later
        self._ring()
        self._fence_sent = True
