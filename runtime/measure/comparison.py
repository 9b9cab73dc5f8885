"""Two runs side by side: which rows are faster, slower, or show no difference."""

from __future__ import annotations

import enum
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from runtime.exits import CommandError
from runtime.measure.conditions import described, differences
from runtime.measure.figures import limits_ns
from runtime.measure.noise_test import ROUNDS_MIN, Difference, Sample, difference, shown
from runtime.measure.results import Row, Run, Status

PERCENTS: Final = (50.0, 90.0, 99.0)
MARGIN_DEFAULT: Final = 0.02  # where code happens to lie in memory is worth as much
LIMIT_SHIFT_MAX: Final = (
    1.25  # a limit that moved by more than this: the CPUs stand differently to each other
)


class ConditionsDiffer(CommandError):
    """Two runs that were not measured under the same conditions."""


class Scale(enum.StrEnum):
    """What is compared."""

    TIME = "time"  # latencies
    LIMIT = "limit"  # latencies divided by the limit that was measured just before


class Verdict(enum.StrEnum):
    FASTER = "faster"
    SLOWER = "slower"
    NO_DIFFERENCE = "no difference shown"
    TOO_LITTLE = "too few rounds or values"


@dataclass(frozen=True, slots=True)
class ComparedFigure:
    """One percentile of one row. The verdict is the second run's."""

    row: str
    percent: float
    verdict: Verdict
    difference: Difference | None  # None: nothing can be said

    def to_json(self) -> dict[str, Any]:
        found = self.difference
        figures: dict[str, Any] = {"row": self.row, "percentile": self.percent}
        if found is not None:
            figures |= {
                "first": round(found.first, 3),
                "second": round(found.second, 3),
                "ratio": round(found.ratio, 4),
                "low": round(found.low, 4),
                "high": round(found.high, 4),
                "p_value": float(f"{found.p_value:.3g}"),
            }
        return figures | {"verdict": self.verdict.value}


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `bench compare` prints."""

    first: Run
    second: Run
    scale: Scale
    margin: float
    differing: dict[str, tuple[str, str]]  # conditions, by name
    figures: tuple[ComparedFigure, ...]
    only_first: tuple[str, ...]  # rows that are ok in one run alone
    only_second: tuple[str, ...]
    limits_ns: tuple[float, float]  # medians

    @property
    def limit_shifted(self) -> bool:
        low, high = sorted(self.limits_ns)
        return high > low * LIMIT_SHIFT_MAX

    @property
    def summary(self) -> str:
        """ "2 faster, 1 slower, 60 no difference shown", of rows and percentiles."""
        counts = {verdict: sum(each.verdict is verdict for each in self.figures) for verdict in Verdict}
        return ", ".join(f"{count} {verdict.value}" for verdict, count in counts.items() if count)

    def to_json(self) -> dict[str, Any]:
        return {
            "first": self.first.id,
            "second": self.second.id,
            "scale": self.scale.value,
            "margin": self.margin,
            "conditions_differing": {name: list(pair) for name, pair in self.differing.items()},
            "limits_ns": [round(value, 1) for value in self.limits_ns],
            "limit_shifted": self.limit_shifted,
            "rows": [figure.to_json() for figure in self.figures],
            "only_first": list(self.only_first),
            "only_second": list(self.only_second),
        }


def compare_runs(
    first: Run,
    second: Run,
    *,
    scale: Scale = Scale.TIME,
    margin: float = MARGIN_DEFAULT,
    percents: Sequence[float] = PERCENTS,
    seed: str = "1",
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Comparison:
    """How the second run stands to the first.

    Verdicts are made over all rows and percentiles together: at most FALSE_DISCOVERIES_MAX of those that say "faster"
    or "slower" are expected to be noise, however many rows there are. Intervals are each row's own.

    Raises:
        ConditionsDiffer: and `force` is not set.
        CommandError: the runs have no row in common.
    """
    differing = differences(first, second)
    if differing and not force:
        raise ConditionsDiffer(
            f"the runs' conditions differ: {described(differing)}; to compare all the same: --force"
        )
    ours, theirs = _measured(first), _measured(second)
    common = [name for name in ours if name in theirs]
    if not common:
        raise CommandError(f"runs {first.id} and {second.id} have no measured row in common")
    found: list[tuple[str, float, Difference | None]] = []
    for done, name in enumerate(common):
        progress(done, len(common))
        found += [
            (name, percent, each)
            for percent, each in zip(
                percents,
                _row_differences(ours[name], theirs[name], scale, margin, percents, f"{seed}/{name}"),
                strict=True,
            )
        ]
    progress(len(common), len(common))
    verdicts = iter(shown([each.p_value for *_, each in found if each is not None]))
    figures = tuple(
        ComparedFigure(name, percent, Verdict.TOO_LITTLE, None)
        if each is None
        else ComparedFigure(name, percent, _verdict(each, next(verdicts)), each)
        for name, percent, each in found
    )
    return Comparison(
        first,
        second,
        scale,
        margin,
        differing,
        figures,
        tuple(name for name in ours if name not in theirs),
        tuple(name for name in theirs if name not in ours),
        (statistics.median(limits_ns(first.rows)), statistics.median(limits_ns(second.rows))),
    )


def sample_of(row: Row, scale: Scale) -> Sample:
    """Its counted rounds, as times or as ratios to each round's own limit."""
    rounds = row.counted
    scales = [one.limit_ns for one in rounds] if scale is Scale.LIMIT else None
    return Sample([one.latency for one in rounds], scales)


def _row_differences(
    first: Row, second: Row, scale: Scale, margin: float, percents: Sequence[float], seed: str
) -> list[Difference | None]:
    if min(len(first.counted), len(second.counted)) < ROUNDS_MIN:
        return [None] * len(percents)
    ours, theirs = sample_of(first, scale), sample_of(second, scale)
    return [
        difference(ours, theirs, percent, seed, margin=margin)
        if ours.knows(percent) and theirs.knows(percent)
        else None
        for percent in percents
    ]


def _measured(run: Run) -> dict[str, Row]:
    return {row.name: row for row in run.rows if row.status is Status.OK}


def _verdict(found: Difference, is_shown: bool) -> Verdict:
    if not is_shown:
        return Verdict.NO_DIFFERENCE
    return Verdict.SLOWER if found.ratio > 1 else Verdict.FASTER
