"""What a stack may spend on each of its children that has a cap: processor time of the threads that serve it.

The hypervisor sees how long a child runs, and holds it when that is more than its cap. What others do for it is seen by
them alone. So every process that serves it keeps an account of its own, with the same cap, and takes off it what the
child is said to have had elsewhere.
"""

from collections.abc import Callable, Mapping
from typing import Final

from bus.native import ServiceBudget
from bus.yielded_time import yield_to
from runtime.abi import WHOLE_PROCESSOR, HypercallError, PartitionProperty

TOLD_NS_MIN: Final = 1_000_000  # what others are told of at once: a message costs them a tenth of that

ReadProperty = Callable[[int, PartitionProperty], int]


class ServiceBudgets:
    """One for each child, from when it is added. One thread changes them; any may be charged from any thread."""

    def __init__(self, read_property: ReadProperty) -> None:
        """`read_property`: (child, code). Raises HypercallError."""
        self._read: Final = read_property
        self._budgets: dict[int, tuple[ServiceBudget, int]] = {}  # and VPs, by child
        self._seen: dict[int, int] = {}  # what a child was said to have had so far
        self._untold: dict[int, int] = {}  # what others were not told of it yet
        # (child, ns): it had so much elsewhere; of others who serve our children, by their partition.
        self.listeners: Final[dict[int, Callable[[int, int], None]]] = {}

    def add(self, child: int, vps: int) -> None:
        self._budgets[child] = ServiceBudget(), vps
        self._look_at(child)

    def remove(self, child: int) -> None:
        self._budgets.pop(child, None)
        self._untold.pop(child, None)

    def of(self, child: int) -> ServiceBudget:
        """One without a limit, if it was not added."""
        found = self._budgets.get(child)
        return ServiceBudget() if found is None else found[0]

    def look(self) -> None:
        """Somebody's cap may be another."""
        for child in self._budgets:
            self._look_at(child)

    @property
    def is_limited(self) -> bool:
        """Somebody has a cap."""
        return any(budget.share for budget, _ in self._budgets.values())

    def had_elsewhere(self, times_ns: Mapping[int, int], elapsed_ns: int) -> bool:
        """Children have had so much so far, as the hypervisor knows; it was asked last so long ago. Whether that is
        anything new. Who serves them beside us is told."""
        before, self._seen = self._seen, dict(times_ns)
        is_new = False
        for child, time_ns in times_ns.items():
            if child not in self._budgets:
                continue
            budget, _ = self._budgets[child]
            if yielded_ns := yield_to(budget, time_ns - before.get(child, time_ns), elapsed_ns):
                is_new = True
                self._tell(child, yielded_ns)
        return is_new

    def _tell(self, child: int, yielded_ns: int) -> None:
        untold_ns = self._untold.pop(child, 0) + yielded_ns
        if untold_ns < TOLD_NS_MIN:
            self._untold[child] = untold_ns
            return
        for listener in list(self.listeners.values()):
            listener(child, untold_ns)

    def _look_at(self, child: int) -> None:
        budget, vps = self._budgets[child]
        try:
            budget.limit(share_of(self._read(child, PartitionProperty.CPU_CAP), vps))
        except HypercallError:  # it is gone
            return


def share_of(cap: int, vps: int) -> int:
    """Of a partition, as a ServiceBudget has it. A cap of 0 stops the partition; what it asked for before is still
    done, as slowly as can be said."""
    return 0 if cap >= WHOLE_PROCESSOR else max(cap * vps, 1)
