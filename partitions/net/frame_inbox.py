"""Frames that came in for a guest and wait for it to ask, out of the buffer that the server writes into."""

import struct
from collections import deque
from typing import Final

from partitions.net import rndis
from partitions.net.packet_information import received_with

RECEIVED_FRAMES_MAX: Final = 8192  # kept while nobody asks for them; the next ones are dropped and counted
RANGE: Final = struct.Struct("<II")  # size, offset in the receive buffer: vmtransfer_page_range
_PACKET: Final = int(rndis.Type.PACKET)
_START: Final = struct.Struct("<IIII12xII")


class FrameInbox:
    """Of one adapter. Whatever the server writes, nothing outside the buffer is read."""

    def __init__(self, memory: memoryview) -> None:
        """`memory`: the receive buffer."""
        self._memory, self._memory_bytes = memory, len(memory)
        self.frames: Final[deque[bytes]] = deque()
        self.frames_received = self.bytes_received = self.dropped = self.malformed = 0

    def fetch(self, limit: int) -> list[bytes]:
        """The oldest ones, at most `limit`."""
        waiting = self.frames
        if limit >= len(waiting):
            frames = list(waiting)
            waiting.clear()
            return frames
        return [waiting.popleft() for _ in range(limit)]

    def take(self, ranges: bytes) -> None:
        """Copy a packet's frames out of the receive buffer. `ranges`: (size, offset) of each RNDIS message in it."""
        memory, limit = self._memory, self._memory_bytes
        received, unpack = self.frames, _START.unpack_from
        count = total = 0
        room = RECEIVED_FRAMES_MAX - len(received)
        for size, offset in RANGE.iter_unpack(ranges):
            if offset + size > limit or size < 44:
                self.malformed += 1
                continue
            kind, length, data_offset, data_bytes, info_at, info_bytes = unpack(memory, offset)
            if kind != _PACKET or length > size or data_offset < 36 or data_offset + data_bytes > length - 8:
                self.malformed += 1
                continue
            if count >= room:
                self.dropped += 1
                continue
            first = offset + 8 + data_offset
            frame = memory[first : first + data_bytes]
            if info_bytes:
                try:
                    frame = received_with(memory[offset : offset + length], frame, info_at, info_bytes)
                except rndis.MalformedRndis:
                    self.malformed += 1
                    continue
            received.append(bytes(frame))
            count += 1
            total += data_bytes
        self.frames_received += count
        self.bytes_received += total
