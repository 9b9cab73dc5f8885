"""GPADLs: lists of guest pages that a guest hands to the host, too long for one message.

The ranges of a list form one byte string, {u32 byte_count, u32 byte_offset, u64 pfn[]}..., which travels in
one GPADL_HEADER and as many GPADL_BODY messages as it takes. Bodies do not say which channel they belong to;
they are matched by the handle, among the lists that are still being filled.

Sources: Linux drivers/hv/channel.c; openvmm vm/devices/vmbus/vmbus_server/src/channels.rs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from bus.channel_message_codec import MAX_MESSAGE_BYTES
from bus.channel_messages import GpadlBody, GpadlHeader
from bus.memory import PFN_BYTES
from bus.packets import RANGE_BYTES, GpaRange, PacketError, decode_gpa_ranges, encode_gpa_ranges

_UNIT_BYTES: Final = 8  # the range string is cut between u64s alone
HEADER_RANGE_BYTES: Final = (MAX_MESSAGE_BYTES - GpadlHeader.sizes[0]) // _UNIT_BYTES * _UNIT_BYTES
BODY_RANGE_BYTES: Final = (MAX_MESSAGE_BYTES - GpadlBody.sizes[0]) // _UNIT_BYTES * _UNIT_BYTES
MAX_RANGE_BUFFER_BYTES: Final = 0xFFFF // _UNIT_BYTES * _UNIT_BYTES  # the length field is a u16
MAX_GPADL_PAGES: Final = MAX_RANGE_BUFFER_BYTES // PFN_BYTES - 1  # one range's head takes a unit
MAX_GPADLS_IN_PROGRESS: Final = 256  # of one connection; a list that its guest never ends stays until a reset

assert (HEADER_RANGE_BYTES - RANGE_BYTES) // PFN_BYTES == 26
assert BODY_RANGE_BYTES // PFN_BYTES == 28
assert MAX_GPADL_PAGES == 8190


class GpadlRefused(Exception):
    """The list cannot be accepted; the guest is owed a GPADL_CREATED that says so."""

    def __init__(self, relid: int, gpadl: int, reason: str) -> None:
        super().__init__(f"GPADL {gpadl:#x} of channel {relid}: {reason}")
        self.relid, self.gpadl = relid, gpadl


class UnknownGpadl(Exception):
    """A body whose handle no list in progress has. Nobody is owed an answer."""


def gpadl_messages(relid: int, gpadl: int, ranges: Sequence[GpaRange]) -> list[GpadlHeader | GpadlBody]:
    """The messages that hand `ranges` over, in the order to post them. ValueError if none, or too long."""
    data = encode_gpa_ranges(tuple(ranges))
    if not 0 < len(data) <= MAX_RANGE_BUFFER_BYTES:
        raise ValueError(
            f"{len(ranges)} GPA ranges in {len(data)} bytes; {MAX_RANGE_BUFFER_BYTES} are possible"
        )
    header = GpadlHeader(relid, gpadl, len(data), len(ranges), data[:HEADER_RANGE_BYTES])
    starts = range(HEADER_RANGE_BYTES, len(data), BODY_RANGE_BYTES)
    bodies = (
        GpadlBody(number, gpadl, data[start : start + BODY_RANGE_BYTES])
        for number, start in enumerate(starts, start=1)
    )
    return [header, *bodies]


@dataclass(frozen=True, slots=True)
class AssembledGpadl:
    """A whole list, checked: its ranges are well formed. Whether the pages exist, only mapping them tells."""

    relid: int
    gpadl: int
    ranges: tuple[GpaRange, ...]


@dataclass(slots=True)
class _Partial:
    relid: int
    range_count: int
    total_bytes: int
    data: bytearray


class GpadlAssembler:
    """The receiving side: lists of one connection that are being filled. Bounded in number and in bytes."""

    __slots__ = ("_partial", "pages")

    def __init__(self) -> None:
        self._partial: dict[int, _Partial] = {}
        self.pages = 0  # at most this many PFNs will have arrived when all lists are complete

    def __contains__(self, gpadl: int) -> bool:
        return gpadl in self._partial

    def __len__(self) -> int:
        return len(self._partial)

    def begin(self, header: GpadlHeader) -> AssembledGpadl | None:
        """None: bodies are to follow. GpadlRefused if the list cannot be: it was not begun."""
        relid, gpadl, total = header.relid, header.gpadl, header.range_buffer_bytes
        if gpadl in self._partial:
            raise GpadlRefused(relid, gpadl, "its handle is in use")
        if len(self._partial) >= MAX_GPADLS_IN_PROGRESS:
            raise GpadlRefused(relid, gpadl, f"{MAX_GPADLS_IN_PROGRESS} lists are in progress")
        # Each range needs its head and one PFN.
        if header.range_count == 0 or total < header.range_count * (RANGE_BYTES + PFN_BYTES):
            raise GpadlRefused(relid, gpadl, f"{header.range_count} ranges in {total} bytes")
        if total % _UNIT_BYTES:
            raise GpadlRefused(relid, gpadl, f"ranges of {total} bytes")
        self._partial[gpadl] = _Partial(relid, header.range_count, total, bytearray())
        self.pages += total // PFN_BYTES
        return self._append(gpadl, header.ranges)

    def extend(self, body: GpadlBody) -> AssembledGpadl | None:
        """None: more is to follow.

        UnknownGpadl if no such list is in progress; GpadlRefused if it is complete and nonsense: then it was
        dropped.
        """
        if body.gpadl not in self._partial:
            raise UnknownGpadl(f"body for GPADL {body.gpadl:#x}")
        return self._append(body.gpadl, body.ranges)

    def _append(self, gpadl: int, data: bytes) -> AssembledGpadl | None:
        partial = self._partial[gpadl]
        # Some guests always post full messages: what exceeds the list, or its last whole unit, is not meant.
        wanted = min(partial.total_bytes - len(partial.data), len(data) // _UNIT_BYTES * _UNIT_BYTES)
        partial.data += data[:wanted]
        if len(partial.data) < partial.total_bytes:
            return None
        self._drop(gpadl)
        try:
            ranges = decode_gpa_ranges(bytes(partial.data), partial.range_count)
        except PacketError as error:
            raise GpadlRefused(partial.relid, gpadl, str(error)) from error
        return AssembledGpadl(partial.relid, gpadl, ranges)

    def _drop(self, gpadl: int) -> None:
        self.pages -= self._partial.pop(gpadl).total_bytes // PFN_BYTES

    def drop_channel(self, relid: int) -> None:
        """Forget what a channel has in progress."""
        for gpadl in [gpadl for gpadl, partial in self._partial.items() if partial.relid == relid]:
            self._drop(gpadl)

    def clear(self) -> None:
        self._partial.clear()
        self.pages = 0

    def to_state(self) -> list[list[int | bytes]]:
        """Plain values, for a snapshot."""
        return [
            [gpadl, partial.relid, partial.range_count, partial.total_bytes, bytes(partial.data)]
            for gpadl, partial in self._partial.items()
        ]

    @classmethod
    def from_state(cls, state: list[Any]) -> "GpadlAssembler":
        assembler = cls()
        for gpadl, relid, range_count, total_bytes, data in state:
            assembler._partial[gpadl] = _Partial(relid, range_count, total_bytes, bytearray(data))
            assembler.pages += total_bytes // PFN_BYTES
        return assembler
