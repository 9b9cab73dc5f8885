"""The ratio of two figures that were measured side by side in each round, with an interval: a bootstrap over rounds.

Pure and deterministic: the seed decides every draw.
"""

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

ROUNDS_MIN: Final = 5  # fewer say too little about their own spread: the interval is as wide as it gets
REPLICATES: Final = 2_000
CONFIDENCE: Final = 0.95
_SEED: Final = 20_240_229


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
        """ "12.3 (11.9 to 13.1)" """
        return f"{self.value:.3g}{unit} ({self.low:.3g} to {self.high:.3g})"


def median_of(values: Sequence[float], seed: int = _SEED) -> Interval:
    """With fewer than ROUNDS_MIN values nothing is known of where it lies. ValueError: there is none."""
    if not values:
        raise ValueError("no values")
    middle = statistics.median(values)
    if len(values) < ROUNDS_MIN:
        return Interval(middle, -math.inf, math.inf)
    rng = random.Random(seed)
    drawn = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(REPLICATES))
    tail = (1 - CONFIDENCE) / 2
    low, high = drawn[int(tail * REPLICATES)], drawn[min(int((1 - tail) * REPLICATES), REPLICATES - 1)]
    return Interval(middle, low, high)


def ratio_of(above: Sequence[float], below: Sequence[float]) -> Interval:
    """Of each round's own two values: what disturbed a round disturbed both. ValueError: not as many of one."""
    return median_of([one / other for one, other in zip(above, below, strict=True)])


def difference_of(first: Sequence[float], second: Sequence[float]) -> Interval:
    """first - second, of each round's own two values."""
    return median_of([one - other for one, other in zip(first, second, strict=True)])
