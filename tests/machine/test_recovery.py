"""Roots die in every way there is, under load; the guests' histories and the disk must show nothing but pauses."""

import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from bus.seam import Step
from runtime.chaos.loaded_machine import Load, LoadedMachine, signal_process
from runtime.chaos.verdict import summary
from tests.machine.conftest import PATIENT, Boot, idle_partition, machine_toml
from tests.machine.under_load import judge, machines_under_load

pytestmark = pytest.mark.machine

KILLS: Final = 6
LOAD_S: Final = 60.0  # at the most: each test ends it

Start = Callable[..., LoadedMachine]


@pytest.fixture
def start(tmp_path: Path, runtime_dir: Path) -> Iterator[Start]:
    """start(**load) -> a machine under load, which runs already. Each is ended, and must have left nothing."""
    with machines_under_load(tmp_path, runtime_dir) as begin:
        yield lambda **load: begin(Load(**{"seconds": LOAD_S, "settings": PATIENT, **load}))


def come_back(machine: LoadedMachine, exits: int) -> None:
    """Wait until more roots have died than `exits`, and the last one's successor serves."""
    assert machine.wait_until(lambda: len(machine.all_of("root.exited")) > exits and machine.root_serves), (
        machine.events[-20:]
    )


@pytest.mark.parametrize(("policy", "guests"), [("standby", 2), ("restart", 1)])
def test_roots_killed_at_random_instants_lose_nothing(start: Start, policy: str, guests: int) -> None:
    """With two guests on the same blocks of one disk, and one that opens and closes its channel all the time."""
    rng = random.Random(policy)
    machine = start(policy=policy, guests=guests, reopening=True)
    for exits in range(KILLS):
        time.sleep(rng.uniform(0.1, 0.3))
        machine.kill_root()
        come_back(machine, exits)
    judged = judge(machine)
    assert machine.takeovers == KILLS
    assert judged.reopened > 0


def test_roots_killed_exactly_at_each_step_lose_nothing(start: Start) -> None:
    rng = random.Random(1)
    machine = start(reopening=True)
    for exits, step in enumerate(Step):
        assert machine.arm(step, passes=rng.randint(1, 3 if step >= Step.SAVE_STATE else 40))
        come_back(machine, exits)
        assert machine.has_died_at(step, exits)
    judge(machine)


@pytest.mark.parametrize("step", [pytest.param(Step.EXECUTE, marks=pytest.mark.soak), Step.PUBLISH])
def test_roots_killed_in_the_middle_of_recovery_lose_nothing(start: Start, step: Step) -> None:
    """One dies of the seam, the next of the same while it replays, the next from outside as soon as it runs."""
    rng = random.Random(step)
    machine = start()
    machine.arm(step, passes=2, deaths=3)
    machine.wait_for("root.exited", 3)
    started = 4
    for _ in range(3):
        machine.wait_until(lambda: machine.root_serves)
        machine.kill_root()
        started += 1
        machine.wait_for("root.started", started)
        time.sleep(rng.uniform(0, 0.02))
        machine.kill_root()
        started += 1
        machine.wait_for("root.started", started)
        time.sleep(0.5)
    machine.wait_until(lambda: machine.root_serves)
    judge(machine)


def test_a_root_that_was_stopped_and_is_continued_after_its_successor_came_does_no_harm(start: Start) -> None:
    """Stopped at random instants for random times: some are continued before they count as hung, some are gone."""
    rng = random.Random(2)
    machine = start(settings={"hang_ms": 200})
    for turn in range(KILLS):
        machine.wait_until(lambda: machine.root_serves)
        time.sleep(rng.uniform(0, 0.2))
        exits = len(machine.all_of("root.exited"))
        pid = machine.kill_root(signal.SIGSTOP)
        if pid is not None:
            if turn % 3 == 0:
                time.sleep(rng.uniform(0, 0.1))
            else:
                come_back(machine, exits)
            signal_process(pid, signal.SIGCONT)
    judge(machine)
    assert any("hung" in event["fields"]["reason"] for event in machine.all_of("root.exited"))


def test_a_root_that_is_alive_but_serves_nothing_ends_itself(start: Start) -> None:
    machine = start(settings={"stuck_ms": 300})
    machine.request("crash", how="stuck")
    machine.wait_for("root.restored")
    assert machine.all_of("root.stuck")
    judge(machine)


@pytest.mark.parametrize("first", [pytest.param("guest", marks=pytest.mark.soak), "root"])
def test_a_guest_that_dies_with_the_root_takes_nobody_else_along(start: Start, first: str) -> None:
    """Its ports and pages are gone when the successor looks for them."""
    machine = start(reopening=True)
    machine.wait_for("partition.started", 2)  # the other guest may have begun before
    (started,) = (event for event in machine.all_of("partition.started") if event["partition"] == "reopening")
    victims = [started["fields"]["pid"], machine.root_pid]
    for pid in victims if first == "guest" else reversed(victims):
        signal_process(pid, signal.SIGKILL)
    machine.wait_for("root.restored")
    machine.finish()
    judged = machine.judge()
    assert judged.verdict.passed, summary(judged.verdict)
    assert judged.verdict.unfinished == judged.verdict.failed == 0
    assert "reopening: signal 9" in judged.errors
    assert len(machine.all_of("root.started")) <= 3, "a successor may find it dying; the next finds it dead"


def test_the_commands_say_how_the_root_was_replaced(start: Start) -> None:
    machine = start()
    for count, options in enumerate((["--at", "publish", "--after", "2"], []), start=1):
        done = machine.command("crash", "root", "--json", *options)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["generation"] == count + 1
        assert told["pid"] == machine.root_pid
    assert machine.has_died_at(Step.PUBLISH)
    wrong = machine.command("crash", "root", "--at", "publish", "--hang")
    assert wrong.returncode == 2
    judge(machine)


@pytest.mark.parametrize("policy", ["standby", pytest.param("restart", marks=pytest.mark.soak)])
def test_a_healthy_root_can_be_replaced_under_load(start: Start, policy: str) -> None:
    machine = start(policy=policy, reopening=True)
    for count in range(1, 6):
        machine.wait_until(lambda: machine.root_serves)
        machine.request("service")
        machine.wait_for("root.restored", count)
    judge(machine)
    assert all("SIGKILL" not in event["fields"]["reason"] for event in machine.all_of("root.exited"))


def test_halt_is_what_it_was(boot: Boot) -> None:
    """Nobody takes over, though somebody could."""
    machine = boot(machine_toml(idle_partition("one"), on_root_failure="halt"))
    machine.wait_for("machine.ready")
    refused = machine.command("service", "root")
    assert refused.returncode == 1
    assert "has no successor" in refused.stderr
    machine.command("crash", "root")
    assert machine.wait() == 1
    assert "the root partition died" in machine.errors
    assert not any(event["kind"] == "root.restored" for event in machine.events)
