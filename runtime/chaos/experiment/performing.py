"""One trial as a task: plain data in, plain data out, so that any worker on any machine can perform it."""

import importlib
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from runtime.chaos.experiment import fates
from runtime.chaos.experiment.checks.check import check_of, plans_of
from runtime.chaos.experiment.evidence import Evidence
from runtime.chaos.experiment.journal import Finding, Header, Outcome, Trial
from runtime.chaos.experiment.loading import experiment_of
from runtime.chaos.experiment.model import Experiment
from runtime.chaos.experiment.schedule import Injection, Schedule
from runtime.chaos.experiment.trial import run_trial
from runtime.chaos.interruption import interrupts_kept
from runtime.config.architecture import Architecture
from runtime.exits import CommandError
from runtime.machine.rundir import janitor

FOLDER_PREFIX: Final = "partvisor-trial-"
SIMULATOR: Final = "partitions.simulated.performing"


@dataclass(frozen=True, slots=True)
class Task:
    """One trial that is to be performed."""

    number: int
    seed: int
    architecture: str  # "": as the configuration says
    experiment: Mapping[str, Any]  # the file's tables
    folder: str  # where its relative paths start
    schedule: Schedule
    keep: str = ""  # a folder for what the trial writes; "": it is removed
    simulated: bool = False  # in the deterministic mode, which writes nothing
    planted: str = ""  # a defect of partitions.simulated.planted
    machine: str = ""  # the text of the configuration that the experiment names: its file may not be here

    def to_table(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "seed": self.seed,
            "architecture": self.architecture,
            "experiment": dict(self.experiment),
            "folder": self.folder,
            "schedule": [injection.to_table() for injection in self.schedule],
            "keep": self.keep,
            "simulated": self.simulated,
            "planted": self.planted,
            "machine": self.machine,
        }

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> "Task":
        schedule = tuple(Injection.from_table(one) for one in table["schedule"])
        return cls(**{**table, "schedule": schedule})


def task_of(header: Header, trial: Trial, schedule: Schedule) -> Task:
    """The same trial again, or another schedule in its place."""
    return Task(
        trial.number,
        trial.seed,
        trial.architecture,
        header.experiment,
        header.folder,
        schedule,
        simulated=header.simulated,
        planted=header.planted,
        machine=header.machine,
    )


def perform(table: Mapping[str, Any]) -> dict[str, Any]:
    """Perform a task's table; the trial's table comes back. Whatever goes wrong is in it."""
    task = Task.from_table(table)
    return perform_task(task).to_table()


def perform_task(task: Task) -> Trial:
    """In this process, which waits for it."""
    if (
        task.simulated
    ):  # by name, as the platform starts a root: the runtime knows nothing of what is in partitions
        return Trial.from_table(importlib.import_module(SIMULATOR).perform(task.to_table()))
    with interrupts_kept():
        return _perform_in_folder(task)


def _perform_in_folder(task: Task) -> Trial:
    experiment = experiment_of(task.experiment, Path(task.folder), "the experiment")
    architecture = Architecture(task.architecture) if task.architecture else None
    began = time.monotonic()
    folder = Path(task.keep or tempfile.mkdtemp(prefix=FOLDER_PREFIX))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if task.keep:
            return _perform(task, experiment, architecture, folder, began)
        with janitor(folder):
            return _perform(task, experiment, architecture, folder, began)
    finally:
        if not task.keep:
            shutil.rmtree(folder, ignore_errors=True)


def _perform(
    task: Task, experiment: Experiment, architecture: Architecture | None, folder: Path, began: float
) -> Trial:
    try:
        evidence, trouble = run_trial(experiment, task.schedule, architecture, folder, task.machine)
    except (CommandError, OSError) as error:
        return trial_of(task, None, (), str(error).splitlines()[0], time.monotonic() - began)
    findings = tuple(judge(experiment, evidence))
    return trial_of(task, evidence, findings, trouble, time.monotonic() - began)


def judge(experiment: Experiment, evidence: Evidence) -> list[Finding]:
    findings = []
    for plan in plans_of(experiment):
        check, parameters = check_of(plan)
        try:
            findings.append(check.judge(evidence, parameters))
        except Exception as error:  # a check may be anybody's code; one that raises has decided nothing
            text = f"the check itself failed: {type(error).__name__}: {error}"
            findings.append(Finding(plan.kind, Outcome.INCONCLUSIVE, (text[:400],)))
    return findings


def trial_of(
    task: Task, evidence: Evidence | None, findings: tuple[Finding, ...], trouble: str, seconds: float
) -> Trial:
    histories = [] if evidence is None else list(evidence.histories.values())
    own = () if evidence is None else evidence.fates
    began_ns = 0 if evidence is None else evidence.began_ns
    return Trial(
        task.number,
        task.seed,
        task.architecture,
        task.schedule,
        own,
        findings,
        fates.outages_ms(own, histories, began_ns),
        fates.latency_points(histories, began_ns),
        () if evidence is None else fates.timeline_of(evidence.events, began_ns),
        round(seconds, 3),
        trouble,
    )
