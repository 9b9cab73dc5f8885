"""How a partition's program is saved, and goes on: part of `partitions.child.Partition`."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from bus.memory import MemorySlot
from runtime.abi import RESTORED_FILE
from runtime.hypercalls.caller import HypercallPort

if TYPE_CHECKING:
    from partitions.integration.guest import Integration
    from partitions.restored import Restored


class SavingAccess(ABC):
    """What needs integration services, and nothing else of a partition."""

    hypercalls: HypercallPort
    files: Mapping[str, int]
    _first_use: threading.RLock
    _restored_image: "Restored | None" = None

    @property
    @abstractmethod
    def integration(self) -> "Integration": ...

    def on_save(self, state: Callable[[], bytes]) -> None:
        """Take part in `partvisor save`: `state` is called while nothing is being written (`integration.writing`), and
        what it returns is `restored_state` of the program that goes on. VmbusError: no integration = true."""
        self.integration.on_save = state

    @property
    def restored_state(self) -> bytes | None:
        """What this program said when it was saved. None: it begins."""
        return None if self._restored is None else self._restored.state

    def map_memory(self, gpfn: int, pages: int) -> MemorySlot:
        """Pages of this partition's own, at this page number. What stood in them when it was saved stands in them again
        when it goes on; otherwise they are zero.

        Raises HypercallError: it has not so many left, or has something there.
        """
        mapped = self.hypercalls.map_gpa_pages(gpfn, pages)
        slot = MemorySlot.from_fd(mapped.fd, mapped.gpfn, mapped.pages)
        if self._restored is not None and self._restored.has_slot(gpfn, pages):
            self._restored.fill(slot)
        return slot

    @property
    def _restored(self) -> "Restored | None":
        with self._first_use:
            if self._restored_image is None and (descriptor := self.files.get(RESTORED_FILE)) is not None:
                from partitions.restored import Restored

                self._restored_image = Restored(descriptor)
            return self._restored_image
