"""Storage requests as messages: the same 64-byte packets as in a ring, with the data behind them.

    head (24 bytes) | packet (64 bytes, of which packet_bytes count) | inline_bytes of data

A request that writes brings its data along, the reply to one that reads takes it back; the kernel copies both. One
message is one packet of a SOCK_SEQPACKET socket, and there is at most one request of a client on its way: it sends,
and receives the reply, before it sends again. All integers are little-endian.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import lru_cache
from typing import ClassVar, Final, Self

from bus.packets import GpaRange, encode_gpa_direct_header
from partitions.storage.protocol import PACKET_BYTES, PACKET_BYTES_BEFORE_5_1

MESSAGE_DATA_BYTES_MAX: Final = 256 * 1024  # as much as one ring request: executor.MAX_TRANSFER_BYTES
DIRECTION_AT: Final = 22  # of the SRB's `data_in` byte in a packet

TURN: Final = 1 << 63  # of a transaction id: message_wire.h says what the others are then
_STEP: Final = 0xFFF << 32


class Kind(IntEnum):
    REQUEST = 1
    REPLY = 2
    SETTLED = 3  # by a client that stands for others: what its predecessor had begun is done


class MessageFlags(IntFlag):
    FIRST = 1  # of a client's session: whatever was agreed on before is forgotten


class MalformedMessage(ValueError):
    """Not one of these. Nothing was done for it."""


@dataclass(frozen=True, slots=True)
class MessageHead:
    """What a message begins with."""

    FORM: ClassVar[struct.Struct] = struct.Struct("<QIIHHHH")

    transaction_id: int  # the client's choice; the reply carries the same
    area_bytes: int  # of the request's data area, either way
    inline_bytes: int  # that follow the packet here
    kind: int
    packet_bytes: int
    flags: int = 0

    def encode(self) -> bytes:
        return self.FORM.pack(
            self.transaction_id,
            self.area_bytes,
            self.inline_bytes,
            self.kind,
            self.packet_bytes,
            self.flags,
            0,
        )

    @classmethod
    def decode(cls, data: bytes | bytearray, received_bytes: int) -> Self:
        """`received_bytes`: of the whole message. MalformedMessage: these are not its numbers."""
        transaction_id, area, inline, kind, packet, flags, _ = cls.FORM.unpack(data)
        if kind not in (Kind.REQUEST, Kind.REPLY, Kind.SETTLED) or area > MESSAGE_DATA_BYTES_MAX:
            raise MalformedMessage(f"kind {kind}, {area} bytes of data")
        if inline > area or received_bytes != HEAD_BYTES + PACKET_BYTES + inline:
            raise MalformedMessage(f"{received_bytes} bytes, {inline} of them inline")
        if not PACKET_BYTES_BEFORE_5_1 <= packet <= PACKET_BYTES:
            raise MalformedMessage(f"a packet of {packet} bytes")
        return cls(transaction_id, area, inline, kind, packet, flags)


HEAD_BYTES: Final = MessageHead.FORM.size
MESSAGE_BYTES_MAX: Final = HEAD_BYTES + PACKET_BYTES + MESSAGE_DATA_BYTES_MAX
assert HEAD_BYTES == 24


def is_not_after(transaction_id: int, last: int) -> bool:
    """Whether it is a step of the same turn as `last`, and not after it."""
    both_turns = transaction_id & last & TURN
    return bool(both_turns) and (
        transaction_id & ~_STEP == last & ~_STEP and transaction_id & _STEP <= last & _STEP
    )


@lru_cache(maxsize=64)
def pages_header(area_bytes: int) -> bytes:
    """The page list under which an `Executor` sees the data of a message: one range, from page 0 on."""
    if not area_bytes:
        return b""
    return encode_gpa_direct_header((GpaRange.contiguous(0, area_bytes),))


def views_of(area: memoryview) -> Callable[[int, int, bytes, bool], list[memoryview]]:
    """For an `Executor`: the pages that `pages_header` names are these bytes."""

    def views(byte_offset: int, byte_count: int, _pfns: bytes, _write: bool) -> list[memoryview]:
        return [area[byte_offset : byte_offset + byte_count]]

    return views
