"""Faults of the hypervisor, of the control plane and compounds, on a whole machine: each fires and is undone, and what
the guests saw stays right. What each does by itself is tested where it is done."""

import tomllib
from pathlib import Path
from typing import Final

import msgspec
import pytest

from runtime.chaos.checker import check
from runtime.chaos.experiment.model import Experiment
from runtime.chaos.experiment.schedule import draw
from runtime.chaos.experiment.trial import run_trial
from runtime.chaos.faults.catalogue import FAULTS
from runtime.chaos.history import Ending
from tests.machine.conftest import PATIENT

pytestmark = [pytest.mark.machine, pytest.mark.soak]  # each kind by itself: test_every_fault.py

_SECONDS: Final = 2
# (kind, target, more): all at once, as long as the load.
_LASTING: Final = (
    ("interrupt-duplicate", "*", ""),
    ("interrupt-storm", "guest1", "parameters = { rate = 200 }"),
    ("forge-partition-id", "guest2", ""),
    ("forge-connection-id", "guest2", ""),
    ("hypercall-garbage", "guest1", ""),
    ("memory-greed", "guest1", ""),
    ("forge-relid", "guest1", ""),
    ("forge-gpadl", "guest2", ""),
    ("clock-skew", "guest2", "parameters = { ppm = -100000 }"),
    ("console-flood", "root", ""),
    ("management-flood", "platform", ""),
)
_SHORT: Final = (
    ("interrupt-lost", "guest1", 50, 80),
    ("interrupt-delayed", "*", 150, 150),
    ("storm-under-takeover", "guest2", 350, 400),
    ("double-kill", "root", 1_000, 400),
)


def _experiment() -> Experiment:
    patient = [f"machine.{key}={value}" for key, value in PATIENT.items()]
    lines = ['[experiment]\nname = "all"', f"seconds = {_SECONDS}", f"set = {patient}"]
    lines.append("[workload]\nguests = 2")
    for kind, target, more in _LASTING:
        lines += ["[[fault]]", f'kind = "{kind}"', f'target = "{target}"', more]
    for kind, target, at_ms, for_ms in _SHORT:
        lines += ["[[fault]]", f'kind = "{kind}"', f'target = "{target}"']
        lines += [f"at_ms = [{at_ms}]", f"for_ms = {for_ms}"]
    return msgspec.convert(tomllib.loads("\n".join(lines)), Experiment)


def test_many_at_once_break_nothing_but_what_they_are_aimed_at(scratch: Path) -> None:
    experiment = _experiment()
    evidence, trouble = run_trial(experiment, draw(experiment, 1, FAULTS), None, scratch)
    fired = {fault.kind: fate.fired for fault, fate in zip(experiment.faults, evidence.fates, strict=True)}
    assert [kind for kind, count in fired.items() if not count] == [], (trouble, evidence.errors)
    assert trouble == ""
    assert evidence.exit_code == 0, evidence.errors
    assert evidence.left_behind == []
    assert evidence.all_of("fault.forgery_accepted") == []
    assert len(evidence.all_of("root.exited")) >= 3  # one for the storm, two for the double kill
    histories = [evidence.histories[guest.name] for guest in evidence.machine.guests_on("disk0")]
    assert all(history.ending is Ending.FINISHED for history in histories)
    verdict = check(histories, bound_s=20, image=evidence.values["disk0"])
    assert verdict.passed, verdict.violations
