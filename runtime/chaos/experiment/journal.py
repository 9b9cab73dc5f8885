"""The journal of a campaign: JSON Lines, from which a report is drawn and any trial is replayed.

    {"what": "campaign", "format": 1, "experiment": {...}, "source": "FILE", "seed": 1, "trials": 100, ...}
    {"what": "trial", "trial": 7, "seed": 8, "architecture": "...", "schedule": [...], "outcome": "passed", ...}

One line a trial, written when it has ended, so a campaign that is cut short leaves a journal of what there was.
"""

import enum
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from runtime.chaos.experiment.schedule import Injection, Schedule
from runtime.exits import CommandError, ExitCode

FORMAT: Final = 1
LINE_BYTES_MAX: Final = 16 << 20


class JournalError(CommandError):
    """It cannot be read, or is none."""

    exit_code = ExitCode.USAGE


class Outcome(enum.StrEnum):
    """Of a trial, or of one check of it."""

    PASSED = "passed"
    VIOLATED = "violated"
    INCONCLUSIVE = "inconclusive"  # nothing was shown: a fault did not fire, or the load did not run

    @classmethod
    def worst(cls, outcomes: "Iterable[Outcome]") -> "Outcome":
        """A violation is one, whatever else did not work out."""
        every = set(outcomes)
        return next((one for one in (cls.VIOLATED, cls.INCONCLUSIVE) if one in every), cls.PASSED)


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check says."""

    check: str
    outcome: Outcome
    texts: tuple[str, ...] = ()  # why, a line each
    figures: Mapping[str, float] = field(default_factory=dict)

    def to_table(self) -> dict[str, Any]:
        return {
            "check": self.check,
            "outcome": self.outcome.value,
            "texts": list(self.texts),
            "figures": dict(self.figures),
        }

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Self:
        return cls(table["check"], Outcome(table["outcome"]), tuple(table["texts"]), table["figures"])


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one injection. Times are ms since the steady state."""

    number: int
    injected_ms: float | None  # None: its moment did not come
    fired_ms: float | None  # the first time that it struck
    passes: int
    fired: int
    healed_ms: float | None
    detected_ms: float | None  # the machine said that something was wrong
    recovered_ms: float | None  # a request completed after that
    error: str = ""  # why it could not be injected

    def to_table(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Self:
        return cls(**table)


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial, ended."""

    number: int
    seed: int
    architecture: str
    schedule: Schedule
    fates: tuple[Fate, ...]
    findings: tuple[Finding, ...]
    outages_ms: tuple[float, ...]  # the guests' waits around each fault that fired
    completions: tuple[
        tuple[float, float], ...
    ]  # ms since the steady state, slowest latency in ms: a picture's
    timeline: tuple[tuple[float, str, str], ...]  # ms, kind, partition: the machine's events
    seconds: float
    trouble: str = ""  # why it is inconclusive as a whole

    @property
    def outcome(self) -> Outcome:
        if self.trouble:
            return Outcome.worst([Outcome.INCONCLUSIVE, *(finding.outcome for finding in self.findings)])
        return Outcome.worst(finding.outcome for finding in self.findings)

    def to_table(self) -> dict[str, Any]:
        return {
            "what": "trial",
            "trial": self.number,
            "seed": self.seed,
            "architecture": self.architecture,
            "outcome": self.outcome.value,
            "schedule": [injection.to_table() for injection in self.schedule],
            "fates": [fate.to_table() for fate in self.fates],
            "findings": [finding.to_table() for finding in self.findings],
            "outages_ms": list(self.outages_ms),
            "completions": [list(point) for point in self.completions],
            "timeline": [list(point) for point in self.timeline],
            "seconds": self.seconds,
            "trouble": self.trouble,
        }

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Self:
        return cls(
            table["trial"],
            table["seed"],
            table["architecture"],
            tuple(Injection.from_table(one) for one in table["schedule"]),
            tuple(Fate.from_table(one) for one in table["fates"]),
            tuple(Finding.from_table(one) for one in table["findings"]),
            tuple(table["outages_ms"]),
            tuple((at, slowest) for at, slowest in table["completions"]),
            tuple((at, kind, who) for at, kind, who in table["timeline"]),
            table["seconds"],
            table["trouble"],
        )


@dataclass(frozen=True, slots=True)
class Header:
    """What a replay needs beside a trial's line, and what a reader wants to know."""

    experiment: Mapping[str, Any]  # the file's tables, as they were
    source: str  # the file, as the user named it
    folder: str  # where its relative paths start
    seed: int
    trials: int
    versions: Mapping[str, str]
    simulated: bool = False  # in the deterministic mode
    planted: str = ""  # with this defect
    machine: str = ""  # the text of the configuration that the experiment names; "": it names none
    left_out: tuple[str, ...] = ()  # kinds of faults that the experiment has and the simulated mode has not

    @property
    def count(self) -> int:
        """Of trials, over all architectures."""
        return self.trials * max(len(self.experiment.get("experiment", {}).get("architectures", ())), 1)

    def to_table(self) -> dict[str, Any]:
        return {"what": "campaign", "format": FORMAT} | {name: getattr(self, name) for name in self.__slots__}


def read_journal(path: Path) -> tuple[Header, list[Trial]]:
    """Raises JournalError."""
    try:
        with path.open() as file:
            tables = list(_lines(file))
    except (OSError, UnicodeDecodeError) as error:
        raise JournalError(f"{path}: {error}") from None
    except ValueError as error:
        raise JournalError(f"{path}: not a journal: {error}") from None
    try:
        first, *others = tables
        if first.pop("what") != "campaign" or first.pop("format") != FORMAT:
            raise ValueError(f"its first line is not that of a campaign of format {FORMAT}")
        first["left_out"] = tuple(first.get("left_out", ()))
        return Header(**first), [Trial.from_table(table) for table in others]
    except (ValueError, TypeError, KeyError) as error:
        raise JournalError(f"{path}: not a journal: {error!r}") from None


def _lines(file: Iterable[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, 1):
        if len(line) > LINE_BYTES_MAX:
            raise ValueError(f"line {number} has more than {LINE_BYTES_MAX} bytes")
        if not line.endswith("\n"):
            return  # cut short while it was written
        table = json.loads(line)
        if not isinstance(table, dict):
            raise ValueError(f"line {number} is no object")
        yield table
