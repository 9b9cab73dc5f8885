"""What `partvisor chaos` prints: progress, tables, schedules, verdicts."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from runtime.exits import ExitCode
from runtime.reports import print_json, print_table

if TYPE_CHECKING:
    from runtime.chaos.experiment.campaign import Campaign
    from runtime.chaos.experiment.journal import Header, Outcome, Trial
    from runtime.chaos.experiment.schedule import Schedule

EXIT_INCONCLUSIVE: Final = 3
COMPLAINTS_MAX: Final = 20
LOG_LINE_S: Final = (
    5.0  # where progress goes into a file: a line for each trial that is not green, else so often
)


def worst_of(trials: Sequence[Trial]) -> Outcome:
    from runtime.chaos.experiment.journal import Outcome

    return Outcome.worst(trial.outcome for trial in trials) if trials else Outcome.INCONCLUSIVE


def exit_code(outcome: Outcome) -> int:
    return {"passed": ExitCode.DONE, "violated": ExitCode.FAILED}.get(outcome.value, EXIT_INCONCLUSIVE)


def tell(text: str | None) -> None:
    """Progress, on stderr: one line that changes on a terminal. None: it is over."""
    if not sys.stderr.isatty():
        if text is not None:
            print(text, file=sys.stderr, flush=True)
        return
    width = os.get_terminal_size(sys.stderr.fileno()).columns
    print(f"\r\x1b[2K{(text or '')[: width - 1]}", end="", file=sys.stderr, flush=True)


class Progress:
    """Of a campaign: how far it is, what was not green, and how long the rest will take."""

    def __init__(self, count: int) -> None:
        self.trials: list[Trial] = []
        self._count, self._began, self._told, self._bad = count, time.monotonic(), 0.0, 0
        tell(f"0 of {count} trials done")

    def done(self, trial: Trial) -> None:
        self.trials.append(trial)
        now, number = time.monotonic(), len(self.trials)
        is_bad = trial.outcome.value != "passed"
        self._bad += is_bad
        last = number == self._count
        if not (is_bad or last or sys.stderr.isatty()) and now - self._told < LOG_LINE_S:
            return
        self._told = now
        spent = now - self._began
        left = spent / number * (self._count - number)
        tell(
            f"{number} of {self._count} trials done, {self._bad} not green; the last: {trial.outcome.value};"
            f" {spent:.0f} s gone, about {left:.0f} s to go"
        )


def tell_shrinking(faults: int, runs: int) -> None:
    tell(f"{faults} faults tried, {runs} trials")


def conclude(
    done: list[Trial],
    campaign: Campaign,
    journal: Path,
    as_json: bool,
    speed: Mapping[str, Any] | None = None,
) -> int:
    """`speed`: of the deterministic mode."""
    from runtime.chaos.experiment.campaign import broken, statistics, verdict
    from runtime.chaos.experiment.journal import Outcome

    worst = verdict(done, campaign.experiment.thresholds)
    complaints = broken(campaign.experiment.thresholds, statistics(done))
    if as_json:
        more = {"broken": complaints, "journal": str(journal)} | ({"speed": speed} if speed else {})
        print_json(summary(done, campaign.header, worst) | more)
    else:
        print_summary(done, complaints, campaign.left_out)
        print(f"{worst.value}; the journal is {journal}")
        if any(trial.outcome is Outcome.VIOLATED for trial in done):
            print(f"partvisor chaos shrink {journal}")
    return exit_code(worst)


def summary(trials: list[Trial], header: Header, worst: Outcome) -> dict[str, Any]:
    from runtime.chaos.experiment.campaign import statistics
    from runtime.chaos.experiment.tally import by_architecture, by_check, by_fault, complaints

    return {
        "experiment": header.experiment.get("experiment", {}).get("name"),
        "seed": header.seed,
        "trials": len(trials),
        "outcome": worst.value,
        "statistics": {name.value: round(value, 3) for name, value in statistics(trials).items()},
        "left_out": list(header.left_out),
        "faults": [tally.row() for tally in by_fault(trials)],
        "checks": by_check(trials),
        "architectures": by_architecture(trials),
        "complaints": complaints(trials, COMPLAINTS_MAX),
    }


def print_summary(trials: list[Trial], broken: Sequence[str] = (), left_out: Sequence[str] = ()) -> None:
    """Tables, and why it is not all green. `broken`: thresholds. `left_out`: kinds that are not simulated."""
    from runtime.chaos.experiment.tally import by_architecture, by_check, by_fault, complaints

    sections: list[tuple[Callable[[], list[dict[str, Any]]], str]] = [
        (lambda: [tally.row() for tally in by_fault(trials)], "no fault was injected"),
        (lambda: by_check(trials), "no check was made"),
        (lambda: by_architecture(trials), "no trial was run"),
    ]
    for rows, nothing in sections:
        print_table(
            [{key: "-" if value is None else value for key, value in row.items()} for row in rows()], nothing
        )
        print()
    for line in complaints(trials, COMPLAINTS_MAX):
        print(line)
    for line in broken:
        print(f"threshold broken: {line}")
    _print_left_out(left_out)


def _print_left_out(kinds: Sequence[str]) -> None:
    if kinds:
        print(f"cannot be simulated, left out of every trial: {', '.join(kinds)}")


def print_plans(campaign: Campaign, as_json: bool) -> None:
    tasks = list(campaign.tasks())
    if as_json:
        print_json({"trials": [task.to_table() for task in tasks]})
        return
    _print_left_out(campaign.left_out)
    for task in tasks:
        print(f"trial {task.number}, seed {task.seed}{', ' + task.architecture if task.architecture else ''}")
        print_schedule(task.schedule)


def print_schedule(schedule: Schedule) -> None:
    for injection in schedule:
        order, moment = injection.order, injection.moment
        when = f"{moment.after_ms} ms"
        if moment.on:
            when += f" after {moment.on}" + (f" number {moment.nth}" if moment.nth > 1 else "")
        parameters = "".join(f" {name}={value}" for name, value in order.parameters.items())
        knobs = "".join(
            f" {name}={value}"
            for name, value in order.knobs.to_table().items()
            if value != type(order.knobs)().to_table()[name]
        )
        until = "" if injection.for_ms is None else f", for {injection.for_ms} ms"
        print(f"  {order.number}. {when}: {order.kind} of {order.target}{parameters}{knobs}{until}")


def print_trial(trial: Trial) -> None:
    from runtime.chaos.experiment.tally import complaints

    print(f"trial {trial.number} (seed {trial.seed}): {trial.outcome.value}, {trial.seconds:.1f} s")
    for line in complaints([trial], COMPLAINTS_MAX):
        print(f"  {line}")
