"""The memory of a child that a string access names: mapped when it is first needed, one slot at a time.

Its place in the parent's GPA space follows from the child's id, so a successor finds it and clears it.
"""

import contextlib
import os
from typing import Final

from bus.memory import PAGE_BYTES, MemorySlot, UntrustedMemory
from runtime.abi import GPFN_MAX, SLOT_PAGES_MAX, HypercallError
from runtime.hypercalls.caller import HypercallPort

_WINDOW_PAGES: Final = 2 * SLOT_PAGES_MAX  # a slot, whichever of its pages stands in the middle
_FIRST_GPFN: Final = 1 << 39  # above all that a VMBus server maps
_CHILDREN_MAX: Final = (GPFN_MAX + 1 - _FIRST_GPFN) // _WINDOW_PAGES


class StringMemory:
    """Of one child."""

    def __init__(self, hypercalls: HypercallPort, partition: int) -> None:
        self._call, self._partition = hypercalls, partition
        self._window = _FIRST_GPFN + partition % _CHILDREN_MAX * _WINDOW_PAGES
        self._slot: MemorySlot | None = None  # by the child's own page numbers
        self._clear()  # what a predecessor had mapped

    def view(self, gpa: int, length: int) -> memoryview | None:
        """Bytes of the child, inside one slot. None: it has no such memory."""
        first, last = gpa // PAGE_BYTES, (gpa + length - 1) // PAGE_BYTES
        slot = self._slot
        if slot is None or not slot.gpfn <= first <= last < slot.end_gpfn:
            slot = self._map(first, last)
            if slot is None:
                return None
        at = gpa - slot.gpfn * PAGE_BYTES
        return slot.memory[at : at + length]

    def _map(self, first: int, last: int) -> MemorySlot | None:
        self._clear()
        if last > GPFN_MAX:
            return None
        middle = self._window + SLOT_PAGES_MAX
        try:
            found = self._call.map_partition_pages(self._partition, first, last - first + 1, middle)
        except HypercallError:  # a page that is not there
            return None
        try:
            if len(found) == 1:
                gpfn = first - (middle - found[0].gpfn)
                self._slot = MemorySlot.from_fd(found[0].fd, gpfn, found[0].pages)
                return self._slot
        except (UntrustedMemory, ValueError):
            pass
        for each in found:
            os.close(each.fd)
        self._clear()
        return None

    def _clear(self) -> None:
        if self._slot is not None:
            self._slot.close()
            self._slot = None
        with contextlib.suppress(HypercallError):
            self._call.unmap_gpa_pages(self._window, _WINDOW_PAGES)

    def close(self) -> None:
        """The child may give its pages back, or has ended."""
        self._clear()
