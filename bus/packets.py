"""What Python knows of ring packets: their types and sizes, GPA ranges, pipe framing.

The C core writes and reads whole packets; nothing here knows rings. Everything decoded is a copy that was
checked: the peer can no longer change it.

    +0  type u16 | offset8 u16 | length8 u16 | flags u16 | transaction id u64
    +16 extra header: GPA direct and transfer pages only
    +8 * offset8   payload, zero-padded to 8 bytes
    +8 * length8   trailer u64: the ring offset where this packet began, in its high half

Sources: Linux include/linux/hyperv.h; openvmm vm/devices/vmbus/vmbus_ring.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final, Self

from bus.memory import MAX_GPFN, PAGE_BYTES, PFN_BYTES, MemorySlot

_RANGE: Final = struct.Struct("<II")  # byte_count, byte_offset; the PFNs follow
_GPA_DIRECT: Final = struct.Struct("<4xI")  # the first four bytes may hold anything
_PIPE: Final = struct.Struct("<II")

DESCRIPTOR_BYTES: Final = 16
TRAILER_BYTES: Final = 8
RANGE_BYTES: Final = 8
PIPE_HEADER_BYTES: Final = 8
MAX_PIPE_BYTES: Final = 16384  # payload after one pipe header
_U32_MAX: Final = 0xFFFF_FFFF

assert _RANGE.size == RANGE_BYTES
assert _GPA_DIRECT.size == 8
assert _PIPE.size == PIPE_HEADER_BYTES


class PacketError(Exception):
    """The bytes are no packet (or range, or pipe header). When a peer wrote them, its channel is corrupt."""


class PacketType(IntEnum):
    """The four types in use; a receiver refuses every other number."""

    INBAND = 6
    TRANSFER_PAGES = 7
    GPA_DIRECT = 9
    COMPLETION = 0xB


class PacketFlags(IntFlag):
    NONE = 0
    COMPLETION_REQUESTED = 1


@dataclass(frozen=True, slots=True)
class GpaRange:
    """Bytes of a GPA space: `byte_count` of them, from `byte_offset` in the first of `pfns`' pages on."""

    byte_offset: int  # below PAGE_BYTES
    byte_count: int  # at least 1
    pfns: bytes  # little-endian u64s, as on the wire; as many as the bytes touch pages

    def __post_init__(self) -> None:
        if not 0 <= self.byte_offset < PAGE_BYTES or not 0 < self.byte_count <= _U32_MAX:
            raise PacketError(f"GPA range of {self.byte_count} bytes at {self.byte_offset}")
        if len(self.pfns) != page_count(self.byte_offset, self.byte_count) * PFN_BYTES:
            raise PacketError(f"{len(self.pfns)} bytes of PFNs for {self.byte_count} at {self.byte_offset}")

    @classmethod
    def contiguous(cls, gpfn: int, byte_count: int, byte_offset: int = 0) -> Self:
        """Bytes that lie in consecutive pages from `gpfn` on."""
        pages = page_count(byte_offset, byte_count)
        if gpfn < 0 or gpfn + pages > MAX_GPFN:
            raise PacketError(f"{pages} pages at GPFN {gpfn:#x}")
        return cls(byte_offset, byte_count, struct.pack(f"<{pages}Q", *range(gpfn, gpfn + pages)))

    @classmethod
    def of_slot(cls, slot: MemorySlot, byte_offset: int = 0, byte_count: int | None = None) -> Self:
        """Bytes of a memory slot."""
        pfns = slot.pfns(byte_offset, byte_count)
        if byte_count is None:
            byte_count = slot.size_bytes - byte_offset
        return cls(byte_offset % PAGE_BYTES, byte_count, pfns)

    @property
    def pages(self) -> int:
        return len(self.pfns) // PFN_BYTES

    @property
    def page_numbers(self) -> tuple[int, ...]:
        return struct.unpack(f"<{self.pages}Q", self.pfns)

    def encode(self) -> bytes:
        return _RANGE.pack(self.byte_count, self.byte_offset) + self.pfns


def page_count(byte_offset: int, byte_count: int) -> int:
    """How many pages `byte_count` bytes touch that begin `byte_offset` bytes into the first."""
    return (byte_offset + byte_count + PAGE_BYTES - 1) // PAGE_BYTES


def encode_gpa_ranges(ranges: tuple[GpaRange, ...]) -> bytes:
    return b"".join(gpa_range.encode() for gpa_range in ranges)


def decode_gpa_ranges(data: bytes, count: int) -> tuple[GpaRange, ...]:
    """`count` ranges from the head of `data`; bytes behind them are ignored.

    PacketError if there is none, if one is empty, begins past its first page, or has PFNs beyond `data`.
    The work is bounded by len(data), whatever `count` says.
    """
    if count == 0:
        raise PacketError("no GPA range")
    ranges: list[GpaRange] = []
    at = 0
    for _ in range(count):
        if at + RANGE_BYTES > len(data):
            raise PacketError(f"GPA range {len(ranges)} of {count} is cut off")
        byte_count, byte_offset = _RANGE.unpack_from(data, at)
        at += RANGE_BYTES
        end = at + page_count(byte_offset, byte_count) * PFN_BYTES
        if end > len(data):
            raise PacketError(f"PFNs of GPA range {len(ranges)} end at {end} of {len(data)} bytes")
        ranges.append(GpaRange(byte_offset, byte_count, bytes(data[at:end])))
        at = end
    return tuple(ranges)


def encode_gpa_direct_header(ranges: tuple[GpaRange, ...]) -> bytes:
    """Extra header of a GPA-direct packet."""
    return _GPA_DIRECT.pack(len(ranges)) + encode_gpa_ranges(ranges)


def decode_gpa_direct_header(extra_header: bytes) -> tuple[GpaRange, ...]:
    if len(extra_header) < _GPA_DIRECT.size:
        raise PacketError(f"GPA-direct header of {len(extra_header)} bytes")
    (count,) = _GPA_DIRECT.unpack_from(extra_header)
    return decode_gpa_ranges(extra_header[_GPA_DIRECT.size :], count)


class PipeType(IntEnum):
    """What follows a pipe header. Type 2, partly consumed, is a reader's own note and never travels."""

    DATA = 1
    SET_UP_GPA_DIRECT = 3
    TEAR_DOWN_GPA_DIRECT = 4


def encode_pipe(payload: bytes, pipe_type: PipeType = PipeType.DATA) -> bytes:
    """Payload of an in-band packet on a channel whose offer says named pipe."""
    if len(payload) > MAX_PIPE_BYTES:
        raise PacketError(f"{len(payload)} bytes in one pipe message")
    return _PIPE.pack(pipe_type, len(payload)) + payload


def decode_pipe(data: bytes) -> tuple[PipeType, bytes]:
    """The exact payload behind the header: packets round up to 8 bytes, the pipe header does not."""
    if len(data) < PIPE_HEADER_BYTES:
        raise PacketError(f"pipe header of {len(data)} bytes")
    number, length = _PIPE.unpack_from(data)
    try:
        pipe_type = PipeType(number)
    except ValueError:
        raise PacketError(f"pipe type {number}") from None
    if length > MAX_PIPE_BYTES or PIPE_HEADER_BYTES + length > len(data):
        raise PacketError(f"pipe message of {length} bytes in {len(data)}")
    return pipe_type, data[PIPE_HEADER_BYTES : PIPE_HEADER_BYTES + length]
