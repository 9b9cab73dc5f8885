"""Roots die in every way there is, under load; the guests' histories and the disk must show nothing but pauses."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from bus.seam import Step
from runtime.chaos.loaded_machine import Judged, Load, LoadedMachine, signal_process
from runtime.chaos.verdict import summary
from tests.machine.conftest import Boot, idle_partition, machine_toml

pytestmark = pytest.mark.machine

LOAD_S: Final = 2.5
BOOTS_MAX: Final = 8  # for all steps to be come to; a quiet host needs one
STEP_PATIENCE_S: Final = 10.0

Start = Callable[..., LoadedMachine]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """start(**load) -> a machine under load, which runs already. Each is ended, and must have left nothing."""
    machines: list[LoadedMachine] = []

    def begin(**load: Any) -> LoadedMachine:
        machine = LoadedMachine(
            tmp_path / f"boot{len(machines)}",
            Load(**{"seconds": LOAD_S, "seed": 1 + 10 * len(machines), **load}),
        )
        machines.append(machine)
        machine.wait_for("guest.verified_progress")
        return machine

    yield begin
    for machine in machines:
        machine.close()
    for machine in machines:
        assert machine.left_behind() == []


def judge(machine: LoadedMachine) -> Judged:
    judged = machine.judge()
    assert judged.verdict.passed, summary(judged.verdict)
    assert judged.exit_code == 0, judged.errors
    assert judged.verdict.unfinished == judged.verdict.failed == 0
    return judged


def come_back(machine: LoadedMachine, exits: int) -> bool:
    """Wait until more roots have died than `exits`, and the last one's successor serves. False: the load is over."""

    def is_back() -> bool:
        return len(machine.all_of("root.exited")) > exits and machine.root_serves

    assert machine.wait_until(lambda: is_back() or machine.load_ended), machine.events[-20:]
    return not machine.load_ended


def kill_again_and_again(machine: LoadedMachine, rng: random.Random, kill: Callable[[], object]) -> None:
    """Until the load is over, slowly enough for the hypervisor to go on trying."""
    while not machine.load_ended:
        exits = len(machine.all_of("root.exited"))
        time.sleep(rng.uniform(0.15, 0.4))
        kill()
        if not come_back(machine, exits):
            return


@pytest.mark.parametrize(("policy", "guests"), [("standby", 2), ("restart", 1)])
def test_roots_killed_at_random_instants_lose_nothing(start: Start, policy: str, guests: int) -> None:
    """With two guests on the same blocks of one disk, and one that opens and closes its channel all the time."""
    machine = start(policy=policy, guests=guests, reopening=True)
    kill_again_and_again(machine, random.Random(policy), machine.kill_root)
    judged = judge(machine)
    assert machine.takeovers > 0
    assert judged.reopened > 0


def test_roots_killed_exactly_at_each_step_lose_nothing(start: Start) -> None:
    rng = random.Random(1)
    missing = list(Step)
    for _ in range(BOOTS_MAX):
        machine = start(reopening=True, seconds=2 * LOAD_S)
        for step in missing[:8]:  # more at once would look like a root that is not worth another try
            exits = len(machine.all_of("root.exited"))
            passes = rng.randint(1, 3 if step >= Step.SAVE_STATE else 40)
            if machine.load_ended or not machine.arm(step, passes):
                break
            machine.wait_until(lambda: machine.load_ended or machine.has_died_at(step), STEP_PATIENCE_S)  # noqa: B023
            if machine.has_died_at(step):
                missing.remove(step)
            if not come_back(machine, exits):
                break
        judge(machine)
        if not missing:
            return
    pytest.fail(f"no root came to {missing}")


@pytest.mark.parametrize("step", [Step.EXECUTE, Step.PUBLISH])
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
    judge(machine)


def test_a_root_that_was_stopped_and_is_continued_after_its_successor_came_does_no_harm(start: Start) -> None:
    """Stopped at random instants for random times: some are continued before they count as hung, some are gone."""
    rng = random.Random(2)
    machine = start(settings={"hang_ms": 200}, seconds=2 * LOAD_S)
    hung = 0
    while not machine.load_ended:
        machine.wait_until(lambda: machine.root_serves or machine.load_ended)
        time.sleep(rng.uniform(0, 0.2))
        exits = len(machine.all_of("root.exited"))
        pid = machine.kill_root(signal.SIGSTOP)
        if pid is None:
            continue
        if rng.random() < 0.3:
            time.sleep(rng.uniform(0, 0.1))
        elif not come_back(machine, exits):
            break
        signal_process(pid, signal.SIGCONT)
    hung = sum("hung" in event["fields"]["reason"] for event in machine.all_of("root.exited"))
    judge(machine)
    assert hung > 0


def test_a_root_that_is_alive_but_serves_nothing_ends_itself(start: Start) -> None:
    machine = start(settings={"stuck_ms": 300}, seconds=2 * LOAD_S)
    for count in (1, 2):
        machine.wait_until(lambda: machine.root_serves)
        machine.request("crash", how="stuck")
        machine.wait_for("root.restored", count)
    assert len(machine.all_of("root.stuck")) >= 2
    judge(machine)


@pytest.mark.parametrize("policy", ["standby", "restart"])
def test_a_healthy_root_can_be_replaced_under_load(start: Start, policy: str) -> None:
    machine = start(policy=policy, reopening=True)
    for count in range(1, 6):
        if machine.load_ended:
            break
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
