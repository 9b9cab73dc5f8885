"""What a partition that goes on after `partvisor restore` is given of what it was: the file's sealed image.

Its parent takes from it what stands in the hypervisor and in emulated devices, its program its state and its memory.
"""

import mmap
import os
from typing import Final

from bus.memory import MemorySlot
from runtime.abi import PAGE_BYTES
from runtime.machine.saved_partition import SavedReader


class Restored:
    """Owns a mapping, and no descriptor."""

    def __init__(self, descriptor: int) -> None:
        """Raises SavedPartitionError, OSError: it is none."""
        self._mapping: Final = mmap.mmap(descriptor, os.fstat(descriptor).st_size, access=mmap.ACCESS_READ)
        reader = SavedReader(self._mapping)
        self.description, self.state = reader.description, reader.state
        self._slots: Final = {
            slot.gpfn: (place, slot.pages)
            for place, slot in enumerate(self.description.hypervisor.slots)
            if slot.own
        }

    def has_slot(self, gpfn: int, pages: int) -> bool:
        return self._slots.get(gpfn, (0, 0))[1] == pages

    def fill(self, slot: MemorySlot) -> None:
        """New pages become what they were. Raises SavedPartitionError."""
        place, _ = self._slots[slot.gpfn]
        self._mapping.seek(0)
        for _, first, pages in SavedReader(self._mapping).runs(place):
            slot.memory[first * PAGE_BYTES : first * PAGE_BYTES + len(pages)] = pages

    def close(self) -> None:
        self._mapping.close()
