"""The simulator: nothing breaks a rule, the same seed is the same run, and what is broken on purpose is found."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final, get_args

import pytest

from runtime.abi import HvStatus, HypercallCode
from runtime.cli import main
from runtime.hypervisor.effects import Effect, KeepFiles
from runtime.simulation.actions import load_schedule, save_schedule
from runtime.simulation.campaign import Campaign, run_campaign
from runtime.simulation.planted import DEFECTS, planted
from runtime.simulation.seeded_run import Outcome, SeededRun, replay
from runtime.simulation.shrink import Shrinker
from runtime.simulation.world import EFFECTS

CI_SECONDS: Final = 4.0
SOAK_SECONDS: Final = 600.0
STEPS: Final = 30_000
PARTITIONS: Final = 300
DEFECT_STEPS: Final = 20_000
DEFECT_PARTITIONS: Final = 200
QUICKLY_FOUND: Final = {
    "lost-refund",
    "message-doubled",
    "silent-delivery",
    "dangling-connection",
    "refusal-that-takes",
    "stranger-paid",
}
SHORT: Final = 40  # actions: what a person can read


def simulate(seconds: float, capsys: pytest.CaptureFixture[str]) -> Campaign:
    campaign = run_campaign(1, runs=None, seconds=seconds, steps=STEPS, population=PARTITIONS)
    with capsys.disabled():
        print(
            f"\n{campaign.inputs:,} hypercalls and events of up to {campaign.population_max} partitions,"
            f" {campaign.inputs_per_minute:,.0f} a CPU minute"
        )
    assert campaign.failure is None, f"seed {campaign.failure.seed}: {campaign.failure.violation}"
    assert campaign.population_max > 100
    assert campaign.messages > 0
    return campaign


def test_any_schedule_keeps_every_rule(capsys: pytest.CaptureFixture[str]) -> None:
    simulate(CI_SECONDS, capsys)


@pytest.mark.soak
def test_any_schedule_keeps_every_rule_for_long(capsys: pytest.CaptureFixture[str]) -> None:
    campaign = simulate(SOAK_SECONDS, capsys)
    assert (
        campaign.inputs_per_minute > 100_000
    )  # of processor time: a busy host gives it less, not it less of that


def test_every_effect_can_be_carried_out_in_the_simulated_world() -> None:
    assert {*EFFECTS, KeepFiles} == set(get_args(Effect))


def test_every_hypercall_is_made_and_most_succeed() -> None:
    run = SeededRun(5, PARTITIONS)
    outcome = run.run(8_000)
    assert outcome.violation is None
    made = {code for code, _ in run.simulation.statuses}
    assert set(HypercallCode) <= made
    granted = {code for code, status in run.simulation.statuses if status is HvStatus.SUCCESS}
    assert len(granted & set(HypercallCode)) > len(HypercallCode) // 2


def test_the_same_seed_is_the_same_run_in_any_process() -> None:
    """Whatever the process's hash seed: nothing may depend on the order of a set."""
    command = [sys.executable, "-m", "runtime.cli", "simulate", "--seed", "3", "--steps", "600", "--json"]
    processes = [
        subprocess.Popen(
            command, env=os.environ | {"PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, text=True
        )
        for seed in ("0", "4711")
    ]
    digests = set()
    for process in processes:
        printed, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        digests.add(json.loads(printed)["last_digest"])
    assert len(digests) == 1
    assert SeededRun(3, PARTITIONS).run(600).digest in digests
    assert SeededRun(4, PARTITIONS).run(600).digest not in digests


def test_what_was_drawn_is_all_that_a_replay_needs(tmp_path: Path) -> None:
    outcome = SeededRun(6, PARTITIONS).run(3_000)
    path = tmp_path / "schedule.jsonl"
    save_schedule(path, outcome.actions, {"seed": 6})
    again = load_schedule(path)
    assert again == outcome.actions
    assert replay(again).digest == outcome.digest


def find(seeds: range) -> Outcome:
    for seed in seeds:
        outcome = SeededRun(seed, DEFECT_PARTITIONS).run(DEFECT_STEPS)
        if outcome.violation is not None:
            return outcome
    pytest.fail("not found")


@pytest.mark.parametrize(
    "name",
    [name if name in QUICKLY_FOUND else pytest.param(name, marks=pytest.mark.soak) for name in DEFECTS],
)
def test_a_planted_defect_is_found_and_shrinks_to_what_a_person_can_read(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "schedule.jsonl"
    with planted(name):
        outcome = find(range(1, 6))
        assert outcome.violation is not None
        shrinker = Shrinker(outcome.actions, outcome.violation.rule)
        save_schedule(path, shrinker.shrink(), {"seed": outcome.seed})
        schedule = load_schedule(path)
        violation = replay(schedule).violation
        assert violation is not None
        assert violation.rule == outcome.violation.rule
    assert replay(schedule).violation is None  # it was the defect, and nothing else
    with capsys.disabled():
        print(
            f"\n{name}: {outcome.violation.rule}; {len(outcome.actions)} -> {len(schedule)} actions", end=" "
        )
    assert len(schedule) <= SHORT


def test_the_command_shrinks_saves_and_replays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "found.jsonl")
    options = ["--steps", "4000", "--partitions", "60", "--planted", "lost-refund"]
    assert main(["simulate", *options, "--save", path, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["shrunk_to"] < found["actions"]
    assert main(["simulate", "--planted", "lost-refund", "--replay", path]) == 1
    assert found["violation"].partition(":")[0] in capsys.readouterr().out
    assert main(["simulate", "--replay", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["violation"] is None


def test_what_is_no_schedule_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "no.jsonl"
    path.write_text("{}\n")
    assert main(["simulate", "--replay", str(path)]) == 1
    assert "is not a schedule" in capsys.readouterr().err
    assert main(["simulate", "--planted", "nothing"]) == 2
