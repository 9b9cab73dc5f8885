"""A driver's state, as its stack reads it: pages of the driver partition, in the stack's own space."""

import contextlib
from typing import Final

from bus.memory import MemorySlot
from partitions.drivers.process import STATE_GPFN
from partitions.drivers.state import STATE_PAGES, DriverState
from runtime.abi import HypercallError
from runtime.hypercalls.caller import HypercallPort, MappedSlot

_STATES_GPFN: Final = 0x400_0000  # the state of each driver, by partition id
_STATE_STRIDE: Final = 64

assert STATE_PAGES <= _STATE_STRIDE


class StatePages:
    """Of one driver partition, which has them at STATE_GPFN. Owns the mapping."""

    def __init__(self, call: HypercallPort, partition: int) -> None:
        self._call, self._partition = call, partition
        self._gpfn = _STATES_GPFN + partition * _STATE_STRIDE
        self._slot: MemorySlot | None = None

    def map(self) -> DriverState:
        """HypercallError: the driver has no such pages, or ours are in use."""
        return self._adopt(
            self._call.map_partition_pages(self._partition, STATE_GPFN, STATE_PAGES, self._gpfn)
        )

    def claim(self) -> DriverState:
        """That a predecessor has mapped."""
        return self._adopt(self._call.claim_gpa_pages(self._gpfn, STATE_PAGES))

    def _adopt(self, mapped: list[MappedSlot]) -> DriverState:
        (slot,) = mapped
        self._slot = MemorySlot.from_fd(slot.fd, slot.gpfn, slot.pages)
        return DriverState(self._slot.memory)

    def give_back(self) -> None:
        """The state is used no more."""
        if self._slot is not None:
            self._slot.close()
        with contextlib.suppress(HypercallError):
            self._call.unmap_gpa_pages(self._gpfn, STATE_PAGES)
