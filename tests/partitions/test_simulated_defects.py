"""Mistakes planted into the storage server are found by the deterministic mode; one of them by real processes, too."""

import json
import time
from functools import partial
from pathlib import Path

import pytest

from partitions.guests.verified import Plan
from partitions.simulated.performing import perform_task
from partitions.simulated.planted import DEFECTS, ReleasesFirst
from runtime.chaos.checker import check
from runtime.chaos.experiment.journal import Outcome, Trial
from runtime.chaos.experiment.performing import Task
from runtime.chaos.experiment.schedule import Schedule
from runtime.chaos.experiment.shrinking import Shrinker
from runtime.chaos.history import read_history
from runtime.chaos.register_conflicts import Kind
from tests.partitions.dying_root import DyingRoot
from tests.partitions.simulated_making import deaths, finding, tables, tasks, trials_of

TRIALS_MAX = 20
PATIENCE_S = 1.0


def _first_violated(name: str) -> Trial:
    for seed in range(1, TRIALS_MAX + 1):
        (trial,) = trials_of(tables(*deaths(), guests=1), seed=seed, server=DEFECTS[name])
        if finding(trial, "history").outcome is Outcome.VIOLATED:
            return trial
    raise AssertionError(f"{name}: not found in {TRIALS_MAX} trials")


@pytest.mark.parametrize("name", DEFECTS)
def test_each_planted_defect_is_found_and_shrinks_to_five_events_at_most(name: str) -> None:
    """What is left replays to the same journal line; without the defect it passes."""
    made = tables(*deaths(), guests=1)
    found = _first_violated(name)
    (task,) = tasks(made, seed=found.seed)
    server = DEFECTS[name]

    def run(schedule: Schedule) -> Trial:
        return perform_task(_with(task, schedule), server)

    shrunk = Shrinker(
        lambda schedule: finding(run(schedule), "history").outcome is Outcome.VIOLATED, tries=1, runs_max=40
    ).shrink(task.schedule)
    assert shrunk is not None
    assert len(shrunk.schedule) <= 5
    assert shrunk.failed == shrunk.tried
    assert run(shrunk.schedule).to_table() == run(shrunk.schedule).to_table()
    honest = perform_task(_with(task, shrunk.schedule))
    assert finding(honest, "history").outcome is Outcome.PASSED


def _with(task: Task, schedule: Schedule) -> Task:
    table = task.to_table() | {"schedule": [one.to_table() for one in schedule]}
    return Task.from_table(json.loads(json.dumps(table)))


def test_real_processes_find_the_same_defect(tmp_path: Path) -> None:
    """The very class that the deterministic mode was given, in roots that are killed at the same steps."""
    plan = Plan(seed=1, blocks=64, depth=8, operations=100_000, seconds=5, patience_s=PATIENCE_S)
    root = DyingRoot(tmp_path, [plan], 1, partial(ReleasesFirst, fast=False))
    with pytest.raises(AssertionError, match="guest 0 ended with 1"):
        root.run(until=time.monotonic() + 10)
    verdict = check([read_history(tmp_path / "history0")], bound_s=PATIENCE_S / 2)
    root.backend.close()
    assert verdict.counts[Kind.HUNG]
