"""Ethernet frames in RNDIS PACKET messages: many behind each other in one section, in and out. The data path's part.

Both run over memory that the peer can change at any time: a head is read once, and what was read is what counts.
"""

import struct
from collections.abc import Sequence
from typing import Final

from partitions.net.packet_information import apply_information, information_of
from partitions.net.rndis import (
    ALIGN_BYTES,
    HEAD_BYTES,
    PACKET_HEADER_BYTES,
    PACKET_OFFSET,
    MalformedRndis,
    Status,
    Type,
)

ETHERNET_HEADER_BYTES: Final = 14
ADDRESS_BYTES: Final = 6
MTU_MIN: Final = 576
MTU_MAX: Final = 65_521  # with its Ethernet header a u16 holds it
_HEADER: Final = struct.Struct("<11I")
# Type, length, data offset, data length; behind three fields that say nothing of a frame: where its information is.
_START: Final = struct.Struct("<IIII12xII")
_PACKET: Final = int(Type.PACKET)

assert _HEADER.size == PACKET_HEADER_BYTES

Frame = bytes | bytearray | memoryview


def packet_bytes(frame_bytes: int) -> int:
    """What a frame takes of a section, with the padding up to the next one."""
    return -(-(PACKET_HEADER_BYTES + frame_bytes) // ALIGN_BYTES) * ALIGN_BYTES


def packet_header(frame_bytes: int, padding: int = 0) -> bytes:
    """Of a PACKET with nothing but a frame."""
    length = PACKET_HEADER_BYTES + frame_bytes + padding
    return _HEADER.pack(_PACKET, length, PACKET_OFFSET, frame_bytes, 0, 0, 0, 0, 0, 0, 0)


class FramePacker:
    """Packs frames behind each other; keeps the headers, of which there are as many as lengths."""

    def __init__(self, frame_bytes_max: int, packets_max: int) -> None:
        self._frame_bytes_max, self._packets_max = frame_bytes_max, packets_max
        self._headers: dict[int, bytes] = {}

    def header(self, frame_bytes: int) -> bytes:
        """Padded to the next message. ValueError: no frame is so short or so long."""
        if (header := self._headers.get(frame_bytes)) is None:
            if not ETHERNET_HEADER_BYTES <= frame_bytes <= self._frame_bytes_max:
                allowed = f"{ETHERNET_HEADER_BYTES} to {self._frame_bytes_max}"
                raise ValueError(f"a frame of {frame_bytes} bytes: want {allowed}")
            padding = packet_bytes(frame_bytes) - PACKET_HEADER_BYTES - frame_bytes
            header = self._headers[frame_bytes] = packet_header(frame_bytes, padding)
        return header

    def pack(self, section: memoryview, frames: Sequence[Frame], start: int) -> tuple[int, int]:
        """As many of `frames` from `start` on as go in: (how many, bytes taken). ValueError as `header`.

        The frames before a bad one are packed first: it is refused when it comes to be the first.
        """
        at, room, count = 0, len(section), 0
        headers, most = self._headers, min(self._packets_max, len(frames) - start)
        for frame in frames[start : start + most]:
            size = len(frame)
            if (header := headers.get(size)) is None:
                try:
                    header = self.header(size)
                except ValueError:
                    if count:
                        break
                    raise
            body = at + PACKET_HEADER_BYTES
            if body + size > room:
                break
            section[at:body] = header
            section[body : body + size] = frame
            at += packet_bytes(size)
            count += 1
        return count, min(at, room)


def unpack_frames(data: memoryview, frame_bytes_max: int, frames: list[memoryview]) -> None:
    """Append views of the frames in `data`, one PACKET behind the other.

    Raises MalformedRndis: lengths or offsets that leave the message, a frame that is none; the frames in front of that
    one are in the list.
    """
    at, end = 0, len(data)
    unpack = _START.unpack_from
    while at < end:
        if end - at < PACKET_HEADER_BYTES:
            if at and end - at < ALIGN_BYTES:
                return  # padding
            raise MalformedRndis(f"{end - at} bytes behind the last packet", Status.INVALID_LENGTH)
        kind, length, offset, size, info_at, info_bytes = unpack(data, at)
        if kind != _PACKET or not PACKET_HEADER_BYTES <= length <= end - at:
            raise MalformedRndis(f"message type {kind:#x} of {length} bytes in {end - at}")
        first = at + HEAD_BYTES + offset
        if offset < PACKET_OFFSET or offset + size > length - HEAD_BYTES:
            raise MalformedRndis(f"a frame of {size} bytes at {offset} of {length}", Status.INVALID_LENGTH)
        if not ETHERNET_HEADER_BYTES <= size <= frame_bytes_max:
            raise MalformedRndis(f"a frame of {size} bytes", Status.INVALID_LENGTH)
        frame = data[first : first + size]
        if info_bytes:
            frame = apply_information(frame, information_of(data[at : at + length], info_at, info_bytes))
        frames.append(frame)
        at += length
