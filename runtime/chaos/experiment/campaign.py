"""A campaign: many trials of one experiment, each with a seed of its own, and their journal."""

import importlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from platform import python_version, release
from typing import Any, Final, TextIO

import msgspec

from runtime.chaos.experiment.journal import Header, Outcome, Trial
from runtime.chaos.experiment.loading import ExperimentError
from runtime.chaos.experiment.model import Experiment, Statistic, Threshold
from runtime.chaos.experiment.performing import Task
from runtime.chaos.experiment.schedule import draw
from runtime.chaos.experiment.workers import Workers
from runtime.chaos.faults.catalogue import FAULTS

_SIMULATED_FAULTS: Final = "partitions.simulated.faults"  # by name: the runtime imports nothing of partitions


@dataclass(frozen=True, slots=True)
class Campaign:
    """What is to be done."""

    experiment: Experiment
    tables: Mapping[str, Any]  # the experiment's file
    source: Path
    trials: int
    seed: int
    keep: Path | None = None  # a folder that gets a folder of each trial
    simulated: bool = False
    planted: str = ""

    @property
    def header(self) -> Header:
        versions = {"partvisor": version("partvisor"), "python": python_version(), "kernel": release()}
        folder = str(self.source.absolute().parent)
        return Header(
            self.tables,
            str(self.source),
            folder,
            self.seed,
            self.trials,
            versions,
            self.simulated,
            self.planted,
            machine_text(self.experiment),
            self.left_out,
        )

    @property
    def left_out(self) -> tuple[str, ...]:
        """Kinds of the experiment that the simulated mode has not, in order: they are never drawn.

        Raises ExperimentError: nothing would be left, so its trials would pass and show nothing.
        """
        if not self.simulated:
            return ()
        own = {plan.kind for plan in self.experiment.faults}
        known = own.intersection(importlib.import_module(_SIMULATED_FAULTS).simulated_kinds())
        if own and not known:
            raise ExperimentError(
                f"{self.source}: none of its faults can be simulated ({', '.join(sorted(own))});"
                " run it without --simulated"
            )
        return tuple(sorted(own - known))

    def tasks(self) -> Iterator[Task]:
        """In order; with several architectures each seed once under each of them."""
        number = 0
        machine = machine_text(self.experiment)
        left_out = self.left_out
        for index in range(self.trials):
            seed = self.seed + index
            schedule = draw(self.experiment, seed, FAULTS, left_out)
            for architecture in self.experiment.experiment.architectures or ("",):
                number += 1
                keep = str((self.keep / f"trial{number}").absolute()) if self.keep else ""
                folder = str(self.source.absolute().parent)
                yield Task(
                    number,
                    seed,
                    str(architecture),
                    self.tables,
                    folder,
                    schedule,
                    keep,
                    self.simulated,
                    self.planted,
                    machine,
                )

    @property
    def count(self) -> int:
        """Of trials, over all architectures."""
        return self.trials * max(len(self.experiment.experiment.architectures), 1)


def machine_text(experiment: Experiment) -> str:
    """Of the configuration that it names, so that a journal needs no other file; "": it names none."""
    path = experiment.experiment.machine
    if path is None:
        return ""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ExperimentError(f"{path}: {error}") from None


def thresholds_of(header: Header) -> tuple[Threshold, ...]:
    """Those of the experiment that a journal is of."""
    return msgspec.convert(header.experiment.get("threshold", []), tuple[Threshold, ...])


def run_campaign(campaign: Campaign, workers: Workers, journal: Path) -> Iterator[Trial]:
    """Perform it, write its journal, and yield each trial as it ends."""
    header = json.dumps(campaign.header.to_table())  # what is refused here leaves an earlier journal alone
    with _opened(journal) as file:
        file.write(header + "\n")
        file.flush()
        for table in workers.perform(task.to_table() for task in campaign.tasks()):
            file.write(json.dumps(table) + "\n")
            file.flush()
            yield Trial.from_table(table)


def _opened(journal: Path) -> TextIO:
    try:
        return journal.open("w")
    except OSError as error:
        raise ExperimentError(f"{journal}: {error.strerror}; name another: --journal") from None


def statistics(trials: list[Trial]) -> dict[Statistic, float]:
    """Over all trials."""
    outages = sorted(outage for trial in trials for outage in trial.outages_ms)
    figures = {
        Statistic.VIOLATED: float(sum(trial.outcome is Outcome.VIOLATED for trial in trials)),
        Statistic.INCONCLUSIVE: float(sum(trial.outcome is Outcome.INCONCLUSIVE for trial in trials)),
    }
    if outages:
        figures |= {
            Statistic.OUTAGE_P50_MS: percentile(outages, 50),
            Statistic.OUTAGE_P99_MS: percentile(outages, 99),
            Statistic.OUTAGE_MAX_MS: outages[-1],
        }
    return figures


def percentile(ordered: list[float], percent: float) -> float:
    """Of values in order, of which there is one at least."""
    return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]


def broken(thresholds: tuple[Threshold, ...], figures: Mapping[Statistic, float]) -> list[str]:
    """The thresholds that do not hold, a line each. One about outages holds where there were none."""
    return [
        f"{threshold.of}: {figures[threshold.of]:g}, at most {threshold.at_most} wanted"
        for threshold in thresholds
        if figures.get(threshold.of, 0.0) > threshold.at_most
    ]


def verdict(trials: list[Trial], thresholds: tuple[Threshold, ...]) -> Outcome:
    """Of the whole. A broken threshold is a violation; no trial at all shows nothing."""
    if not trials:
        return Outcome.INCONCLUSIVE
    if broken(thresholds, statistics(trials)):
        return Outcome.VIOLATED
    return Outcome.worst(trial.outcome for trial in trials)
