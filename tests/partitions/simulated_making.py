"""Simulated trials for tests: an experiment's tables in, trials out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from partitions.simulated.performing import perform_task
from partitions.storage.vsp import StorageVsp
from runtime.chaos.experiment.campaign import Campaign
from runtime.chaos.experiment.journal import Finding, Trial
from runtime.chaos.experiment.loading import experiment_of
from runtime.chaos.experiment.performing import Task

Tables = dict[str, Any]
STEPS = ["take", "execute", "commit", "publish", "release", "signal"]


def tables(*faults: Tables, architecture: str = "", **workload: Any) -> Tables:
    """A dense load for some seconds: much of the time something is in flight."""
    made: Tables = {
        "experiment": {"name": "test"},
        "workload": {"guests": 2, "blocks": 64} | workload,
        "simulated": {"seconds": 3, "think_ms": 120, "burst": 8},
        "fault": list(faults),
    }
    if architecture:
        made["experiment"]["architectures"] = [architecture]
    return made


def tasks(made: Tables, trials: int = 1, seed: int = 1) -> Iterator[Task]:
    folder = Path("/nowhere")
    experiment = experiment_of(made, folder, "test")
    yield from Campaign(experiment, made, folder / "test.toml", trials, seed, simulated=True).tasks()


def trials_of(
    made: Tables, trials: int = 1, seed: int = 1, server: type[StorageVsp] | None = None
) -> list[Trial]:
    return [perform_task(task, server) for task in tasks(made, trials, seed)]


def finding(trial: Trial, check: str) -> Finding:
    (found,) = (one for one in trial.findings if one.check == check)
    return found


def deaths(count: int = 4, target: str = "root") -> tuple[Tables, ...]:
    """At steps and at any instant."""
    at_step = {
        "kind": "kill-at-step",
        "target": target,
        "at_ms": [0, 2800],
        "count": count,
        "parameters": {"step": {"any": STEPS}},
        "knobs": {"space": {"from": 0, "to": 9}},
    }
    return at_step, {"kind": "kill", "target": target, "at_ms": [0, 2800], "count": count}
