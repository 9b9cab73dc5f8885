"""The deterministic mode: the same seed does the same, honest servers pass, and every fault does what it says."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from partitions.simulated.faults import simulated_kinds
from partitions.simulated.performing import perform_task
from runtime.chaos.experiment.journal import Outcome
from runtime.chaos.experiment.loading import experiment_of
from runtime.chaos.experiment.schedule import draw
from runtime.chaos.faults.catalogue import FAULTS
from runtime.chaos.faults.kinds import Carrier, Group
from tests.partitions.simulated_making import Tables, deaths, finding, tables, tasks, trials_of

NEEDS_A_DEATH = (
    "slow-start",
    "crash-loop",
    "kill-in-recovery",
    "interrupt-lost-across-reconnect",
    "synic-message-lost-across-reconnect",
)
SEED = 1  # from here on, of trials in which a root takes over while a channel is closing
ARCHITECTURES = ("microkernelized", "disaggregated")
WRONG_DATA = {  # what an honest checker cannot pass
    "storage-lost-write",
    "storage-torn-write",
    "storage-misdirected-write",
    "storage-misdirected-read",
    "storage-corrupt-read",
    "storage-corrupt-write",
    "storage-stale-read",
}


def _server(architecture: str) -> str:
    return "root" if architecture == "microkernelized" else "disk0"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_seed_does_the_same_in_any_process(architecture: str) -> None:
    """The whole line of the journal is the same, and with it a digest of every event and of every request."""
    made = tables(*deaths(2, _server(architecture)), architecture=architecture)
    (task,) = tasks(made, seed=7)
    code = (
        "import json,sys; from partitions.simulated.performing import perform;"
        "print(json.dumps(perform(json.load(sys.stdin))))"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(task.to_table()),
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "1234"},
    )
    here, again = trials_of(made, seed=7), trials_of(made, seed=7)
    assert here[0].to_table() == again[0].to_table() == json.loads(elsewhere.stdout)
    other = trials_of(made, seed=8)[0]
    assert finding(other, "rules").figures["digest"] != finding(here[0], "rules").figures["digest"]


@pytest.mark.parametrize("policy", ["standby", "restart"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_data_is_lost_whatever_dies_when(architecture: str, policy: str) -> None:
    """Roots, drivers and steps. Two deaths may meet, and the second then finds nobody; that is no violation."""
    faults = deaths(3, _server(architecture)) + deaths(1, "root")[1:]
    made = tables(*faults, architecture=architecture, on_root_failure=policy)
    struck = 0
    for trial in trials_of(made, 3):
        assert trial.outcome is not Outcome.VIOLATED, (trial.seed, trial.findings)
        struck += sum(bool(fate.fired) for fate in trial.fates)
        assert finding(trial, "history").figures["operations"] > 100
    assert struck > 12


def test_a_machine_that_halts_with_its_root_keeps_what_was_acknowledged() -> None:
    (trial,) = trials_of(tables(deaths(1)[1], on_root_failure="halt"))
    assert finding(trial, "history").outcome is Outcome.PASSED
    assert [kind for _, kind, _ in trial.timeline].count("machine.ending") == 1


def _target_of(kind: str) -> str:
    """Whom a kind is aimed at, where the machine is as small as it can be."""
    group, carrier = FAULTS[kind].group, FAULTS[kind].carrier
    if kind in ("storm-under-takeover", "silence-across-reconnect"):
        return "guest1"
    if group in (Group.STORAGE, Group.RING, Group.MEMORY) or "disk" in kind or "lies" in kind:
        return "disk0"
    if group is Group.MESSAGE:
        return "reopening"
    if group is Group.AUTHORITY or kind.startswith("clock"):
        return "guest1"
    assert carrier is not Carrier.GUEST
    return "root"


@pytest.mark.parametrize("kind", simulated_kinds())
def test_each_kind_fires_is_healed_and_does_what_it_says(kind: str) -> None:
    """A medium that lies is found out; everything else costs time, and no data."""
    fault: Tables = {"kind": kind, "target": _target_of(kind), "at_ms": [500], "for_ms": 2000}
    faults = [fault]
    if FAULTS[kind].group in (Group.STORAGE, Group.MESSAGE):
        fault["knobs"] = {"times": 5}
    if kind in NEEDS_A_DEATH:
        fault["knobs"] = {"times": 2}
        faults.append({"kind": "kill", "target": "root", "at_ms": [1000]})
    made = tables(*faults)
    if FAULTS[kind].group is Group.MESSAGE:  # somebody has to say something
        made["workload"] = made.get("workload", {}) | {"reopening": True}
    (trial,) = trials_of(made)
    assert trial.trouble == ""
    fate = trial.fates[0]
    assert fate.fired
    assert fate.healed_ms is not None
    assert fate.recovered_ms is not None
    wanted = Outcome.VIOLATED if kind in WRONG_DATA else Outcome.PASSED
    assert finding(trial, "history").outcome is wanted, trial.findings
    assert finding(trial, "liveness").outcome is Outcome.PASSED


def test_a_stopped_root_is_hung_and_replaced() -> None:
    (trial,) = trials_of(tables({"kind": "stop", "target": "root", "at_ms": [500]}))
    kinds = [kind for _, kind, _ in trial.timeline]
    assert kinds.count("root.hung") == kinds.count("root.restored") == 1
    assert trial.outcome is Outcome.PASSED


def test_a_medium_that_hangs_for_ever_ends_its_server_and_then_goes_on() -> None:
    (trial,) = trials_of(
        tables({"kind": "storage-stuck", "target": "disk0", "at_ms": [100], "knobs": {"times": 1}})
        | {"simulated": {"seconds": 8, "think_ms": 40}}
    )
    kinds = [kind for _, kind, _ in trial.timeline]
    assert "root.stuck" in kinds
    assert "root.restored" in kinds
    assert finding(trial, "history").outcome is Outcome.PASSED


def test_a_power_cut_is_found_where_nothing_was_flushed() -> None:
    """What the volatile cache held had been acknowledged; it is gone with the server, and the check says so."""
    fault = {
        "kind": "storage-power-cut",
        "target": "disk0",
        "at_ms": [500],
        "knobs": {"space": 40, "times": 1},
    }
    (trial,) = trials_of(tables(fault))
    assert trial.fates[0].fired == 1
    assert finding(trial, "history").outcome is Outcome.VIOLATED


def test_what_the_mode_does_not_have_is_inconclusive_and_never_green() -> None:
    """A schedule may have what a campaign would never draw: that of a journal of real processes, say."""
    absent = next(name for name in FAULTS if name not in simulated_kinds())
    made = tables({"kind": absent, "target": "root", "at_ms": [10]})
    experiment = experiment_of(made, Path("/nowhere"), "test")
    (task,) = tasks(tables())
    trial = perform_task(replace(task, schedule=draw(experiment, 1, FAULTS)))
    assert trial.outcome is Outcome.INCONCLUSIVE
    assert f"{absent} is not in the simulated mode" in trial.trouble
    (trial,) = trials_of(tables(architecture="hosted"))
    assert trial.outcome is Outcome.INCONCLUSIVE
    assert "the hosted architecture is not in the simulated mode" in trial.trouble


def test_a_guest_that_dies_takes_nobody_with_it() -> None:
    (trial,) = trials_of(tables({"kind": "kill", "target": "guest1", "at_ms": [700]}))
    assert trial.outcome is Outcome.PASSED, trial.findings
    assert [who for _, kind, who in trial.timeline if kind == "partition.exited"] == ["guest1"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_channels_open_and_close_while_the_control_plane_dies(architecture: str) -> None:
    """Deaths between a decision's save and its execution; whoever reopens its disk finds there what it wrote."""
    within = {"at_ms": [0, 2500]}
    steps = deaths(4)[0] | within | {"parameters": {"step": {"any": ["save-state", "saved", "carry-out"]}}}
    made = tables(steps, deaths(3)[1] | within, architecture=architecture, reopening=True)
    for trial in trials_of(made, 2, SEED):
        assert trial.outcome is not Outcome.VIOLATED, (trial.seed, trial.findings)
        assert sum(bool(fate.fired) for fate in trial.fates) >= 2
