"""Counts over the trials of a campaign: the fate of each kind of fault, what checks said, how long guests waited."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from runtime.chaos.experiment.campaign import percentile
from runtime.chaos.experiment.journal import Outcome, Trial

TEXTS_MAX: Final = 3  # of one check, of one trial
_DEATHS: Final = frozenset({"root.exited", "partition.exited"})


@dataclass(slots=True)
class FaultTally:
    """Of one kind of fault, over all its injections."""

    kind: str
    injected: int = 0
    fired: int = 0
    detected: int = 0
    recovered: int = 0  # its guests went on, and every check was content
    wrong: int = 0  # a check of its trial was violated
    not_recovered: int = 0  # it fired, and no request completed afterwards
    refused: int = 0
    recovery_ms: list[float] = field(default_factory=list)  # from its strike to the next answer

    def row(self) -> dict[str, Any]:
        ordered = sorted(self.recovery_ms)
        return {
            "fault": self.kind,
            "injected": self.injected,
            "fired": self.fired,
            "detected": self.detected,
            "recovered": self.recovered,
            "wrong": self.wrong,
            "not recovered": self.not_recovered,
            "p50 ms": _rounded(ordered, 50),
            "p99 ms": _rounded(ordered, 99),
        }


def by_fault(trials: Sequence[Trial]) -> list[FaultTally]:
    """In the order of their names."""
    tallies: dict[str, FaultTally] = {}
    for trial in trials:
        kinds = {injection.order.number: injection.order.kind for injection in trial.schedule}
        for fate in trial.fates:
            tally = tallies.setdefault(kinds[fate.number], FaultTally(kinds[fate.number]))
            if fate.error:
                tally.refused += 1
                continue
            tally.injected += 1
            if not fate.fired:
                continue
            tally.fired += 1
            tally.detected += fate.detected_ms is not None
            if trial.outcome is Outcome.VIOLATED:
                tally.wrong += 1
            elif fate.recovered_ms is None:
                tally.not_recovered += 1
            else:
                tally.recovered += 1
            if fate.recovered_ms is not None and fate.fired_ms is not None:
                tally.recovery_ms.append(fate.recovered_ms - fate.fired_ms)
    return [tallies[kind] for kind in sorted(tallies)]


def by_check(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """One row for each check: how often it said what."""
    rows: dict[str, dict[str, Any]] = {}
    for trial in trials:
        for finding in trial.findings:
            row = rows.setdefault(
                finding.check, {"check": finding.check, **{outcome.value: 0 for outcome in Outcome}}
            )
            row[finding.outcome.value] += 1
    return list(rows.values())


def by_architecture(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """One row for each architecture, in the order of their first trials."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.architecture or "as configured", []).append(trial)
    rows = []
    for name, group in groups.items():
        outages = sorted(outage for trial in group for outage in trial.outages_ms)
        rows.append(
            {
                "architecture": name,
                "trials": len(group),
                **{outcome.value: sum(trial.outcome is outcome for trial in group) for outcome in Outcome},
                "deaths": sum(map(_deaths_of, group)),
                "outage p50 ms": _rounded(outages, 50),
                "p99 ms": _rounded(outages, 99),
                "max ms": _rounded(outages, 100),
            }
        )
    return rows


def _deaths_of(trial: Trial) -> int:
    """Of processes, until the last fault was healed: what comes later is the machine's own end."""
    healed = max((fate.healed_ms for fate in trial.fates if fate.healed_ms is not None), default=0.0)
    return sum(at <= healed and kind in _DEATHS for at, kind, _ in trial.timeline)


def complaints(trials: Sequence[Trial], most: int) -> list[str]:
    """Why trials were not green: the violations first, then what was inconclusive."""
    bad = [trial for trial in trials if trial.outcome is Outcome.VIOLATED]
    bad += [trial for trial in trials if trial.outcome is Outcome.INCONCLUSIVE]
    lines = []
    for trial in bad:
        texts = [
            f"{finding.check}: {text}"
            for finding in trial.findings
            if finding.outcome is not Outcome.PASSED
            for text in _some_of(finding.texts) or (finding.outcome.value,)
        ]
        if trial.trouble:
            texts.append(trial.trouble)
        lines += [
            f"trial {trial.number} (seed {trial.seed}): {trial.outcome.value}: {text}" for text in texts
        ]
    return lines[:most]


def _some_of(texts: Sequence[str]) -> list[str]:
    """What a check says of one trial; the journal has all of it."""
    more = [f"and {len(texts) - TEXTS_MAX} more"] if len(texts) > TEXTS_MAX else []
    return [*texts[:TEXTS_MAX], *more]


def _rounded(ordered: list[float], percent: float) -> float | None:
    return round(percentile(ordered, percent), 1) if ordered else None
