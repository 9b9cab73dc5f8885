"""Whether a column differs from the config's own variant by more than noise, and how to say so.

Every round measures every variant once, in turns, so a round is a pair of values: what disturbed one disturbed the
other. Percentiles are compared by the bootstrap of `noise_test`, which draws rounds, then ranks within histograms.
Plain figures, one a round, by the mean of the logarithms of their ratios and Student's t: rounds are few. Verdicts of
one table are made together: at most FALSE_DISCOVERIES_MAX of those that say "beyond noise" are expected to be noise.
"""

import enum
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from bus.native import Histogram
from runtime.measure.noise_test import CONFIDENCE, ROUNDS_MIN, Sample, difference, shown
from runtime.measure.student import critical_t, two_sided_p

MARGIN: Final = 0.02  # where code happens to lie in memory is worth as much


class Verdict(enum.StrEnum):
    BEYOND = "beyond noise"
    WITHIN = "within noise"
    UNKNOWN = "nothing can be said"


@dataclass(frozen=True, slots=True)
class Ratio:
    """A variant's figure divided by the own one's, with where it lies at CONFIDENCE."""

    value: float
    low: float
    high: float
    p_value: float  # of being beyond MARGIN without any difference


@dataclass(frozen=True, slots=True)
class Statement:
    """One column of one variant, against the config's own."""

    column: str
    verdict: Verdict
    ratio: Ratio | None
    why: str = ""  # nothing can be said

    @property
    def text(self) -> str:
        """ "p50 3.10 x [2.90, 3.40], beyond noise" """
        if self.ratio is None:
            return f"{self.column}: {self.verdict.value}: {self.why}"
        ratio = self.ratio
        return f"{self.column} {times(ratio.value)} x [{times(ratio.low)}, {times(ratio.high)}], {self.verdict.value}"

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"column": self.column, "verdict": self.verdict.value}
        if self.ratio is not None:
            found |= {
                "ratio": round(self.ratio.value, 4),
                "low": round(self.ratio.low, 4),
                "high": round(self.ratio.high, 4),
                "p_value": float(f"{self.ratio.p_value:.3g}"),
            }
        return found | ({"why": self.why} if self.why else {})


def times(value: float) -> str:
    """A ratio with three digits that count, two where it is tiny: "0.953", "3.10", "184", "0.0013"."""
    if value < 0.01:
        return f"{value:.2g}"
    return f"{value:.{min(max(2 - math.floor(math.log10(value) + 1e-9), 0), 3)}f}"


@dataclass(frozen=True, slots=True)
class Question:
    """One column of one variant: values of the own variant and of the other, round by round."""

    variant: int
    load: str
    column: str
    own: Sequence[float] | Sequence[Histogram]
    other: Sequence[float] | Sequence[Histogram]
    percent: float | None = None  # of histograms


def answer_all(questions: Sequence[Question], seed: int) -> list[Statement]:
    """A statement for each question, in their order. Verdicts allow for how many there are."""
    found = [_answer(question, seed) for question in questions]
    verdicts = iter(shown([each.p_value for each in found if isinstance(each, Ratio)]))
    statements = []
    for question, each in zip(questions, found, strict=True):
        if isinstance(each, str):
            statements.append(Statement(question.column, Verdict.UNKNOWN, None, each))
        else:
            verdict = Verdict.BEYOND if next(verdicts) else Verdict.WITHIN
            statements.append(Statement(question.column, verdict, each))
    return statements


def _answer(question: Question, seed: int) -> Ratio | str:
    """The ratio, or why there is none."""
    rounds = min(len(question.own), len(question.other))
    if rounds < ROUNDS_MIN:
        return f"rounds {rounds}, {ROUNDS_MIN} are needed"
    if question.percent is None:
        return ratio_of_values(
            [value for value in question.own if not isinstance(value, Histogram)],
            [value for value in question.other if not isinstance(value, Histogram)],
        )
    own, other = (
        Sample([each for each in side if isinstance(each, Histogram)])
        for side in (question.own, question.other)
    )
    if not (own.knows(question.percent) and other.knows(question.percent)):
        return "too few requests lie beyond it"
    name = f"{seed}/{question.variant}/{question.load}"
    found = difference(own, other, question.percent, name, margin=MARGIN, paired=True)
    return Ratio(found.ratio, found.low, found.high, found.p_value)


def ratio_of_values(own: Sequence[float], other: Sequence[float]) -> Ratio | str:
    """Of figures that were taken in the same rounds; or why there is none."""
    if not any(own) and not any(other):
        return "both are 0"
    if min(*own, *other) <= 0:
        return "one of them is 0, so there is no ratio"
    logs = [math.log(after / before) for before, after in zip(own, other, strict=True)]
    middle, freedom = statistics.fmean(logs), len(logs) - 1
    error = statistics.stdev(logs) / math.sqrt(len(logs))
    beyond = abs(middle) - math.log1p(MARGIN)
    if error == 0:
        return Ratio(math.exp(middle), math.exp(middle), math.exp(middle), 0.0 if beyond > 0 else 1.0)
    width = critical_t(CONFIDENCE, freedom) * error
    p_value = two_sided_p(beyond / error, freedom) if beyond > 0 else 1.0
    low, high = (math.exp(min(max(middle + way * width, -700), 700)) for way in (-1, 1))
    return Ratio(math.exp(middle), low, high, p_value)
