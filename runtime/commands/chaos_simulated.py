"""What `partvisor chaos` says and asks about the deterministic mode."""

from __future__ import annotations

import importlib
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.chaos.experiment.journal import Trial

PLANTED: Final = "partitions.simulated.planted"  # reached by name: the runtime imports nothing of partitions
SIMULATOR: Final = "partitions.simulated.performing"


def check_planted(planted: str, simulated: bool) -> None:
    """Raises UsageError: there is no such defect, or none is possible."""
    if not planted:
        return
    if not simulated:
        raise click.UsageError("--planted needs --simulated: real processes have no defects on purpose")
    known = importlib.import_module(PLANTED).DEFECTS
    if planted not in known:
        raise click.UsageError(f"no defect is named {planted!r}; there are {', '.join(known)}")


class Speed:
    """Of a campaign in the deterministic mode. Its factor: virtual seconds of all trials, by those of the wall clock.

    A factor by itself says little, as time in which nobody asks for anything costs nothing: beside it stands what it is
    while requests are in flight, and how many events of the clock came in a second.
    """

    def __init__(self, performers: str = "") -> None:
        """`performers`: of the trials; "": this process alone."""
        self._performers = performers
        self._began = time.monotonic()
        importlib.import_module(SIMULATOR)  # now, so that it is no part of the first trial
        self._started, self._worked = time.monotonic(), time.process_time()

    def figures(self, trials: Sequence[Trial]) -> dict[str, Any]:
        """What was done since this began."""
        now = time.monotonic()
        spent_s, start_s = max(now - self._started, 1e-9), self._started - self._began
        worked_s = max(time.process_time() - self._worked, 1e-9)  # of this process
        virtual_s = sum(trial.seconds for trial in trials)
        busy_s, events, requests = (_sum(trials, name) for name in ("busy_s", "turns", "requests"))
        return {
            "trials": len(trials),
            "virtual_s": round(virtual_s, 3),
            "busy_s": round(busy_s, 3),
            "wall_s": round(spent_s, 3),
            "start_s": round(start_s, 3),
            "performers": self._performers or "this process",
            "factor": round(virtual_s / spent_s, 1),
            "factor_with_start": round(virtual_s / (spent_s + start_s), 1),
            "factor_busy": round(busy_s / spent_s, 1),
            "factor_by_processor_time": None if self._performers else round(virtual_s / worked_s, 1),
            "events_per_s": round(events / spent_s),
            "requests_per_s": round(requests / spent_s),
            "events_per_request": round(events / requests, 2) if requests else None,
            "trials_per_minute": round(len(trials) / spent_s * 60),
        }

    def text(self, trials: Sequence[Trial]) -> str:
        known = self.figures(trials)
        by = f", by {self._performers}" if self._performers else ""
        worked = known["factor_by_processor_time"]
        undisturbed = "" if worked is None else f" ({worked:.0f} x by processor time)"
        return (
            f"{known['trials']} trials, {known['virtual_s']:.0f} virtual seconds, in {known['wall_s']:.1f} s{by}:"
            f" {known['factor']:.0f} x real time{undisturbed}; {known['events_per_s']} events/s,"
            f" {known['requests_per_s']} requests/s, {known['trials_per_minute']} trials a minute\n"
            f"requests were in flight in {known['busy_s']:.1f} virtual seconds: {known['factor_busy']:.1f} x real time"
            f" of those; with {known['start_s']:.1f} s to start, {known['factor_with_start']:.0f} x of all"
        )

    def tell(self, trials: Sequence[Trial]) -> None:
        print(self.text(trials), file=sys.stderr)


def _sum(trials: Sequence[Trial], figure: str) -> float:
    return sum(finding.figures.get(figure, 0.0) for trial in trials for finding in trial.findings)
