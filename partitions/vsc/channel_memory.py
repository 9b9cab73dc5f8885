"""Pages for a guest's channels: a slot of its own for each, at numbers that nobody else has."""

import contextlib
import threading
from typing import Final

from bus.memory import GpaSpace, MemorySlot
from runtime.abi import HypercallError, HypervisorGone
from runtime.hypercalls.caller import HypercallPort

_FIRST_GPFN: Final = 0x1000


class ChannelMemory:
    """Any thread may ask. One at a time: between the choice of a number and its use nobody may choose the same."""

    def __init__(self, hypercalls: HypercallPort) -> None:
        self._hypercalls = hypercalls
        self._one_at_a_time = threading.Lock()
        self._space = GpaSpace()
        self._held_back: list[MemorySlot] = []  # that the host did not let go of

    def make(self, pages: int) -> MemorySlot:
        """Zeroed. HypercallError: INSUFFICIENT_MEMORY: this partition has not that many pages left."""
        with self._one_at_a_time:
            held_back, self._held_back = self._held_back, []
            for slot in held_back:  # perhaps they were let go of meanwhile
                self._drop(slot)
            gpfn = self._space.find_free(pages, _FIRST_GPFN)
            mapped = self._hypercalls.map_gpa_pages(gpfn, pages)
            slot = MemorySlot.from_fd(mapped.fd, gpfn, pages)
            self._space.add(slot)
            return slot

    def drop(self, slot: MemorySlot) -> None:
        """Its memory is never used for anything again: whoever kept a mapping of it has a mapping of nothing."""
        with self._one_at_a_time:
            self._drop(slot)

    def _drop(self, slot: MemorySlot) -> None:
        slot.close()
        with contextlib.suppress(HypervisorGone):
            try:
                self._hypercalls.unmap_gpa_pages(slot.gpfn, slot.pages)
            except (
                HypercallError
            ):  # OBJECT_IN_USE: the host still maps it, so its numbers are not free either
                self._held_back.append(slot)
                return
        self._space.remove(slot.gpfn)

    def close(self) -> None:
        """All of it; the hypervisor takes the pages back when the partition ends."""
        with self._one_at_a_time:
            self._space.close()
