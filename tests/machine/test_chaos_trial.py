"""Faults on a whole machine: each fires, is undone, and what the guests saw stays right."""

import tomllib
from pathlib import Path

import msgspec
import pytest

from runtime.chaos.checker import check
from runtime.chaos.experiment.model import Experiment
from runtime.chaos.experiment.schedule import draw
from runtime.chaos.experiment.trial import run_trial
from runtime.chaos.faults.catalogue import FAULTS
from runtime.chaos.history import Ending

pytestmark = pytest.mark.machine

PROCESSES = """
[experiment]
name = "processes"
set = ["machine.hang_ms=60000", "machine.stuck_ms=60000"]
seconds = 2
[workload]
guests = 2
bystander = true
[[fault]]
kind = "kill"
target = "root"
at_ms = [50, 300]
[[fault]]
kind = "kill-in-recovery"
target = "root"
knobs = { times = 1 }
[[fault]]
kind = "stutter"
target = "guest1"
at_ms = [100]
for_ms = 400
[[fault]]
kind = "signal-storm"
target = "guest2"
for_ms = 600
[[fault]]
kind = "stop"
target = "bystander"
at_ms = [200]
for_ms = 200
"""


def test_processes_are_broken_and_healed_and_no_data_is_lost(scratch: Path) -> None:
    experiment = msgspec.convert(tomllib.loads(PROCESSES), Experiment)
    schedule = draw(experiment, 1, FAULTS)
    evidence, trouble = run_trial(experiment, schedule, None, scratch)
    assert trouble == ""
    assert evidence.exit_code == 0, evidence.errors
    assert evidence.left_behind == []
    assert all(fate.fired and fate.healed_ms is not None for fate in evidence.fates)
    assert [event["fields"]["reason"] for event in evidence.all_of("root.exited")].count(
        "signal SIGKILL"
    ) == 1
    assert len(evidence.all_of("root.restored")) == 1  # the second was killed before it had taken over
    for device in ("disk0", "disk1"):
        guests = evidence.machine.guests_on(device)
        histories = [evidence.histories[guest.name] for guest in guests]
        assert all(history.ending is Ending.FINISHED for history in histories)
        verdict = check(histories, bound_s=20, image=evidence.values[device])
        assert verdict.passed, verdict.violations


def test_what_is_not_there_is_refused_and_the_trial_is_not_green(scratch: Path) -> None:
    text = '[experiment]\nname = "nobody"\nseconds = 1\n[[fault]]\nkind = "kill"\ntarget = "nobody"\n'
    experiment = msgspec.convert(tomllib.loads(text), Experiment)
    evidence, trouble = run_trial(experiment, draw(experiment, 1, FAULTS), None, scratch)
    assert "nobody: no process of that name runs" in trouble
    assert evidence.fates[0].fired == 0
