"""What a stack's event loop does for its children: channel messages, and the ends of channels.

That a channel is opened, broken and taken away costs its parent more than it costs the guest, and a guest may have it
happen again and again. A parent's threads that serve a channel pay with its guest's budget, and rest; the loop must not
rest, for it is there for all. So the hypervisor is told, and the guest pays there: its next calls wait.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Final

from partitions.stack.service_budgets import TOLD_NS_MIN, ServiceBudgets
from runtime.abi import HypercallError, PartitionProperty

WriteProperty = Callable[[int, PartitionProperty, int], None]


class WorkForChildren:
    """Of one event loop. Costs nothing but a look for a child without a cap."""

    def __init__(
        self, budgets: ServiceBudgets, write_property: WriteProperty, clock_ns: Callable[[], int]
    ) -> None:
        """`write_property`: (child, code, value). Raises HypercallError. `clock_ns`: processor time of this thread."""
        self._budgets, self._write, self._clock_ns = budgets, write_property, clock_ns
        self._is_counting = False
        self._untold: Final[dict[int, int]] = {}  # ns, by child

    @contextlib.contextmanager
    def of(self, child: int) -> Iterator[None]:
        """What is done inside is done for that child. One inside another is the outer one's; nobody waits inside."""
        if self._is_counting or not self._budgets.of(child).share:
            yield
            return
        self._is_counting, begun_ns = True, self._clock_ns()
        try:
            yield
        finally:
            self._is_counting = False
            self._charge(child, self._clock_ns() - begun_ns)

    def _charge(self, child: int, spent_ns: int) -> None:
        untold_ns = self._untold.pop(child, 0) + spent_ns
        if untold_ns < TOLD_NS_MIN:
            self._untold[child] = untold_ns
            return
        with contextlib.suppress(HypercallError):  # it is gone
            self._write(child, PartitionProperty.CAPPED_TIME, untold_ns)

    def forget(self, child: int) -> None:
        self._untold.pop(child, None)
