"""Limits that a result must keep, from a TOML file, so that a CI job fails when one is broken.

    [[threshold]]
    rows = "vmbus-direct/*/spin/*"    # of row names; * and ? match any characters, / too
    percentile = 50                   # default 50
    against = "limit"                 # "limit", "row" or "run"
    at_most = 4.0                     # and / or at_least
    [[threshold]]
    rows = "pipe/64/*"
    against = "row"                   # another transport of the same run, under the same terms
    baseline = "eventfd"
    at_most = 1.5
    [[threshold]]
    rows = "*"
    against = "run"                   # the other run of `bench compare`
    at_most = 1.1

A limit is broken when the ratio is beyond it and its whole confidence interval, too; with `strict = true` the ratio
alone decides. There is no limit in microseconds: it would be one of the machine's day, not of the program.
"""

from __future__ import annotations

import enum
import fnmatch
import math
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

import msgspec
from msgspec import Meta

from runtime.config.toml_lines import lines_of_values
from runtime.exits import CommandError, ExitCode
from runtime.measure.comparison import Scale, sample_of
from runtime.measure.figures import baseline_of
from runtime.measure.noise_test import ROUNDS_MIN, Difference, against_one, difference
from runtime.measure.results import Row, Run, Status

FILE_BYTES_MAX: Final = 1 << 20
THRESHOLDS_MAX: Final = 1000
SEED: Final = "thresholds"

Limit = Annotated[float, Meta(gt=0, le=1e9)]


class ThresholdsError(CommandError):
    """The file is wrong; nothing was judged."""

    exit_code: ClassVar[ExitCode] = ExitCode.USAGE


class Against(enum.StrEnum):
    """What a row's percentile is divided by."""

    LIMIT = "limit"  # the limit just before each of its rounds
    ROW = "row"  # the same percentile of another transport in the same run
    RUN = "run"  # the same percentile of the same row in the other run


class Threshold(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[threshold]] table."""

    rows: Annotated[str, Meta(min_length=1, max_length=200)]
    against: Against
    percentile: Annotated[float, Meta(gt=0, lt=100)] = 50.0
    baseline: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    at_most: Limit | None = None
    at_least: Limit | None = None
    strict: bool = False
    scale: Scale = Scale.TIME  # of "run": times, or ratios to the limit

    def __post_init__(self) -> None:
        if self.at_most is None and self.at_least is None:
            raise ValueError("at_most or at_least is needed")
        if self.at_most is not None and self.at_least is not None and self.at_most < self.at_least:
            raise ValueError("at_most is below at_least")
        if (self.against is Against.ROW) != (self.baseline is not None):
            raise ValueError('baseline, a transport, belongs to against = "row", and to no other')
        if self.scale is not Scale.TIME and self.against is not Against.RUN:
            raise ValueError('scale belongs to against = "run"')

    @property
    def wanted(self) -> str:
        """ "at most 4, at least 1"."""
        limits = {"at least": self.at_least, "at most": self.at_most}
        return ", ".join(f"{word} {limit:g}" for word, limit in limits.items() if limit is not None)


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    threshold: Annotated[list[Threshold], Meta(min_length=1, max_length=THRESHOLDS_MAX)]


class Outcome(enum.StrEnum):
    MET = "met"
    UNCLEAR = "unclear"  # beyond, but not surely
    BROKEN = "broken"
    MISSING = "missing"  # nothing to judge: no such row, or it was not measured. Counts as broken
    TOO_LITTLE = "too little"  # too few rounds or values to judge. Counts as broken


FAILING: Final = frozenset({Outcome.BROKEN, Outcome.MISSING, Outcome.TOO_LITTLE})


@dataclass(frozen=True, slots=True)
class Finding:
    """What one threshold said about one row."""

    row: str
    threshold: Threshold
    outcome: Outcome
    difference: Difference | None = None
    why: str | None = None

    def to_json(self) -> dict[str, Any]:
        found = self.difference
        return {
            "row": self.row,
            "percentile": self.threshold.percentile,
            "against": self.threshold.baseline or self.threshold.against.value,
            "wanted": self.threshold.wanted,
            "ratio": None if found is None else round(found.ratio, 4),
            "low": None if found is None else round(found.low, 4),
            "high": None if found is None else round(found.high, 4),
            "outcome": self.outcome.value,
            "why": self.why,
        }


def load_thresholds(path: Path) -> list[Threshold]:
    """Raises: ThresholdsError: with the file, and where in it."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ThresholdsError(f"{path}: {error.strerror}") from error
    if len(data) > FILE_BYTES_MAX:
        raise ThresholdsError(f"{path}: more than {FILE_BYTES_MAX} bytes")
    try:
        text = data.decode()
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ThresholdsError(f"{path} is no TOML: {error}") from error
    try:
        return msgspec.convert(tables, _File).threshold
    except msgspec.ValidationError as error:
        raise ThresholdsError(_explained(path, text, str(error))) from error


def _explained(path: Path, text: str, message: str) -> str:
    """ "ci.toml:3: threshold[0].at_most: Expected `float`, got `str`"."""
    what, _, where = message.partition(" - at `$")
    where = where.rstrip("`").lstrip(".")
    steps = tuple(int(index) if index else name for index, name in re.findall(r"\[(\d+)\]|(\w+)", where))
    lines = lines_of_values(text)
    while steps and steps not in lines:  # a key that is missing stands nowhere: its table does
        steps = steps[:-1]
    place = f"{path}:{lines[steps]}" if steps else str(path)
    return ": ".join(filter(None, (place, where, what)))


def check(thresholds: Sequence[Threshold], run: Run, other: Run | None = None) -> list[Finding]:
    """Judge every row that a threshold names; `other` is what "run" divides by.

    A row that is not installed is passed over, since CI machines differ, unless the threshold names nothing else.

    Raises:
        ThresholdsError: one is against a run, and there is no other.
    """
    if other is None and any(each.against is Against.RUN for each in thresholds):
        raise ThresholdsError(
            'a threshold is against = "run": use partvisor bench compare A B --thresholds FILE'
        )
    return [finding for each in thresholds for finding in _check_one(each, run, other)]


def _check_one(threshold: Threshold, run: Run, other: Run | None) -> list[Finding]:
    named = [row for row in run.rows if fnmatch.fnmatchcase(row.name, threshold.rows)]
    judged = [row for row in named if row.status in (Status.OK, Status.FAILED)]
    if not judged:
        why = "no row of that name" if not named else "none of its rows can be measured here"
        return [Finding(threshold.rows, threshold, Outcome.MISSING, why=why)]
    return [_judge(threshold, run, other, row) for row in judged]


def _judge(threshold: Threshold, run: Run, other: Run | None, row: Row) -> Finding:
    if row.status is not Status.OK:
        return Finding(row.name, threshold, Outcome.MISSING, why=row.reason)
    base: Row | None = None
    if threshold.baseline is not None:
        base = baseline_of(run, row, threshold.baseline)
    elif other is not None and threshold.against is Against.RUN:
        base = other.row(row.name)
    if threshold.against is not Against.LIMIT and (base is None or base.status is not Status.OK):
        return Finding(row.name, threshold, Outcome.MISSING, why="nothing to compare it with")
    found = _ratio(threshold, row, base)
    if found is None:
        return Finding(row.name, threshold, Outcome.TOO_LITTLE, why="too few rounds, or values beyond it")
    most = threshold.at_most if threshold.at_most is not None else math.inf
    least = threshold.at_least if threshold.at_least is not None else 0.0
    if least <= found.ratio <= most:
        return Finding(row.name, threshold, Outcome.MET, found)
    surely = found.low > most or found.high < least
    outcome = Outcome.BROKEN if surely or threshold.strict else Outcome.UNCLEAR
    return Finding(row.name, threshold, outcome, found)


def _ratio(threshold: Threshold, row: Row, base: Row | None) -> Difference | None:
    """None: too few rounds, or too few values beyond the percentile."""
    by_limit = threshold.against is Against.LIMIT or threshold.scale is Scale.LIMIT
    scale = Scale.LIMIT if by_limit else Scale.TIME
    rows = [row] if base is None else [base, row]
    if min(len(each.counted) for each in rows) < ROUNDS_MIN:
        return None
    samples = [sample_of(each, scale) for each in rows]
    if not all(sample.knows(threshold.percentile) for sample in samples):
        return None
    seed = f"{SEED}/{row.name}"
    if base is None:
        return against_one(samples[0], threshold.percentile, seed)
    same_run = threshold.against is Against.ROW and samples[0].rounds == samples[1].rounds
    return difference(samples[0], samples[1], threshold.percentile, seed, paired=same_run)
