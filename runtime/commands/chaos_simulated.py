"""What `partvisor chaos` says and asks about the deterministic mode."""

from __future__ import annotations

import importlib
import sys
import time
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.chaos.experiment.journal import Trial

PLANTED: Final = "partitions.simulated.planted"  # reached by name: the runtime imports nothing of partitions


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
    """Of a campaign, from its beginning on."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def text(self, trials: Sequence[Trial]) -> str:
        """What was done in that time."""
        spent_s = max(time.monotonic() - self._began, 1e-9)
        virtual_s = sum(trial.seconds for trial in trials)
        requests = sum(finding.figures.get("requests", 0.0) for trial in trials for finding in trial.findings)
        return (
            f"{len(trials)} trials, {virtual_s:.0f} virtual seconds, in {spent_s:.1f} s:"
            f" {virtual_s / spent_s:.0f} x real time, {requests / spent_s:.0f} requests/s,"
            f" {len(trials) / spent_s * 60:.0f} trials a minute"
        )

    def tell(self, trials: Sequence[Trial]) -> None:
        print(self.text(trials), file=sys.stderr)
