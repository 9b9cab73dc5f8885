"""Makes a list that fails short: whatever can be left out without losing the failure is left out.

Delta debugging: Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002. Here stretches of
half, a quarter, ... and at last one item are left out in turn, the last ones first, until nothing can be spared.
"""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")


class OutOfTries(Exception):
    """Raised by a `fails` that wants no more of it; what is shortest then stays."""


class Minimizer(Generic[Item]):
    """Of one list. `shortest` is always a list that failed."""

    def __init__(self, items: Sequence[Item], fails: Callable[[Sequence[Item]], bool]) -> None:
        """`items` is known to fail."""
        self.shortest: list[Item] = list(items)
        self._fails = fails

    def minimize(self) -> list[Item]:
        """Leaving out any one item of what is returned makes it pass, unless `fails` gave up."""
        size = max(len(self.shortest) // 2, 1)
        try:
            while size:
                if not self._leave_out(size):
                    size //= 2
        except OutOfTries:
            pass
        return self.shortest

    def _leave_out(self, size: int) -> bool:
        """Each stretch of this many in turn. True: single ones were gone; look at the others again."""
        before = len(self.shortest)
        end = before
        while end > 0 and self.shortest:
            start = max(end - size, 0)
            candidate = self.shortest[:start] + self.shortest[end:]
            if len(candidate) < len(self.shortest) and self._fails(candidate):
                self.shortest = candidate
            end = min(start, len(self.shortest))
        return size == 1 and len(self.shortest) < before
