"""The pages that one guest handed over, by GPADL: the slots behind them, given to who serves its channels.

That is this process, which maps them, or a driver partition: then they stand in its GPA space alone, and nothing here
can touch them.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from bus.channel_actions import MapGpadl
from bus.memory import PAGE_BYTES, PFN_BYTES, MemorySlot, UntrustedMemory
from bus.native import GpaMap
from bus.packets import GpaRange
from partitions.stack.grant import Grant
from partitions.stack.served_channel import RingPlacement, place_rings
from runtime.abi import PARTITION_SELF, SLOT_PAGES_MAX, HypercallError
from runtime.hypercalls.caller import HypercallPort, MappedSlot

WINDOW_PAGES: Final = SLOT_PAGES_MAX * 32  # of the root's GPA space, one a GPADL: up to 16 slots fit
WINDOWS: Final = (1 << 36) // WINDOW_PAGES
FIRST_WINDOW: Final = 1  # below it are the root's own slots


class GpaWindows:
    """Places in a server's GPA space where guests' slots are mapped. Guests choose none of these numbers."""

    def __init__(self) -> None:
        self._free = deque(range(FIRST_WINDOW, WINDOWS))

    def take(self) -> int:
        """A window's number. LookupError: all are in use."""
        if not self._free:
            raise LookupError(f"all {WINDOWS - FIRST_WINDOW} windows for guest memory are in use")
        return self._free.popleft()

    def claim(self, window: int) -> None:
        """Take this one, which a predecessor had."""
        self._free.remove(window)

    def free(self, window: int) -> None:
        self._free.append(window)


@dataclass(frozen=True, slots=True)
class _Gpadl:
    relid: int
    numbers: tuple[int, ...]  # the guest's PFNs, in order
    slots: Mapping[int, MemorySlot]  # by the guest's own GPFN; none where another partition has them


class GuestMemory:
    """One guest's GPADLs. A window is reserved, and recorded, before anything is mapped there."""

    def __init__(
        self, hypercalls: HypercallPort, windows: GpaWindows, partition: int, holder: int = PARTITION_SELF
    ) -> None:
        """`holder`: whose GPA space `windows` is of, and who can then touch the pages: we, or a child of ours."""
        self._call, self._windows, self._partition, self._holder = hypercalls, windows, partition, holder
        self._reserved: dict[int, tuple[int, int]] = {}  # (relid, window), by GPADL
        self._gpadls: dict[int, _Gpadl] = {}

    def reserve(self, relid: int, gpadl: int) -> None:
        """A window for it, if it has none. LookupError: there is none."""
        if gpadl not in self._reserved:
            self._reserved[gpadl] = relid, self._windows.take()

    def _start(self, gpadl: int) -> int:
        """Of its window. KeyError: it has none."""
        return self._reserved[gpadl][1] * WINDOW_PAGES

    def map(self, request: MapGpadl) -> None:
        """Get the slots that hold the GPADL's pages, into the window reserved for it.

        HypercallError, UntrustedMemory, OSError: not all of them are the guest's to give. The window is free again.
        """
        first, pages = _extent(request.ranges)
        window = self._start(request.gpadl)
        self._clear(window)  # of what a predecessor may have mapped before it died

        def get() -> list[MappedSlot]:
            if pages > SLOT_PAGES_MAX:
                raise UntrustedMemory("pages from all over a GPA space: no slot made for a channel looks so")
            return self._call.map_partition_pages(
                self._partition, first, pages, window + SLOT_PAGES_MAX, partition=self._holder
            )

        self._take_slots(request, get, first)

    def claim(self, request: MapGpadl) -> None:
        """The slots that a predecessor mapped. Raises as `map`."""
        first, pages = _extent(request.ranges)
        if self._holder != PARTITION_SELF:  # who holds them did not change
            self._gpadls[request.gpadl] = _Gpadl(request.relid, _numbers(request), {})
            return
        window = self._start(request.gpadl)
        self._take_slots(request, lambda: self._call.claim_gpa_pages(window + SLOT_PAGES_MAX, pages), first)

    def _take_slots(self, request: MapGpadl, get: Callable[[], list[MappedSlot]], first: int) -> None:
        numbers = _numbers(request)
        shift = self._start(request.gpadl) + SLOT_PAGES_MAX - first
        slots: dict[int, MemorySlot] = {}
        covered: set[int] = set()
        try:
            for mapped in get():
                gpfn = mapped.gpfn - shift  # where the guest itself has it
                covered.update(range(gpfn, gpfn + mapped.pages))
                if mapped.fd >= 0:
                    slots[gpfn] = MemorySlot.from_fd(mapped.fd, gpfn, mapped.pages)
            if not covered.issuperset(numbers):
                raise UntrustedMemory("a page of the GPADL belongs to no slot of the guest")
        except BaseException:
            for slot in slots.values():
                slot.close()
            self.unmap(request.gpadl)
            raise
        self._gpadls[request.gpadl] = _Gpadl(request.relid, numbers, slots)

    def unmap(self, gpadl: int) -> None:
        """Give the pages back; nobody touches them any more. Also what was only reserved."""
        if (mapped := self._gpadls.pop(gpadl, None)) is not None:
            for slot in mapped.slots.values():
                slot.close()
        if (reserved := self._reserved.pop(gpadl, None)) is not None:
            self._clear(reserved[1] * WINDOW_PAGES)
            self._windows.free(reserved[1])

    def close_mappings(self) -> None:
        """As the end of this process would; what the hypervisor has mapped for us stays. For a simulated process."""
        for gpadl in self._gpadls.values():
            for slot in gpadl.slots.values():
                slot.close()

    def _clear(self, gpfn: int) -> None:
        with contextlib.suppress(HypercallError):  # a dead guest's slots are gone already
            self._call.unmap_gpa_pages(gpfn, WINDOW_PAGES, self._holder)

    def slots_of_channel(self, relid: int) -> dict[int, MemorySlot]:
        """Every slot that the channel's GPADLs handed over, once, by the guest's GPFN."""
        slots: dict[int, MemorySlot] = {}
        for gpadl in list(self._gpadls.values()):
            if gpadl.relid == relid:
                slots |= gpadl.slots
        return slots

    def add_slots(self, relid: int, gpa_map: GpaMap) -> None:
        """Those that it does not have yet. Any thread."""
        for slot in self.slots_of_channel(relid).values():
            with contextlib.suppress(ValueError):  # it has it
                gpa_map.add(slot.gpfn, slot.memory)

    def buffer(self, relid: int, gpadl: int) -> GpaRange:
        """The pages of one of the channel's GPADLs, in their order. LookupError: it has no such one. Any thread."""
        found = self._gpadls.get(gpadl)
        if found is None or found.relid != relid:
            raise LookupError(f"channel {relid} has no GPADL {gpadl:#x}")
        pfns = b"".join(number.to_bytes(PFN_BYTES, "little") for number in found.numbers)
        return GpaRange(0, len(found.numbers) * PAGE_BYTES, pfns)

    def grants_of_channel(self, relid: int) -> tuple[Grant, ...]:
        """Where its holder finds what the channel's GPADLs handed over."""
        grants = []
        for handle, gpadl in self._gpadls.items():
            if gpadl.relid == relid:
                first, last = min(gpadl.numbers), max(gpadl.numbers)
                in_order = gpadl.numbers == tuple(range(first, last + 1))
                start, pages = self._start(handle) + SLOT_PAGES_MAX, last - first + 1
                grants.append(Grant(start, first, pages, handle if in_order else 0))
        return tuple(grants)

    def extents_of_channel(self, relid: int) -> list[list[int]]:
        """[first page, how many] of each of the channel's GPADLs, in the guest's own numbers."""
        spans = [gpadl.numbers for gpadl in self._gpadls.values() if gpadl.relid == relid]
        return [[min(numbers), max(numbers) - min(numbers) + 1] for numbers in spans]

    def ring_pages(self, gpadl: int) -> tuple[int, int]:
        """As one stretch of the guest's pages: the first, and how many. ValueError, LookupError: it is none."""
        numbers = self._gpadls[gpadl].numbers
        if numbers != tuple(range(numbers[0], numbers[0] + len(numbers))):
            raise ValueError("the ring's pages are not consecutive")
        return numbers[0], len(numbers)

    def rings(self, gpadl: int, downstream_page_offset: int) -> RingPlacement:
        """The pages of a GPADL as one stretch of memory. ValueError, LookupError: they are not one."""
        first, pages = self.ring_pages(gpadl)
        return place_rings(self._gpadls[gpadl].slots.values(), first, pages, downstream_page_offset)

    def to_state(self) -> list[list[int]]:
        """[GPADL, relid, window]: what a successor needs beside the channel server's own state."""
        return [[gpadl, relid, window] for gpadl, (relid, window) in self._reserved.items()]

    def adopt(self, gpadl: int, relid: int, window: int) -> None:
        """One row of a predecessor's `to_state`."""
        self._windows.claim(window)
        self._reserved[gpadl] = relid, window


def _numbers(request: MapGpadl) -> tuple[int, ...]:
    return tuple(number for part in request.ranges for number in part.page_numbers)


def _extent(ranges: tuple[GpaRange, ...]) -> tuple[int, int]:
    """First page and number of pages from the lowest to the highest."""
    numbers = [number for part in ranges for number in part.page_numbers]
    return min(numbers), max(numbers) - min(numbers) + 1
