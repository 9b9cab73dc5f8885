"""A thread that works for one client: it pays with the client's budget for its processor time, and rests.

That of a channel, which waits in C, does so there. So must each that works beside it: what a client has sent to itself,
as through a line that comes back, would be nobody's otherwise.
"""

import time
from collections.abc import Callable
from typing import Final

from bus.native import ServiceBudget

REST_NS_MAX: Final = 1_000_000_000  # of one rest; bus/native/service_budget.h says the same


class PayingThread:
    """Of one thread, from its first `pace` on."""

    def __init__(self, budget: ServiceBudget, ended: Callable[[float], bool]) -> None:
        """`ended`: waits so many seconds; True, at once, when the thread is to end."""
        self._budget, self._ended = budget, ended
        self._paid_ns: int | None = None  # up to there, of this thread's time; None: nobody counts it

    def pace(self) -> None:
        """Pay for what was done since it was here last, and rest while that is too much. Nothing that others want may
        be held here."""
        if not self._budget.share:
            self._paid_ns = None
            return
        now_ns = time.thread_time_ns()
        begun_ns, self._paid_ns = self._paid_ns, now_ns
        rest_ns = self._budget.charge(0 if begun_ns is None else now_ns - begun_ns)
        while rest_ns and not self._ended(min(rest_ns, REST_NS_MAX) / 1e9):
            rest_ns = self._budget.debt_ns()
