"""Driver partitions die, alone and with the root, under load; the guests must see nothing but pauses."""

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import pytest

from bus.seam import Step
from partitions.stack.back_off import DRIVER_FAILURES_MAX
from runtime.chaos.history import Ending
from runtime.chaos.liveness import gaps_around
from runtime.chaos.loaded_machine import DRIVER, Load, LoadedMachine, signal_process
from runtime.chaos.register_conflicts import Kind
from runtime.chaos.verdict import summary
from tests.machine.conftest import PATIENT, until
from tests.machine.under_load import judge, machines_under_load

pytestmark = pytest.mark.machine

LOAD_S: Final = 60.0  # at the most: each test ends it
DATA_STEPS: Final = tuple(step for step in Step if step <= Step.SIGNAL)

Start = Callable[..., LoadedMachine]


@pytest.fixture
def start(tmp_path: Path, runtime_dir: Path) -> Iterator[Start]:
    """start(**load) -> a machine with a driver partition, under load. Each is ended, and must have left nothing."""
    with machines_under_load(tmp_path, runtime_dir) as begin:

        def disaggregated(
            settings: Mapping[str, int | str] = MappingProxyType({}), **load: Any
        ) -> LoadedMachine:
            whole = {"architecture": "disaggregated", **PATIENT, **settings}
            return begin(Load(**{"seconds": LOAD_S, **load}, settings=whole))

        yield disaggregated


def settles(machine: LoadedMachine, deaths: int, exits: int = 0) -> None:
    """More drivers have died than `deaths`, more roots than `exits`, and the newest of both serve."""

    def has() -> bool:
        gone = machine.driver_deaths >= deaths and len(machine.all_of("root.exited")) >= exits
        return gone and machine.driver_serves and machine.root_serves

    assert machine.wait_until(has), machine.events[-20:]


@pytest.mark.soak
def test_drivers_killed_at_random_instants_lose_nothing(start: Start) -> None:
    """With two guests on the same blocks of one disk, and one that opens and closes its channel all the time."""
    rng = random.Random(1)
    machine = start(guests=2, reopening=True, settings={"signal_route": "broker"})
    for deaths in range(1, 7):
        machine.kill_driver()
        settles(machine, deaths)
        time.sleep(rng.uniform(0, 0.2))
    judged = judge(machine)
    assert judged.reopened > 0
    assert not machine.all_of("root.exited")[1:], "the root had nothing to do with it"


def test_drivers_killed_at_each_step_and_then_with_their_root_and_a_guest_lose_nothing(start: Start) -> None:
    """On one machine, because booting takes longest. Who holds what is the same before and after."""
    rng, cpu = random.Random(2), min(os.sched_getaffinity(0))
    machine = start(reopening=True, depth=8, root_cpus=(cpu,))
    check_holdings(machine, cpu)
    for deaths, step in enumerate(DATA_STEPS, 1):
        assert machine.arm(step, passes=rng.randint(1, 40), driver=True)
        settles(machine, deaths)
        assert machine.driver_has_died_at(step)
    signal_process(processes(machine)["reopening"], signal.SIGKILL)
    kill_both(machine, rng, len(DATA_STEPS), 0)
    check_holdings(machine, cpu)
    machine.finish()
    judged = machine.judge()
    assert judged.verdict.passed, summary(judged.verdict)
    assert judged.verdict.unfinished == judged.verdict.failed == 0
    assert "reopening: signal 9" in judged.errors


def check_holdings(machine: LoadedMachine, cpu: int) -> None:
    """Only the driver has the file open; the root has no page of the guests; both run where the config says."""
    pids = processes(machine)

    def holders() -> set[str]:
        return {name for name, pid in pids.items() if has_open(pid, machine.image)}

    until(lambda: holders() == {DRIVER}, holders)  # on its way to a driver it passes through others
    assert channel_pages(pids["root"]) & channel_pages(pids["guest1"]) == set()
    assert channel_pages(pids[DRIVER]) & channel_pages(pids["guest1"]) != set()
    assert os.sched_getaffinity(pids["root"]) == os.sched_getaffinity(pids[DRIVER]) == {cpu}


def kill_both(machine: LoadedMachine, rng: random.Random, deaths: int, exits: int) -> None:
    """Driver and root, in any order: the next as soon as the last one is killed, or some milliseconds later."""
    for victim in rng.sample(("driver", "root"), 2):
        killed = machine.kill_driver() if victim == "driver" else machine.kill_root()
        assert killed is not None
        time.sleep(rng.choice((0, rng.uniform(0, 0.02))))
    settles(machine, deaths + 1, exits + 1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(4))
def test_driver_and_root_may_die_one_after_the_other_in_any_order(start: Start, seed: int) -> None:
    rng = random.Random(seed)
    machine = start(policy=("standby", "restart")[seed % 2], reopening=True)
    for turn in range(6):
        kill_both(machine, rng, turn, turn)
    judge(machine)


@pytest.mark.soak
def test_the_guests_do_not_notice_the_death_of_the_root(start: Start) -> None:
    """What serves them has nothing to do with it. Their longest pause is no longer than the root was away."""
    machine = start(policy="restart")
    for exits in range(1, 4):
        time.sleep(0.2)
        machine.kill_root()
        settles(machine, 0, exits)
    judged = judge(machine)
    died = [event["fields"]["at_ns"] for event in machine.all_of("root.exited")[:3]]
    came = [event["fields"]["serving_ns"] for event in machine.all_of("root.restored")]
    gaps = [gap.length_ns for gap in gaps_around(judged.histories[0], died) if gap is not None]
    away = [after - before for before, after in zip(died, came, strict=True)]
    assert min(gaps) < min(away)
    assert machine.driver_deaths == 1, "at the end of the machine"


@pytest.mark.soak
def test_a_driver_that_hangs_and_one_that_is_stuck_are_replaced(start: Start) -> None:
    machine = start(settings={"hang_ms": 200, "stuck_ms": 300})
    pid = machine.kill_driver(signal.SIGSTOP)
    settles(machine, 1)
    assert "hung" in machine.all_of("partition.exited")[-1]["fields"]["reason"]
    assert pid is None or not signal_process(pid, signal.SIGCONT)
    machine.request("crash-driver", name=DRIVER, how="stuck")
    settles(machine, 2)
    assert machine.all_of("guest.driver_stuck")
    judge(machine)


def processes(machine: LoadedMachine) -> dict[str, int]:
    gone = {
        event["partition"] for event in machine.all_of("partition.exited") if event["partition"] != DRIVER
    }
    started = {
        event["partition"]: event["fields"]["pid"]
        for event in machine.all_of("partition.started")
        if event["partition"] not in gone
    }
    broker = machine.all_of("hypervisor.started")[0]["fields"]["pid"]
    return {**started, "root": machine.root_pid, "hypervisor": broker, "platform": machine.process.pid}


def has_open(pid: int, file: Path) -> bool:
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(entry.readlink())
    return file.resolve() in found


def channel_pages(pid: int) -> set[str]:
    """Inodes of the shared memory that is mapped there: a slot is one memfd."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split()[4] for line in lines if "/memfd:" in line}


@pytest.mark.soak
def test_a_driver_that_fails_again_and_again_is_given_up_and_its_requests_fail(start: Start) -> None:
    """None hangs: the guest is told, the device is shown as failed, and the machine lives on."""
    machine = start()
    guest = processes(machine)["guest1"]
    for deaths in range(1, DRIVER_FAILURES_MAX + 1):
        if deaths == DRIVER_FAILURES_MAX:
            os.kill(guest, signal.SIGSTOP)  # its end would be the machine's
        machine.kill_driver()
        if deaths < DRIVER_FAILURES_MAX:
            settles(machine, deaths)
    failed = machine.wait_for("driver.failed")
    assert failed["fields"]["failures"] == DRIVER_FAILURES_MAX
    pauses = [event["fields"]["pause_ms"] for event in machine.all_of("driver.exited")]
    assert pauses[0] == 0
    assert pauses == sorted(pauses)
    assert len(pauses) == DRIVER_FAILURES_MAX - 1
    shown = json.loads(machine.command("show", DRIVER, "--json").stdout)
    assert shown["kind"] == "driver"
    assert shown["devices"][0]["state"] == "failed"
    offered = json.loads(machine.command("show", "guest1", "--json").stdout)
    assert [row["state"] for row in offered["devices"]] == ["failed"]
    os.kill(guest, signal.SIGCONT)
    judged = machine.judge()
    assert judged.histories[0].ending is Ending.GAVE_UP, "it was told, and did not wait for answers"
    wrong = {kind: count for kind, count in judged.verdict.counts.items() if count and kind is not Kind.HUNG}
    assert not wrong, summary(judged.verdict)


@pytest.mark.soak
def test_the_command_says_how_a_driver_was_replaced(start: Start) -> None:
    machine = start()
    for count, options in enumerate((["--at", "publish", "--after", "2"], []), start=2):
        done = machine.command("crash", DRIVER, "--json", *options)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["generation"] == count
        assert told["pid"] == machine.driver_pid
    assert machine.driver_has_died_at(Step.PUBLISH)
    wrong = machine.command("crash", "guest1")
    assert wrong.returncode == 3
    assert "no driver partition; there are disk0" in wrong.stderr
    judge(machine)
