"""The ratio of two figures that were measured side by side in each round, with an interval.

The interval is one for a median of rounds whatever their distribution: it reaches from one of the sorted values to
another, so far in that the median lies outside by chance in 5 % of the cases at most. It takes rounds as independent
of each other. Pure and exact: nothing is drawn.

Source: H. A. David and H. N. Nagaraja, Order Statistics, 3rd edition, section 7.1.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

ROUNDS_MIN: Final = 6  # all of five lie on the same side of the median too often for CONFIDENCE
CONFIDENCE: Final = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A median, and where it lies with CONFIDENCE."""

    value: float
    low: float
    high: float

    def contains(self, value: float) -> bool:
        return self.low <= value <= self.high

    def to_json(self) -> dict[str, float | None]:
        """An end that is not known is null."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {name: round(number, 4) if math.isfinite(number) else None for name, number in numbers.items()}

    def text(self, unit: str = "") -> str:
        """ "12.3 (11.9 to 13.1)"; without an interval where too few rounds know of one."""
        if not math.isfinite(self.low):
            return f"{self.value:.3g}{unit}"
        return f"{self.value:.3g}{unit} ({self.low:.3g} to {self.high:.3g})"


def median_of(values: Sequence[float]) -> Interval:
    """With fewer than ROUNDS_MIN values nothing is known of where it lies. ValueError: there is none."""
    if not values:
        raise ValueError("no values")
    ordered, middle = sorted(values), statistics.median(values)
    if len(values) < ROUNDS_MIN:
        return Interval(middle, -math.inf, math.inf)
    left_out = _left_out(len(values))
    return Interval(middle, ordered[left_out], ordered[-1 - left_out])


def _left_out(count: int) -> int:
    """How many of the smallest, and of the largest, are outside: each value is below the median with one half."""
    tail, below = 0.0, 0
    while (tail := tail + math.comb(count, below) / 2**count) <= (1 - CONFIDENCE) / 2:
        below += 1
    return below - 1


def ratio_of(above: Sequence[float], below: Sequence[float]) -> Interval:
    """Of each round's own two values: what disturbed a round disturbed both. ValueError: not as many of one."""
    return median_of([one / other for one, other in zip(above, below, strict=True)])


def difference_of(first: Sequence[float], second: Sequence[float]) -> Interval:
    """first - second, of each round's own two values."""
    return median_of([one - other for one, other in zip(first, second, strict=True)])
