"""All trials of one `partvisor blast`, and what is said of those of one cell together."""

import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from runtime.blast.faults import Fault
from runtime.blast.findings import ROLES, Seen, Trial
from runtime.blast.promises import Promise, broken
from runtime.blast.trial import AFTER, Order, run_trial
from runtime.config.architecture import Architecture
from runtime.failure_reason import reason_of

SEED_END: Final = 1 << 18  # a history's seeds, 16 of a trial, have room below their own end
FIRST_GUESS_S: Final = 5.0  # of a trial, for the first estimate

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    source: str
    target: str
    architectures: tuple[Architecture, ...] = tuple(Architecture)
    faults: tuple[Fault, ...] = tuple(Fault)
    overrides: tuple[str, ...] = ()
    rounds: int = 1
    seed: int = 1
    after: int = AFTER

    def orders(self) -> list[Order]:
        """Round by round, in an order of the seed's, so that what disturbs the host has no favourite."""
        found = []
        for number in range(self.rounds):
            cells = [(fault, architecture) for fault in self.faults for architecture in self.architectures]
            random.Random(f"{self.seed} {number}").shuffle(cells)
            found += [
                Order(
                    self.source,
                    self.overrides,
                    architecture,
                    self.target,
                    fault,
                    (self.seed + number) % SEED_END,
                    self.after,
                )
                for fault, architecture in cells
            ]
        return found


@dataclass(frozen=True, slots=True)
class Cell:
    """All trials of one fault under one architecture; at least one."""

    architecture: Architecture
    fault: Fault
    trials: tuple[Trial, ...]

    @property
    def struck(self) -> tuple[Trial, ...]:
        return tuple(trial for trial in self.trials if trial.struck is not None)

    @property
    def dead(self) -> tuple[str, ...]:
        """Roles, of any trial."""
        found = {role for trial in self.struck for role in trial.dead}
        return tuple(role for role in ROLES if role in found)

    @property
    def machine_down(self) -> bool:
        return any(trial.machine_down for trial in self.struck)

    @property
    def unbounded(self) -> bool:
        return any(trial.unbounded for trial in self.struck)

    @property
    def broken(self) -> tuple[Promise, ...]:
        return tuple(dict.fromkeys(promise for trial in self.trials for promise in broken(trial)))

    def wait_ms(self, target: bool) -> float | None:
        """The median. None: in some trial it never ended."""
        sides = [trial.target if target else trial.bystander for trial in self.struck]
        if not sides or not all(side.serves for side in sides):
            return None
        return statistics.median(side.wait_ms for side in sides)

    def back_ms(self) -> float | None:
        """Of the target's guests, as above."""
        backs = [trial.target.back_ms for trial in self.struck]
        known = [back for back in backs if back is not None]
        return statistics.median(known) if known and len(known) == len(backs) else None

    def wrong(self, target: bool) -> Counter[str]:
        """Blocks by kind, over all trials."""
        found: Counter[str] = Counter()
        for trial in self.struck:
            found.update((trial.target if target else trial.bystander).wrong)
        return found


@dataclass(frozen=True, slots=True)
class Result:
    plan: Plan
    started_unix_ns: int
    seconds: float
    trials: tuple[Trial, ...]

    def cell(self, fault: Fault, architecture: Architecture) -> Cell:
        own = [trial for trial in self.trials if trial.fault == fault and trial.architecture == architecture]
        return Cell(architecture, fault, tuple(own))

    @property
    def cells(self) -> list[Cell]:
        plan = self.plan
        return [self.cell(fault, each) for fault in plan.faults for each in plan.architectures]

    @property
    def contradictions(self) -> list[str]:
        """Of what was promised, a line each."""
        return [
            f"{cell.architecture}, {cell.fault}: contradicts that {promise}"
            for cell in self.cells
            for promise in cell.broken
        ]

    @property
    def troubles(self) -> list[str]:
        """Trials that showed less than they should."""
        return [
            f"{trial.architecture}, {trial.fault}, seed {trial.seed}: {trial.trouble}"
            for trial in self.trials
            if trial.trouble
        ]

    @property
    def inconclusive(self) -> bool:
        """A fault that did not happen shows nothing."""
        return any(trial.struck is None for trial in self.trials)

    def to_table(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "config": plan.source,
            "target": plan.target,
            "seed": plan.seed,
            "rounds": plan.rounds,
            "after_requests": plan.after,
            "started_unix_ns": self.started_unix_ns,
            "seconds": self.seconds,
            "cells": [_cell_table(cell) for cell in self.cells],
            "contradictions": self.contradictions,
            "troubles": self.troubles,
        }


def _cell_table(cell: Cell) -> dict[str, Any]:
    return {
        "architecture": cell.architecture.value,
        "fault": cell.fault.value,
        "dead": list(cell.dead),
        "machine_down": cell.machine_down,
        "target_wait_ms": cell.wait_ms(target=True),
        "target_back_ms": cell.back_ms(),
        "target_wrong": dict(cell.wrong(target=True)),
        "bystander_wait_ms": cell.wait_ms(target=False),
        "bystander_wrong": dict(cell.wrong(target=False)),
        "unbounded": cell.unbounded,
        "contradicts": [promise.value for promise in cell.broken],
        "trials": [trial.to_table() for trial in cell.trials],
    }


def blast(plan: Plan, progress: Progress, cell_text: Callable[[Cell], str]) -> Result:
    """Everything that the plan asks for.

    A trial that could not be carried out is one of those that show nothing, with its reason; but for the first one.

    Raises:
        ConfigError, OSError: the first machine could not be started.
        KeyboardInterrupt: no machine is left.
    """
    orders = plan.orders()
    started_unix_ns, began = time.time_ns(), time.monotonic()
    trials: list[Trial] = []
    progress(f"trials: {len(orders)}, about {_minutes(len(orders) * FIRST_GUESS_S)}")
    for number, order in enumerate(orders, 1):
        began_trial = time.monotonic()
        try:
            trial = run_trial(order)
        except Exception as error:
            if not trials:
                raise
            trial = _not_carried_out(order, time.monotonic() - began_trial, reason_of(error))
        trials.append(trial)
        spent = time.monotonic() - began
        left = _minutes(spent / number * (len(orders) - number))
        words = cell_text(Cell(trial.architecture, trial.fault, (trial,)))
        progress(f"{number}/{len(orders)}  {trial.architecture}, {trial.fault}: {words}  (left: {left})")
    return Result(plan, started_unix_ns, time.monotonic() - began, tuple(trials))


def _not_carried_out(order: Order, seconds: float, reason: str) -> Trial:
    nothing = Seen(0, 0.0, 0.0, None, 0, {}, ())
    return Trial(
        architecture=order.architecture,
        fault=order.fault,
        seed=order.seed,
        seconds=seconds,
        struck=None,
        deaths=(),
        machine_down="",
        target=nothing,
        bystander=nothing,
        left_behind=(),
        trouble=f"it could not be carried out: {reason}",
    )


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
