"""What a stack may spend on each of its children that has a cap: processor time of the threads that serve it.

The hypervisor sees how long a child runs, and holds it when that is more than its cap. What others do for it is seen by
them alone. So every process that serves it keeps an account of its own, with the same cap.
"""

from collections.abc import Callable
from typing import Final

from bus.native import ServiceBudget
from runtime.abi import WHOLE_PROCESSOR, HypercallError, PartitionProperty

ReadProperty = Callable[[int, PartitionProperty], int]


class ServiceBudgets:
    """One for each child, from when it is added. One thread changes them; any may be charged from any thread."""

    def __init__(self, read_property: ReadProperty) -> None:
        """`read_property`: (child, code). Raises HypercallError."""
        self._read: Final = read_property
        self._budgets: dict[int, tuple[ServiceBudget, int]] = {}  # and VPs, by child

    def add(self, child: int, vps: int) -> None:
        self._budgets[child] = ServiceBudget(), vps
        self._look_at(child)

    def remove(self, child: int) -> None:
        self._budgets.pop(child, None)

    def of(self, child: int) -> ServiceBudget:
        """One without a limit, if it was not added."""
        found = self._budgets.get(child)
        return ServiceBudget() if found is None else found[0]

    def look(self) -> None:
        """Somebody's cap may be another."""
        for child in self._budgets:
            self._look_at(child)

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
