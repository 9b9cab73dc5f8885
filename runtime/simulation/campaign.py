"""Runs of one seed after the other, until there are enough, the time is up, or one fails."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from runtime.simulation.seeded_run import Outcome, SeededRun


@dataclass(slots=True)
class Campaign:
    """What came of them so far. Times are of this process's CPU, so a busy host does not look like a slow one."""

    runs: int = 0
    inputs: int = 0  # hypercalls and events
    refusals: int = 0
    messages: int = 0
    population_max: int = 0
    cpu_s: float = 0.0
    statuses: int = 0  # pairs of (call code, status) that came up
    failure: Outcome | None = None
    digests: dict[int, str] = field(default_factory=dict)  # by seed

    @property
    def inputs_per_minute(self) -> float:
        return self.inputs / self.cpu_s * 60 if self.cpu_s else 0.0


def run_campaign(
    first_seed: int,
    *,
    runs: int | None,
    seconds: float | None,
    steps: int,
    population: int,
    progress: Callable[[Campaign], None] = lambda campaign: None,
) -> Campaign:
    """Seeds from the first one on. Stops after so many runs or seconds, whichever is given, or at the first failure."""
    campaign = Campaign()
    seen: set[tuple[int, int]] = set()
    deadline = None if seconds is None else time.monotonic() + seconds
    collects = gc.isenabled()
    gc.disable()  # nothing here goes in circles, and a collector that looks at it all takes a tenth of the time
    try:
        while runs is None or campaign.runs < runs:
            started_s = time.process_time()
            run = SeededRun(first_seed + campaign.runs, population)
            outcome = run.run(steps, deadline)
            campaign.cpu_s += time.process_time() - started_s
            campaign.runs += 1
            campaign.inputs += outcome.inputs
            campaign.refusals += outcome.refusals
            campaign.messages += outcome.received
            campaign.population_max = max(campaign.population_max, outcome.population_max)
            seen |= run.simulation.statuses
            campaign.statuses = len(seen)
            campaign.digests[outcome.seed] = outcome.digest
            if outcome.violation is not None:
                campaign.failure = outcome
                break
            progress(campaign)
            if deadline is not None and time.monotonic() >= deadline:
                break
            gc.collect()
    finally:
        if collects:
            gc.enable()
    return campaign
