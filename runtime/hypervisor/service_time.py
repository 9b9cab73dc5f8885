"""What the hypervisor itself spends on each partition: processor time of its loop's thread.

A partition that calls, or whose accesses are intercepted, makes the hypervisor run in its stead. That time counts as if
it had run itself: the scheduler adds it to what it used, so caps and weights include it. So does what a parent asks for
a child with a cap, and what the parent itself had to do meanwhile, as it says. And whoever has a cap gets no more than
that of the hypervisor: it pays with a budget of its own, and is not served while that is in debt. Its calls wait in its
socket; nothing is lost, and it is only late.

The servers in other processes each keep to the cap, too. So that a partition does not have its cap once in each of
them, what it has had is told: its own time and ours for it, as `Machine.capped_ns`, which a parent asks for. And where
nobody takes our part off its own time, as cgroups do not, its own time is taken off our part.

Nothing is counted, and no clock read, while the scheduler sleeps: then nobody has a cap or a weight of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from bus.native import ServiceBudget
from bus.yielded_time import yield_to
from runtime.abi import ROOT_PARTITION, WHOLE_PROCESSOR, PartitionProperty

if TYPE_CHECKING:
    from runtime.hypervisor.machine import Machine

LENT_NS: Final = 1_000_000  # of service without Python, until the budget of one with a cap is asked again
UNLIMITED_NS: Final = 2**64 - 1


class ServiceTime:
    """One machine's. For the loop's thread."""

    def __init__(self, machine: Machine, clock_ns: Callable[[], int] = time.thread_time_ns) -> None:
        self._machine, self._clock_ns = machine, clock_ns
        self._is_counting = False
        self._mark_ns = 0  # up to here it was charged, or is nobody's
        self._spent: dict[int, int] = {}  # since the scheduler took it, by partition
        self._budgets: dict[int, ServiceBudget] = {}  # of those with a cap
        self._served: dict[int, int] = {}  # of those, since they were looked at
        self._own_ns: dict[int, int] = {}  # of those, what their processes had used then

    def count(self, is_counting: bool) -> None:
        """The scheduler begins, goes on with other caps, or has gone to sleep."""
        self._is_counting = is_counting
        budgets, self._budgets = self._budgets, {}
        if not is_counting:
            self._spent.clear()
            self._forget_others()
            return
        for partition in self._machine.partitions.values():
            cap = partition.properties.get(PartitionProperty.CPU_CAP, WHOLE_PROCESSOR)
            if cap < WHOLE_PROCESSOR and partition.id != ROOT_PARTITION:
                budget = budgets.get(partition.id) or ServiceBudget()
                budget.limit(max(cap * max(len(partition.vps), 1), 1))
                self._budgets[partition.id] = budget
        self._forget_others()
        self.mark()

    def _forget_others(self) -> None:
        machine = self._machine
        for table in (machine.capped_ns, machine.worked_ns, self._served, self._own_ns):
            for partition in table.keys() - self._budgets.keys():
                del table[partition]

    @property
    def capped(self) -> Iterable[int]:
        """Partitions with a cap."""
        return self._budgets.keys()

    def look(self, own_ns: Mapping[int, int], elapsed_ns: int, *, is_yielding: bool) -> bool:
        """What became of those with a cap since the last look, so long ago. Whether any of them did anything.

        Args:
            own_ns: what their processes have used so far. Of one that is not there, nothing is known.
            is_yielding: their own time is taken off ours.
        """
        capped_ns, is_busy = self._machine.capped_ns, False
        for partition, budget in self._budgets.items():
            if (now_ns := own_ns.get(partition)) is None:
                continue
            before_ns = self._own_ns.get(partition, now_ns)
            self._own_ns[partition] = now_ns
            used_ns = max(now_ns - before_ns, 0)  # a process that was started anew begins with nothing
            had_ns = used_ns + self._served.pop(partition, 0)
            capped_ns[partition] = capped_ns.get(partition, 0) + had_ns
            is_busy |= had_ns > 0
            if is_yielding:
                yield_to(budget, used_ns, elapsed_ns)
        return is_busy

    def mark(self) -> None:
        """What was done up to here was done for nobody."""
        if self._is_counting:
            self._mark_ns = self._clock_ns()

    def served(self, caller: int) -> tuple[int, int] | None:
        """A call of this partition was served, for it or for one of its children; with what led up to it.
        (who, ns): it is in debt, and is to wait for so long."""
        who, self._machine.served_for = self._machine.served_for or caller, 0
        if not self._is_counting:
            return None
        now_ns = self._clock_ns()
        spent_ns, self._mark_ns = now_ns - self._mark_ns, now_ns
        return self._charge(who, spent_ns + self._machine.worked_ns.pop(who, 0))

    def served_without_python(self, spent_ns: Mapping[int, int]) -> list[tuple[int, int]]:
        """By partition, as the wall's clock says: what the host took meanwhile is nobody's. As `served`, of each."""
        if not self._is_counting:
            return []
        now_ns = self._clock_ns()
        real_ns, self._mark_ns = now_ns - self._mark_ns, now_ns
        part = min(real_ns / (sum(spent_ns.values()) or 1), 1.0)
        debts = (self._charge(who, int(ns * part)) for who, ns in spent_ns.items())
        return [debt for debt in debts if debt is not None]

    def _charge(self, who: int, spent_ns: int) -> tuple[int, int] | None:
        if who == ROOT_PARTITION:
            return None
        self._spent[who] = self._spent.get(who, 0) + spent_ns
        if (budget := self._budgets.get(who)) is None:
            return None
        self._served[who] = self._served.get(who, 0) + spent_ns
        rest_ns = budget.charge(spent_ns)
        return (who, rest_ns) if rest_ns else None

    def allowance_ns(self, partition: int) -> int:
        """For how long it may be served without Python."""
        return LENT_NS if partition in self._budgets else UNLIMITED_NS

    def take(self) -> Mapping[int, int]:
        """What was spent since this was asked last, by partition. The scheduler's."""
        spent, self._spent = self._spent, {}
        return spent
