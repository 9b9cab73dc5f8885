"""One simulated trial as a task: plain data in, plain data out. Workers reach it by this module's name."""

import gc
from collections.abc import Mapping
from typing import Any, Final

from partitions.simulated.plan import MachinePlan, left_out_of, planned
from partitions.simulated.planted import DEFECTS
from partitions.simulated.trial import Done, SimulatedTrial
from partitions.storage.vsp import StorageVsp
from runtime.chaos.experiment.checks.fifo import Fifo
from runtime.chaos.experiment.journal import Finding, Outcome, Trial
from runtime.chaos.experiment.model import Experiment
from runtime.chaos.experiment.performing import Task, judge, trial_of
from runtime.exits import CommandError

RULES: Final = "rules"  # the name of the check that every simulated trial has


def perform(table: Mapping[str, Any]) -> dict[str, Any]:
    """A task's table; the trial's comes back, the same every time."""
    return perform_task(Task.from_table(table)).to_table()


def perform_task(task: Task, server: type[StorageVsp] | None = None) -> Trial:
    """`server`: in the place of the one that `task.planted` names; None: that one."""
    try:
        experiment, plan = planned(task.experiment, task.folder, task.architecture, task.machine)
    except CommandError as error:
        return trial_of(task, None, (), str(error).splitlines()[0], 0.0)
    if server is None:
        server = DEFECTS[task.planted] if task.planted else StorageVsp
    collects = gc.isenabled()
    gc.disable()  # hardly anything dies in a circle while a trial runs, and looking for it takes a tenth of the time
    try:
        return _performed(task, experiment, plan, server)
    finally:  # by now all that the trial had is gone, and there is little left to look at
        if collects:
            gc.enable()


def _performed(task: Task, experiment: Experiment, plan: MachinePlan, server: type[StorageVsp]) -> Trial:
    done = SimulatedTrial(experiment, task.schedule, plan, task.seed, server).run()
    findings = (*_judge(experiment, done), _rules(done))
    return trial_of(task, done.evidence, findings, done.trouble, done.virtual_s)


def _judge(experiment: Experiment, done: Done) -> list[Finding]:
    """Nothing is said of messages where the guest that numbers them was left out: that check is not made."""
    unmade = {Fifo.name} if left_out_of(experiment) else set()
    return [one for one in judge(experiment, done.evidence) if one.check not in unmade]


def _rules(done: Done) -> Finding:
    """The invariants of the hypervisor's state machine: looked at after each death, and in the end."""
    figures = {
        "requests": float(done.requests),
        "turns": float(done.turns),
        "busy_s": round(done.busy_s, 6),
        "digest": float(int(done.digest[:12], 16)),
    }
    if done.broken_rule:
        return Finding(RULES, Outcome.VIOLATED, (done.broken_rule,), figures)
    return Finding(RULES, Outcome.PASSED, (), figures)
