"""Whose turn it is, where one thread serves several clients: each in turn, and nobody who is in debt. No I/O, no clock.

A client's requests are served in the order of their arrival. One that is in debt waits, with all that it asked for, and
keeps nobody else waiting.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from bus.native import ServiceBudget

Request = TypeVar("Request")


class PacedTurns(Generic[Request]):
    """Of one thread."""

    def __init__(self, budget_of: Callable[[int], ServiceBudget | None]) -> None:
        """`budget_of`: a client, by its id. None: it may have all it wants."""
        self._budget_of: Final = budget_of
        self._waiting: OrderedDict[int, deque[Request]] = OrderedDict()  # by client, whose turn it is first

    def put(self, client: int, request: Request) -> None:
        if (waiting := self._waiting.get(client)) is None:
            waiting = self._waiting[client] = deque()
        waiting.append(request)

    def next(self, now_ns: int) -> tuple[int, Request] | None:
        """The next request, with its client, whose turn comes after all others' from now on. None: there is none, or
        all who have one are in debt."""
        for client, waiting in self._waiting.items():
            budget = self._budget_of(client)
            if budget is None or not budget.share or not budget.debt_ns(now_ns):
                request = waiting.popleft()
                if waiting:
                    self._waiting.move_to_end(client)
                else:
                    del self._waiting[client]
                return client, request
        return None

    def wait_ns(self, now_ns: int) -> int | None:
        """How long, after `next` had none, until it may have one without anything new. None: for ever."""
        budgets = (self._budget_of(client) for client in self._waiting)
        return min((0 if budget is None else budget.debt_ns(now_ns) for budget in budgets), default=None)

    def forget(self, client: int) -> None:
        """It is gone, and what it asked for."""
        self._waiting.pop(client, None)
