"""One config, guest and workload in each of the five architectures: who has the disk, who is on a request's way, and
what comes back after whose death. What is said here of processes is read from /proc, or found by stopping them."""

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from bus.seam import Step
from partitions.stack.back_off import DRIVER_FAILURES_MAX
from runtime.chaos.history import Ending
from runtime.chaos.loaded_machine import DRIVER, Load, LoadedMachine, signal_process
from runtime.chaos.register_conflicts import Kind
from runtime.chaos.verdict import summary
from tests.machine.conftest import PATIENT
from tests.machine.under_load import judge, machines_under_load
from tests.stopping import stop

pytestmark = pytest.mark.machine

LOAD_S: Final = 60.0  # at the most: each test ends it
GUEST: Final = "guest1"
MONITOR: Final = "guest1.vmm"
SERVERS: Final = {  # by architecture: whom a request crosses, in order; the last one has the backing file
    "microkernelized": ["root"],
    "disaggregated": [DRIVER],
    "monolithic": ["hypervisor"],
    "hosted": [MONITOR, DRIVER],
    "microkernel": [DRIVER],
}
PATIENCE_S: Final = 20.0
SETTLE_S: Final = 0.3  # for what was on its way when somebody was stopped
STILL_S: Final = 0.4
_RECORDS_AT: Final = 64  # runtime.chaos.history: of records of 64 bytes, for the load's four blocks a request
_RECORD_BYTES: Final = 64

Start = Callable[..., LoadedMachine]


@pytest.fixture
def start(tmp_path: Path, runtime_dir: Path) -> Iterator[Start]:
    """start(architecture, **load) -> a machine under load. It is ended, and must have left nothing."""
    with machines_under_load(tmp_path, runtime_dir) as begin:

        def of_architecture(architecture: str, **load: Any) -> LoadedMachine:
            settings: dict[str, int | str] = {
                "architecture": architecture,
                **PATIENT,
            }  # who is stopped here is not hung
            return begin(Load(**{"seconds": LOAD_S, "policy": "restart", **load}, settings=settings))

        yield of_architecture


def processes(machine: LoadedMachine) -> dict[str, int]:
    """Those that are not another's: a driver in the hypervisor has no process."""
    broker = int(machine.all_of("hypervisor.started")[0]["fields"]["pid"])
    started = {event["partition"]: event["fields"]["pid"] for event in machine.all_of("partition.started")}
    own = {name: pid for name, pid in started.items() if pid != broker}
    return {**own, "root": machine.root_pid, "hypervisor": broker, "platform": machine.process.pid}


def has_open(pid: int, file: Path) -> bool:
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(entry.readlink())
    return file.resolve() in found


def records(machine: LoadedMachine) -> int:
    """How many the guest has written: an invocation or a completion each."""
    path = machine.history_path(machine.load.seed)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        low, high = 0, (path.stat().st_size - _RECORDS_AT) // _RECORD_BYTES
        while low < high:  # behind the last record are zeros
            middle = (low + high) // 2
            kind = os.pread(descriptor, 1, _RECORDS_AT + middle * _RECORD_BYTES + 4)
            low, high = (middle + 1, high) if kind != b"\0" else (low, middle)
        return low
    finally:
        os.close(descriptor)


def goes_on(machine: LoadedMachine) -> bool:
    """Whether requests are answered: more than were on their way."""
    enough = records(machine) + 4 * machine.load.depth
    deadline = time.monotonic() + PATIENCE_S
    while records(machine) < enough and time.monotonic() < deadline and not machine.is_over:
        time.sleep(0.01)
    return records(machine) >= enough


def stands_still(machine: LoadedMachine) -> bool:
    """Once what was on its way is there, which on a busy host may take a while."""
    deadline = time.monotonic() + PATIENCE_S
    time.sleep(SETTLE_S)
    while time.monotonic() < deadline:
        before = records(machine)
        time.sleep(STILL_S)
        if records(machine) == before:
            return True
    return False


def kill(machine: LoadedMachine, name: str) -> None:
    """One that has a successor; until that serves."""
    deaths = sum(event["partition"] == name for event in machine.all_of("partition.exited"))
    signal_process(processes(machine)[name], signal.SIGKILL)

    def serves() -> bool:
        exits = sum(event["partition"] == name for event in machine.all_of("partition.exited"))
        told = [event for event in machine.all_of("driver.serving") if event["fields"]["device"] == name]
        return bool(exits > deaths and len(told) > exits)

    assert machine.wait_until(serves), machine.events[-20:]


_OLDER: Final = ("microkernelized", "disaggregated")  # other tests see these two every time


@pytest.mark.parametrize(
    "architecture", [pytest.param(name, marks=[pytest.mark.soak] * (name in _OLDER)) for name in SERVERS]
)
def test_a_request_crosses_the_processes_that_it_is_said_to_cross_and_no_others(
    start: Start, architecture: str
) -> None:
    """Each process of the machine is stopped in its turn: requests wait for it if, and only if, they cross it."""
    machine = start(architecture)
    running, expected = processes(machine), SERVERS[architecture]
    assert {name for name, pid in running.items() if has_open(pid, machine.image)} == {expected[-1]}
    shown = json.loads(machine.command("show", GUEST, "--json").stdout)["devices"]
    assert [row["device"] for row in shown] == [DRIVER]
    assert shown[0]["served_by"] == [{"process": f"pv-{name}", "pid": running[name]} for name in expected]
    hypervisor = json.loads(machine.command("show", "hypervisor", "--json").stdout)
    assert bool(hypervisor["partition_modules"]) == (architecture == "monolithic")
    for name in sorted(set(running) - {GUEST, "platform"}):
        stop(running[name])
        try:
            crossed = stands_still(machine) if name in expected else not goes_on(machine)
        finally:
            os.kill(running[name], signal.SIGCONT)
        assert crossed == (name in expected), name
        assert goes_on(machine), f"after {name} went on"
    for name in expected:
        if name in (DRIVER, MONITOR):
            kill(machine, name)
            assert goes_on(machine), f"after the death of {name}"
    assert {name for name, pid in processes(machine).items() if has_open(pid, machine.image)} == {
        expected[-1]
    }
    if architecture == "monolithic":
        machine.kill_root()
        assert machine.wait_until(lambda: machine.takeovers == 1)
        assert goes_on(machine)
    judge(machine)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("architecture", "victims"),
    [("microkernel", [DRIVER]), ("hosted", [DRIVER, MONITOR]), ("hosted", [MONITOR])],
    ids=["server", "host and monitor", "monitor"],
)
def test_servers_killed_at_random_instants_lose_nothing(
    start: Start, architecture: str, victims: list[str]
) -> None:
    """With two guests on the same blocks of one disk, and one that opens and closes its disk all the time."""
    rng = random.Random(7)
    machine = start(architecture, guests=2, reopening=True)
    for _ in range(6):
        for victim in rng.sample(victims, len(victims)):
            kill(machine, victim)
            time.sleep(rng.uniform(0, 0.1))
    judged = judge(machine)
    assert judged.reopened > 0
    assert not machine.all_of("root.exited")[1:], "the root had nothing to do with it"


@pytest.mark.soak
@pytest.mark.parametrize("architecture", ["microkernel", "hosted"])
def test_a_server_and_the_root_may_die_one_after_the_other(start: Start, architecture: str) -> None:
    rng = random.Random(8)
    machine = start(architecture, reopening=True)
    for turn in range(1, 5):
        victims = [DRIVER] + ([MONITOR] if architecture == "hosted" else [])
        for victim in rng.sample([*victims, "root"], len(victims) + 1):
            signal_process(processes(machine)[victim], signal.SIGKILL)
            time.sleep(rng.choice((0, rng.uniform(0, 0.02))))
        assert machine.wait_until(lambda turn=turn: machine.takeovers >= turn and machine.root_serves)  # type: ignore[misc]
        assert machine.wait_until(lambda: machine.driver_serves), machine.events[-20:]
        assert goes_on(machine)
    judge(machine)


@pytest.mark.soak
def test_a_server_that_dies_between_execution_and_reply_does_not_execute_twice(start: Start) -> None:
    machine = start("microkernel", guests=2)
    for deaths in range(1, 6):
        assert machine.arm(Step.EXECUTE, passes=20 * deaths, driver=True)
        assert machine.wait_until(lambda deaths=deaths: machine.driver_deaths >= deaths)  # type: ignore[misc]
        assert machine.wait_until(lambda: machine.driver_serves)
        assert machine.driver_has_died_at(Step.EXECUTE)
    judge(machine)


@pytest.mark.soak
def test_the_death_of_a_monolith_is_the_machines_and_no_acknowledged_write_is_lost(start: Start) -> None:
    machine = start("monolithic")
    assert machine.arm(Step.EXECUTE, passes=500, driver=True)
    judged = machine.judge()
    assert judged.exit_code != 0
    assert judged.histories[0].ending is Ending.NONE, "the guest died with it"
    wrong = {kind: count for kind, count in judged.verdict.counts.items() if count and kind is not Kind.HUNG}
    assert not wrong, summary(judged.verdict)


@pytest.mark.soak
@pytest.mark.parametrize("architecture", ["microkernel", "hosted"])
def test_a_server_that_fails_again_and_again_is_given_up_and_requests_fail(
    start: Start, architecture: str
) -> None:
    """None hangs: the guest is told, and the machine lives on."""
    machine = start(architecture)
    guest = processes(machine)[GUEST]
    for deaths in range(1, DRIVER_FAILURES_MAX + 1):
        if deaths < DRIVER_FAILURES_MAX:
            kill(machine, DRIVER)
            continue
        os.kill(guest, signal.SIGSTOP)  # its end would be the machine's
        signal_process(processes(machine)[DRIVER], signal.SIGKILL)
    machine.wait_for("driver.failed")
    shown = json.loads(machine.command("show", DRIVER, "--json").stdout)
    assert shown["devices"][0]["state"] == "failed"
    os.kill(guest, signal.SIGCONT)
    judged = machine.judge()
    assert judged.histories[0].ending is not Ending.NONE, "it was told, and did not wait for answers"
    wrong = {kind: count for kind, count in judged.verdict.counts.items() if count and kind is not Kind.HUNG}
    assert not wrong, summary(judged.verdict)
