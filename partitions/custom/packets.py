"""Requests out of a ring's packets, and replies for them: in band, or in the guest's pages."""

import errno
import struct
from dataclasses import dataclass
from typing import Final

from bus.memory import PFN_BYTES
from bus.native import GpaMap
from bus.packets import PacketError, PacketFlags, PacketType, decode_gpa_direct_header, page_count
from partitions.custom.serving import error_of, too_long
from partitions.custom.wire import (
    REQUEST_BYTES_MAX,
    Mark,
    decode_length,
    encode_length,
)
from partitions.storage.backends import BackendError

IN_BAND: Final = int(PacketType.INBAND)  # a comparison with a member of an enum takes longer than the ring
GPA_DIRECT: Final = int(PacketType.GPA_DIRECT)
COMPLETION_REQUESTED: Final = int(PacketFlags.COMPLETION_REQUESTED)
_NOT_A_REQUEST: Final = BackendError(errno.EBADMSG, "not a request, or not in pages that the device was lent")
_GPA_HEADER: Final = struct.Struct("<IIII")  # range count, reserved, byte count, byte offset


def fill(views: list[memoryview], data: bytes) -> None:
    """`data` into the first of these bytes."""
    at = 0
    for view in views:
        if at >= len(data):
            break
        piece = data[at : at + len(view)]
        view[: len(piece)] = piece
        at += len(piece)


@dataclass(slots=True)
class Taken:
    """One packet: a request, or what its sender is told at once."""

    identity: int
    wants_reply: bool
    request: bytes | None  # None: it is no request
    views: list[memoryview] | None  # where the reply goes; None: in band
    room_bytes: int

    def answer(self, reply: bytes | BackendError) -> tuple[bytes, int]:
        """The completion's payload and mark. Writes into the guest's pages."""
        if self.request is None:
            reply = _NOT_A_REQUEST
        elif not isinstance(reply, BackendError) and len(reply) > self.room_bytes:
            reply = too_long(len(reply))
        if isinstance(reply, BackendError):
            return error_of(reply), Mark.ERROR
        if self.views is None:
            return reply, Mark.PLAIN
        fill(self.views, reply)
        return b"" if len(reply) == self.room_bytes else encode_length(len(reply)), Mark.PLAIN


class Taker:
    """Of one channel. What a guest sent is looked at here, and nowhere else."""

    def __init__(self, gpa_map: GpaMap) -> None:
        self._gpa_map = gpa_map
        self.header, self.views, self.room = b"", list[memoryview](), 0  # of the last request with pages
        self.requests = self.dropped = 0

    def take(self, kind: int, flags: int, identity: int, extra: bytes, payload: bytes) -> Taken:
        self.requests += 1
        wants_reply = bool(flags & COMPLETION_REQUESTED)
        try:
            if kind == IN_BAND:
                return Taken(identity, wants_reply, payload, None, REQUEST_BYTES_MAX)
            if kind != GPA_DIRECT:
                raise PacketError(f"packet type {kind}")
            views = self._pages(extra)
            length = decode_length(payload, self.room)
            request = b"".join(views)  # a copy: what is served is what was there at one moment
            return Taken(identity, wants_reply, request[:length], views, self.room)
        except (PacketError, LookupError, ValueError):
            self.dropped += 1
            return Taken(identity, wants_reply, None, None, 0)

    def take_joined(self, kind: int, flags: int, identity: int, data: bytes) -> Taken:
        """Of a packet as `Channel.receive` has it: extra header and payload in one piece."""
        header_bytes = 0
        if kind == GPA_DIRECT:
            _, _, byte_count, byte_offset = _GPA_HEADER.unpack_from(data)  # complete: the ring sees to that
            header_bytes = _GPA_HEADER.size + page_count(byte_offset, byte_count) * PFN_BYTES
        return self.take(kind, flags, identity, data[:header_bytes], data[header_bytes:])

    def _pages(self, header: bytes) -> list[memoryview]:
        if header != self.header:
            (where,) = decode_gpa_direct_header(header)
            if where.byte_count > REQUEST_BYTES_MAX:
                raise ValueError(f"{where.byte_count} bytes")
            pages = b"".join(number.to_bytes(8, "little") for number in where.page_numbers)
            self.views = self._gpa_map.views(where.byte_offset, where.byte_count, pages, True)
            self.room, self.header = (
                where.byte_count,
                header,
            )  # what we were lent stays ours while the channel is open
        return self.views
