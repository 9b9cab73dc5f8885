"""One client without rings at the switch: the frames that wait for its next RECEIVE.

As a guest's receive buffer is with rings, this is the port's queue: what it has no room for is dropped and counted, as
on a wire, and so much room there is as a buffer of that size would have pieces.
"""

import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Final

from partitions.net.filtering import accepts
from partitions.net.frames import ETHERNET_HEADER_BYTES, MTU_MIN
from partitions.net.message_wire import (
    FRAME_DATA_BYTES_MAX,
    FRAMES_MAX,
    VLAN_TAG_BYTES,
    Open,
    Received,
)
from partitions.net.port import PATIENCE_S
from partitions.net.server_session import PIECE_OVERHEAD_BYTES, PIECES_MIN, Adapter

RECEIVE_BYTES_MAX: Final = 4 << 20  # that are kept for a client, whatever it asks for


class MessagePort:
    """A SwitchPort. Many threads deliver; one of the client's opens and closes, another one of its takes."""

    def __init__(self, adapter: Adapter) -> None:
        self.mac: Final = adapter.mac
        self._adapter, self._link_up = adapter, adapter.link_up
        self.ready_fd: Final = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        weakref.finalize(self, os.close, self.ready_fd)
        self._lock = threading.Lock()
        self._room = threading.Event()
        self._frames: deque[bytes] = deque()
        self._pieces = 0  # so many frames have room; 0: it is not open
        self._frame_bytes_max = self._packet_filter = 0
        self._wanted = 0  # room that a sender waits for
        self._is_slow = False  # a sender waited for it in vain
        self._told_up = True  # of the link, what the client knows
        self.frames = self.dropped = 0

    @property
    def is_open(self) -> bool:
        return self._pieces > 0

    @property
    def frame_bytes_max(self) -> int:
        return self._frame_bytes_max

    def open(self, asked: Open) -> tuple[int, bool]:
        """The MTU that there is, and whether the link is up."""
        mtu = max(min(asked.mtu, self._adapter.mtu), MTU_MIN)
        piece_bytes = mtu + PIECE_OVERHEAD_BYTES
        with self._lock:
            self._frame_bytes_max = mtu + ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES
            self._packet_filter = asked.packet_filter
            self._pieces = max(min(asked.receive_bytes, RECEIVE_BYTES_MAX) // piece_bytes, PIECES_MIN)
            self._told_up = self._link_up
            return mtu, self._link_up

    def close(self) -> None:
        """Nothing waits any more, and nothing will."""
        with self._lock:
            self._pieces = self._wanted = 0
            self._is_slow = False
            self._frames.clear()
        self._room.set()
        self._wake()

    def link_changed(self, *, up: bool) -> None:
        """From any thread."""
        self._link_up = up
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self.ready_fd, 1)

    # -- frames

    def accepts(self, address: bytes) -> bool:
        return accepts(self._packet_filter, self.mac, address)

    def deliver(self, frames: Sequence[memoryview], *, patient: bool) -> None:
        """Keep copies. `patient`: wait a little where the client reads, and there is no room at the moment."""
        done = 0
        while done < len(frames):
            taken = self._keep(frames, done)
            done += taken
            if done < len(frames) and not (patient and self._wait_for_room()):
                self.dropped += len(frames) - done
                return

    def _keep(self, frames: Sequence[memoryview], start: int) -> int:
        with self._lock:
            count = max(min(len(frames) - start, self._pieces - len(self._frames)), 0)
            was_empty = not self._frames
            for frame in frames[start : start + count]:
                if len(frame) <= self._frame_bytes_max:
                    self._frames.append(bytes(frame))
                else:
                    self.dropped += 1
            if was_empty and self._frames:
                self._wake()
        return count

    def _wait_for_room(self) -> bool:
        with self._lock:
            if self._is_slow or not self._pieces:
                return False
            self._wanted = max(self._pieces // 4, 1)
            if self._pieces - len(self._frames) >= self._wanted:
                return True
            self._room.clear()
        if self._room.wait(PATIENCE_S):
            return self.is_open
        self._is_slow = True
        return False

    def take(self) -> Received | None:
        """What waits, as much as a message may have. None: nothing that the client does not know."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.ready_fd)  # before the look: what comes behind it rings again
        with self._lock:
            frames: list[bytes] = []
            room = FRAME_DATA_BYTES_MAX
            while self._frames and len(frames) < FRAMES_MAX and (room := room - len(self._frames[0])) >= 0:
                frames.append(self._frames.popleft())
            if self._frames:
                self._wake()  # the next call's
            up, is_news = self._link_up, self._told_up != self._link_up
            if not frames and not is_news:
                return None
            self._told_up = up
            self._make_room()
        self.frames += len(frames)
        return Received(frames, up)

    def _make_room(self) -> None:
        free = self._pieces - len(self._frames)
        if self._wanted and free >= self._wanted:
            self._wanted, self._is_slow = 0, False
            self._room.set()
        elif self._is_slow and free >= self._pieces // 2:
            self._is_slow = False
