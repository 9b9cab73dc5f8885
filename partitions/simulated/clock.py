"""Virtual time: what is due comes in its order, and between two events no time passes for anybody who waits."""

import heapq
from collections.abc import Callable
from random import Random
from typing import Any, Final

NS_PER_S: Final = 1_000_000_000
NS_PER_MS: Final = 1_000_000
NS_PER_US: Final = 1_000

_Due = tuple[int, float, int, Callable[..., object], tuple[Any, ...]]


class VirtualClock:
    """One queue of events. What is due at the same instant comes in an order that the seed decides."""

    def __init__(self, seed: int) -> None:
        self.now_ns = 0
        self.turns = 0  # events that have come
        self._draw: Final = Random(f"ties/{seed}").random
        self._entered = 0
        self._due: Final[list[_Due]] = []

    def now(self) -> int:
        return self.now_ns

    def after(self, delay_ns: float, what: Callable[..., object], *arguments: Any) -> None:
        """Call `what` so long from now."""
        self._entered += 1
        heapq.heappush(self._due, (self.now_ns + int(delay_ns), self._draw(), self._entered, what, arguments))

    def run(self, until_ns: int, over: Callable[[], bool] = lambda: False) -> bool:
        """Have events come, up to that instant, which is the time afterwards; or until `over`, and True."""
        due, pop = self._due, heapq.heappop
        while not over():
            if not due or due[0][0] > until_ns:
                self.now_ns = max(self.now_ns, until_ns)
                return over()
            self.now_ns, _, _, what, arguments = pop(due)
            self.turns += 1
            what(*arguments)
        return True
