"""The pages that one guest handed to the root, by GPADL: the slots behind them, mapped into this process."""

import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from bus.channel_actions import MapGpadl
from bus.memory import PAGE_BYTES, MemorySlot, UntrustedMemory
from bus.packets import GpaRange
from partitions.served_channel import RingPlacement
from runtime.abi import SLOT_PAGES_MAX, HypercallError
from runtime.hypercalls import HypercallPort, MappedSlot

_WINDOW_PAGES: Final = SLOT_PAGES_MAX * 32  # of the root's GPA space, one a GPADL: up to 16 slots fit
_WINDOWS: Final = (1 << 36) // _WINDOW_PAGES
FIRST_WINDOW: Final = 1  # below it are the root's own slots


class GpaWindows:
    """Places in the root's own GPA space where guests' slots are mapped. Guests choose none of these numbers."""

    def __init__(self) -> None:
        self._free = deque(range(FIRST_WINDOW, _WINDOWS))

    def take(self) -> int:
        """A window's number. LookupError: all are in use."""
        if not self._free:
            raise LookupError(f"all {_WINDOWS - FIRST_WINDOW} windows for guest memory are in use")
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
    slots: Mapping[int, MemorySlot]  # by the guest's own GPFN


class GuestMemory:
    """One guest's GPADLs. A window is reserved, and recorded, before anything is mapped there."""

    def __init__(self, hypercalls: HypercallPort, windows: GpaWindows, partition: int) -> None:
        self._call, self._windows, self._partition = hypercalls, windows, partition
        self._reserved: dict[int, int] = {}  # window, by GPADL
        self._gpadls: dict[int, _Gpadl] = {}

    def reserve(self, gpadl: int) -> None:
        """A window for it, if it has none. LookupError: there is none."""
        if gpadl not in self._reserved:
            self._reserved[gpadl] = self._windows.take()

    def map(self, request: MapGpadl) -> None:
        """Get the slots that hold the GPADL's pages, into the window reserved for it.

        HypercallError, UntrustedMemory, OSError: not all of them are the guest's to give. The window is free again.
        """
        first, pages = _extent(request.ranges)
        window = self._reserved[request.gpadl] * _WINDOW_PAGES
        self._clear(window)  # of what a predecessor may have mapped before it died

        def get() -> list[MappedSlot]:
            if pages > SLOT_PAGES_MAX:
                raise UntrustedMemory("pages from all over a GPA space: no slot made for a channel looks so")
            return self._call.map_partition_pages(self._partition, first, pages, window + SLOT_PAGES_MAX)

        self._take_slots(request, get, first)

    def claim(self, request: MapGpadl) -> None:
        """The slots that a predecessor mapped. Raises as `map`."""
        first, pages = _extent(request.ranges)
        window = self._reserved[request.gpadl] * _WINDOW_PAGES
        self._take_slots(request, lambda: self._call.claim_gpa_pages(window + SLOT_PAGES_MAX, pages), first)

    def _take_slots(self, request: MapGpadl, get: Callable[[], list[MappedSlot]], first: int) -> None:
        numbers = tuple(number for part in request.ranges for number in part.page_numbers)
        shift = self._reserved[request.gpadl] * _WINDOW_PAGES + SLOT_PAGES_MAX - first
        slots: dict[int, MemorySlot] = {}
        try:
            for mapped in get():
                gpfn = mapped.gpfn - shift  # where the guest itself has it
                slots[gpfn] = MemorySlot.from_fd(mapped.fd, gpfn, mapped.pages)
            covered = {number for slot in slots.values() for number in range(slot.gpfn, slot.end_gpfn)}
            if not covered.issuperset(numbers):
                raise UntrustedMemory("a page of the GPADL belongs to no slot of the guest")
        except BaseException:
            for slot in slots.values():
                slot.close()
            self.unmap(request.gpadl)
            raise
        self._gpadls[request.gpadl] = _Gpadl(request.relid, numbers, slots)

    def unmap(self, gpadl: int) -> None:
        """Give the pages back; nothing here touches them any more. Also what was only reserved."""
        if (mapped := self._gpadls.pop(gpadl, None)) is not None:
            for slot in mapped.slots.values():
                slot.close()
        if (window := self._reserved.pop(gpadl, None)) is not None:
            self._clear(window * _WINDOW_PAGES)
            self._windows.free(window)

    def _clear(self, gpfn: int) -> None:
        with contextlib.suppress(HypercallError):  # a dead guest's slots are gone already
            self._call.unmap_gpa_pages(gpfn, _WINDOW_PAGES)

    def slots_of_channel(self, relid: int) -> dict[int, MemorySlot]:
        """Every slot that the channel's GPADLs handed over, once, by the guest's GPFN."""
        slots: dict[int, MemorySlot] = {}
        for gpadl in self._gpadls.values():
            if gpadl.relid == relid:
                slots |= gpadl.slots
        return slots

    def rings(self, gpadl: int, downstream_page_offset: int) -> RingPlacement:
        """The pages of a GPADL as one stretch of memory. ValueError, LookupError: they are not one."""
        numbers = self._gpadls[gpadl].numbers
        if numbers != tuple(range(numbers[0], numbers[0] + len(numbers))):
            raise ValueError("the ring's pages are not consecutive")
        for slot in self._gpadls[gpadl].slots.values():
            if slot.gpfn <= numbers[0] and numbers[-1] < slot.end_gpfn:
                start = (numbers[0] - slot.gpfn) * PAGE_BYTES
                memory = slot.memory[start : start + len(numbers) * PAGE_BYTES]
                return RingPlacement(memory, downstream_page_offset)
        raise LookupError("the ring's pages are not in one slot")

    def to_state(self) -> dict[int, int]:
        """Windows by GPADL: what a successor needs beside the channel server's own state."""
        return dict(self._reserved)

    def adopt_state(self, state: Mapping[int, int]) -> None:
        for gpadl, window in state.items():
            self._windows.claim(window)
            self._reserved[gpadl] = window


def _extent(ranges: tuple[GpaRange, ...]) -> tuple[int, int]:
    """First page and number of pages from the lowest to the highest."""
    numbers = [number for part in ranges for number in part.page_numbers]
    return min(numbers), max(numbers) - min(numbers) + 1
