"""Memory: pools of pages, and guest physical address spaces. One family of `runtime.hypercalls.caller`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from runtime.abi import PARTITION_SELF, AccessGpaResult, HypercallCode, MapFlags
from runtime.hypercalls.connection import HypercallSocket, expect
from runtime.hypercalls.results import MappedSlot, MemoryBalance, decode_slots

_READ_WRITE: Final = MapFlags.READ | MapFlags.WRITE


class MemoryCalls(HypercallSocket):
    """See `runtime.hypercalls.caller.HypercallPort`."""

    def deposit(self, partition: int, pages: int) -> None:
        """From the caller's pool into a child's."""
        self.call(HypercallCode.DEPOSIT_MEMORY, partition=partition, pages=pages)

    def withdraw(self, partition: int, pages: int) -> None:
        """From a child's pool into the caller's."""
        self.call(HypercallCode.WITHDRAW_MEMORY, partition=partition, pages=pages)

    def balance(self, partition: int = PARTITION_SELF) -> MemoryBalance:
        result = self.call(HypercallCode.GET_MEMORY_BALANCE, partition=partition)
        return MemoryBalance(result.integer("available"), result.integer("in_use"))

    def map_gpa_pages(
        self, gpfn: int, pages: int, flags: MapFlags = _READ_WRITE, partition: int = PARTITION_SELF
    ) -> MappedSlot:
        """New zeroed pages from the target's own pool: one slot, one memfd."""
        result = self.call(
            HypercallCode.MAP_GPA_PAGES,
            partition=partition,
            gpfn=gpfn,
            pages=pages,
            flags=int(flags | MapFlags.ZEROED),
        )
        return decode_slots(result)[0]

    def map_partition_pages(
        self,
        source_partition: int,
        source_gpfn: int,
        pages: int,
        gpfn: int,
        flags: MapFlags = _READ_WRITE,
        partition: int = PARTITION_SELF,
    ) -> list[MappedSlot]:
        """Map another partition's slots, whole: each one that the range touches, in ascending order.

        The caller is the target or its ancestor, and the source or its ancestor. `source_gpfn` lands at
        `gpfn`.
        """
        result = self.call(
            HypercallCode.MAP_GPA_PAGES,
            partition=partition,
            gpfn=gpfn,
            pages=pages,
            flags=int(flags),
            source_partition=source_partition,
            source_gpfn=source_gpfn,
        )
        return decode_slots(result)

    def unmap_gpa_pages(self, gpfn: int, pages: int, partition: int = PARTITION_SELF) -> int:
        """Unmap the slots in the range; returns how many. The caller's own mmap is its own to undo."""
        result = self.call(HypercallCode.UNMAP_GPA_PAGES, partition=partition, gpfn=gpfn, pages=pages)
        return result.integer("slots")

    def claim_gpa_pages(self, gpfn: int, pages: int) -> list[MappedSlot]:
        """Descriptors of the caller's own slots that the range touches, for instance mapped by its parent."""
        return decode_slots(self.call(HypercallCode.CLAIM_GPA_PAGES, gpfn=gpfn, pages=pages))

    def map_sparse_pages(
        self,
        source_partition: int,
        pages: Mapping[int, int],
        flags: MapFlags = _READ_WRITE,
        partition: int = PARTITION_SELF,
    ) -> list[MappedSlot]:
        """Slots from anywhere to anywhere: {gpfn: source_gpfn}, each for the whole slot there. All or none."""
        result = self.call(
            HypercallCode.MAP_SPARSE_GPA_PAGES,
            partition=partition,
            flags=int(flags),
            source_partition=source_partition,
            pages=[[gpfn, source_gpfn] for gpfn, source_gpfn in pages.items()],
        )
        return decode_slots(result)

    def read_gpa(self, partition: int, gpa: int, size: int, vp: int = 0) -> tuple[AccessGpaResult, bytes]:
        """At most 16 bytes of a child's memory, within one page."""
        result = self.call(HypercallCode.READ_GPA, partition=partition, vp=vp, gpa=gpa, size=size)
        return AccessGpaResult(result.integer("result")), expect(result.values["data"], bytes)

    def write_gpa(self, partition: int, gpa: int, data: bytes, vp: int = 0) -> AccessGpaResult:
        result = self.call(HypercallCode.WRITE_GPA, partition=partition, vp=vp, gpa=gpa, data=data)
        return AccessGpaResult(result.integer("result"))
