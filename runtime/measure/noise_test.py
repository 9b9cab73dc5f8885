"""Is a difference of two percentiles more than noise? A bootstrap over rounds, then over each histogram.

Exchanges of one round share whatever happened to the machine meanwhile, so a million of them are not a million
independent figures: rounds are. A replicate therefore draws rounds with replacement, and then, in what it drew, the
rank of the percentile: of n values drawn anew, the k-th smallest stands where a Beta(k, n - k + 1) value says.

The standard deviation of the percentile's logarithm over the replicates is its standard error. A bootstrap of n rounds
is too narrow by sqrt((n - 1) / n), and few rounds know their own spread badly: both are made up for, by that factor
and by Student's t with Welch's degrees of freedom. Everything is of logarithms, since ratios are what we ask for.

Deterministic: a seed, and the name of what is compared, decide every draw.
"""

from __future__ import annotations

import bisect
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul
from typing import Final

from bus.native import Histogram
from runtime.measure.student import critical_t, two_sided_p

ROUNDS_MIN: Final = 5  # fewer say too little about their own spread
REPLICATES: Final = 400  # standard errors are then off by 4 %
BEYOND_MIN: Final = 10  # values above a percentile, below which nothing is said about it
CONFIDENCE: Final = 0.95
FALSE_DISCOVERIES_MAX: Final = 0.05  # share of the differences shown that may be none
_LEAST_NS: Final = 0.25  # smaller values count as this: 0 has no logarithm


@dataclass(frozen=True, slots=True)
class Difference:
    """A ratio of two percentiles, how sure it is, and how likely as much would be without any difference."""

    first: float
    second: float
    ratio: float  # second / first
    low: float  # of the ratio, at CONFIDENCE
    high: float
    p_value: float  # of being beyond the margin


class Sample:
    """The rounds of one row, made ready for drawing: their distribution functions at common points.

    A bucket's values count as spread evenly over it, so a percentile moves steadily and not in steps of 0.8 %.
    """

    def __init__(self, histograms: Sequence[Histogram], scales: Sequence[float] | None = None) -> None:
        """`scales`: each round's values are divided by its own, such as its limit. At least one histogram."""
        scales = scales or [1.0] * len(histograms)
        edges = [_edges(histogram, scale) for histogram, scale in zip(histograms, scales, strict=True)]
        self._points = sorted({point for points, _ in edges for point in points})
        columns = [_at_points(self._points, *each) for each in edges]
        self._rows = list(
            zip(*columns, strict=True)
        )  # for each point: how many values of each round lie below
        self._counts = [histogram.count for histogram in histograms]

    @property
    def rounds(self) -> int:
        return len(self._counts)

    @property
    def count(self) -> int:
        return sum(self._counts)

    def knows(self, percent: float) -> bool:
        """Whether enough values lie beyond this percentile to say anything about it."""
        return self.count * (100 - percent) / 100 >= BEYOND_MIN and self.count * percent / 100 >= BEYOND_MIN

    def percentile(self, percent: float) -> float:
        """Of all rounds together."""
        return self._value_at(percent / 100, [1] * self.rounds)

    def draw(self, percent: float, weights: Sequence[int], generator: random.Random) -> float:
        """The percentile's logarithm in a replicate that has each round as often as `weights` says."""
        count = sum(map(mul, weights, self._counts))
        rank = min(max(round(percent / 100 * count), 1), count)
        return math.log(self._value_at(generator.betavariate(rank, count - rank + 1), weights))

    def _value_at(self, share: float, weights: Sequence[int]) -> float:
        target = share * sum(map(mul, weights, self._counts))
        rows, points = self._rows, self._points
        at = bisect.bisect_left(rows, target, key=lambda row: sum(map(mul, weights, row)))
        at = min(max(at, 1), len(points) - 1)
        below, above = (sum(map(mul, weights, rows[index])) for index in (at - 1, at))
        part = (target - below) / (above - below) if above > below else 1.0
        return points[at - 1] + min(max(part, 0.0), 1.0) * (points[at] - points[at - 1])


def difference(
    first: Sample, second: Sample, percent: float, seed: str, *, margin: float = 0.0, paired: bool = False
) -> Difference:
    """How the second's percentile stands to the first's.

    Args:
        margin: a part, as 0.02: smaller differences do not count, however sure they are.
        paired: both were measured in the same rounds, in turn: what a round did to one it did to the other.
    """
    generator = random.Random(f"{seed}/{percent:g}")
    begin, end = first.percentile(percent), second.percentile(percent)
    logs: list[tuple[float, float]] = []
    for _ in range(REPLICATES):
        ours = _weights(first.rounds, generator)
        theirs = ours if paired else _weights(second.rounds, generator)
        logs.append((first.draw(percent, ours, generator), second.draw(percent, theirs, generator)))
    if paired:
        if first.rounds != second.rounds:
            raise ValueError("pairs have as many rounds on either side")
        square = _square_error([after - before for before, after in logs], first.rounds)
        freedom = float(first.rounds - 1)
    else:
        squares = [
            _square_error([pair[side] for pair in logs], sample.rounds)
            for side, sample in enumerate((first, second))
        ]
        square = sum(squares)
        parts = [each**2 / (max(n.rounds, 2) - 1) for each, n in zip(squares, (first, second), strict=True)]
        freedom = square**2 / sum(parts) if sum(parts) else math.inf
    return _judged(begin, end, math.sqrt(square), freedom, margin)


def against_one(sample: Sample, percent: float, seed: str) -> Difference:
    """How a percentile of scaled values stands to 1, which is what they were divided by."""
    generator = random.Random(f"{seed}/{percent:g}")
    logs = [sample.draw(percent, _weights(sample.rounds, generator), generator) for _ in range(REPLICATES)]
    error = math.sqrt(_square_error(logs, sample.rounds))
    return _judged(1.0, sample.percentile(percent), error, float(sample.rounds - 1), 0.0)


def shown(p_values: Sequence[float], rate: float = FALSE_DISCOVERIES_MAX) -> list[bool]:
    """Which of many differences are shown, at most this share of them wrongly. Benjamini and Hochberg, 1995."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    last = 0
    for place, index in enumerate(order, start=1):
        if p_values[index] <= rate * place / len(order):
            last = place
    found = set(order[:last])
    return [index in found for index in range(len(p_values))]


def _judged(begin: float, end: float, error: float, freedom: float, margin: float) -> Difference:
    distance = math.log(end / begin)
    beyond = abs(distance) - math.log1p(margin)
    if error == 0 or math.isinf(freedom):
        width, p_value = 0.0, 0.0 if beyond > 0 else 1.0
    else:
        width = critical_t(CONFIDENCE, freedom) * error
        p_value = two_sided_p(beyond / error, freedom) if beyond > 0 else 1.0
    low, high = (math.exp(min(max(distance + way * width, -700), 700)) for way in (-1, 1))
    return Difference(begin, end, end / begin, low, high, p_value)


def _square_error(logs: Sequence[float], rounds: int) -> float:
    return statistics.pvariance(logs) * rounds / max(rounds - 1, 1)


def _weights(rounds: int, generator: random.Random) -> list[int]:
    weights = [0] * rounds
    for _ in range(rounds):
        weights[int(generator.random() * rounds)] += 1
    return weights


def _edges(histogram: Histogram, scale: float) -> tuple[list[float], list[float]]:
    """Points, rising, and how many values lie at or below each; straight lines between them."""
    points: list[float] = []
    sums: list[float] = []
    seen = 0
    for top, count in histogram.buckets:
        step = 1 << max(top.bit_length() - 8, 0)
        low = (
            max(top - step, histogram.minimum - 1, _LEAST_NS) / scale
        )  # just below the bucket's smallest value
        high = min(top, histogram.maximum) / scale
        if not points or low > points[-1]:
            points.append(low)
            sums.append(seen)
        seen += count
        points.append(max(high, math.nextafter(points[-1], math.inf)))
        sums.append(seen)
    return points, sums


def _at_points(wanted: Sequence[float], points: Sequence[float], sums: Sequence[float]) -> list[float]:
    """A distribution function, given at its own points, at others: both rise."""
    values: list[float] = []
    at = 0
    for point in wanted:
        while at < len(points) and points[at] <= point:
            at += 1
        if at == 0:
            values.append(0.0)
        elif at == len(points):
            values.append(sums[-1])
        else:
            part = (point - points[at - 1]) / (points[at] - points[at - 1])
            values.append(sums[at - 1] + part * (sums[at] - sums[at - 1]))
    return values
