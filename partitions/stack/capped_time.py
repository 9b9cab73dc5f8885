"""Has a stack's budgets hear, as long as a child has a cap, what its children have had elsewhere."""

from collections.abc import Awaitable, Callable

import trio

from bus.yielded_time import QUIET_INTERVAL_MS, USE_INTERVAL_MS
from partitions.stack.service_budgets import ServiceBudgets
from runtime.abi import HypercallError, HypervisorGone
from runtime.hypercalls.caller import HypercallPort


class CappedTime:
    """One stack's. `look` is called whenever a child changed, and costs nothing while none has a cap."""

    def __init__(
        self,
        call: HypercallPort,
        budgets: ServiceBudgets,
        nursery: trio.Nursery,
        now_ns: Callable[[], int],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._call, self._budgets, self._nursery = call, budgets, nursery
        self._now_ns, self._sleep = now_ns, sleep
        self._is_following = False

    def look(self) -> None:
        if not self._is_following and self._budgets.is_limited:
            self._is_following = True
            self._nursery.start_soon(self._follow)

    async def _follow(self) -> None:
        """Until nobody has a cap any more."""
        asked_ns = self._now_ns()
        while self._budgets.is_limited:
            try:
                times = self._call.capped_time()
            except (HypercallError, HypervisorGone):
                break
            now_ns = self._now_ns()
            is_busy = self._budgets.had_elsewhere(times, now_ns - asked_ns)
            asked_ns = now_ns
            await self._sleep((USE_INTERVAL_MS if is_busy else QUIET_INTERVAL_MS) / 1000)
        self._is_following = False
