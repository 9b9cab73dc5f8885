"""The scheduler on real processes: what it stops it continues, what others stopped it leaves alone, nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.abi import PartitionProperty
from runtime.hypervisor import heartbeat
from runtime.hypervisor.cpu_time import CpuMeter, cpu_ns
from runtime.hypervisor.loop import Loop, now_ns
from runtime.hypervisor.machine import Machine
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.program import Process, Program
from runtime.hypervisor.scheduler import Scheduler
from runtime.hypervisor.scheduling_cgroups import cgroups_of, places, remove_leftovers
from runtime.hypervisor.scheduling_mechanisms import SchedulerKind
from tests.patience import until
from tests.runtime.broker_process import broker_process
from tests.runtime.hypervisor_world import World

_P = PartitionProperty
PROPERTIES = {"weight": _P.CPU_WEIGHT, "reserve": _P.CPU_RESERVE, "cap": _P.CPU_CAP}
PATIENCE_S = 20.0
BURN = "while True: pass"
PERCENT = 0x10000 // 128  # nearly: so that a whole processor is a whole number of them
needs_cgroups = pytest.mark.skipif(not list(places()), reason="no cgroup with a cpu controller is writable")


class Guests:
    """A machine's partitions with processes that burn, and its scheduler; all on one processor."""

    def __init__(self, kind: SchedulerKind) -> None:
        world = World()
        self.machine: Machine = world.hypervisor.machine
        self.loop = Loop()
        self.scheduler = Scheduler(self.loop, self.machine, kind)
        self._processes: list[subprocess.Popen[bytes]] = []

    def add(self, id: int, parent: int = 1, program: str = BURN, **shares: int) -> Partition:
        processor = max(os.sched_getaffinity(0))
        process = subprocess.Popen(
            [sys.executable, "-c", f"import os; os.sched_setaffinity(0, [{processor}])\n{program}"]
        )
        self._processes.append(process)
        guest = Partition(id, parent, 1, 0)
        guest.program, guest.process, guest.pid = (
            Program("x", f"guest{id}", b"\x80"),
            Process.RUNNING,
            process.pid,
        )
        guest.properties = {PROPERTIES[key]: value for key, value in shares.items()}
        self.machine.partitions[id] = guest
        self.machine.scheduling_version += 1
        return guest

    def change(self, guest: Partition, **shares: int) -> None:
        guest.properties |= {PROPERTIES[key]: value for key, value in shares.items()}
        self.machine.scheduling_version += 1

    def run_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline
            self.turn()

    def turn(self) -> None:
        self.scheduler.notice()
        self.loop.run_once(20)

    def run(self, seconds: float) -> None:
        """Once at least: on a busy host the time may be over before we begin."""
        end = time.monotonic() + seconds
        self.turn()
        self.run_until(lambda: time.monotonic() >= end)

    def mechanism(self) -> object:
        return self.scheduler.report()["mechanism"]

    def close(self) -> None:
        self.scheduler.close()
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture
def guests() -> Iterator[Guests]:
    made = Guests(SchedulerKind.SIGNALS)
    yield made
    made.close()


def state(pid: int | None) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def is_stopped(guest: Partition) -> bool:
    return state(guest.pid) == "T"


def test_nobody_is_touched_or_measured_before_somebody_asks_for_something(guests: Guests) -> None:
    guests.add(2)
    guests.run(0.1)
    assert guests.mechanism() is None
    assert not guests.loop._timers
    guests.change(guests.machine.partitions[2], weight=200)
    guests.run(0.05)
    assert guests.mechanism() == "signals"
    guests.change(guests.machine.partitions[2], weight=100)  # as it was
    guests.run(0.05)
    assert guests.mechanism() is None


@pytest.mark.parametrize("end", ["end", "close"])
def test_everybody_runs_when_the_scheduler_ends(guests: Guests, end: str) -> None:
    first, second = guests.add(2, weight=100), guests.add(3, weight=300)
    guests.run_until(lambda: is_stopped(first) or is_stopped(second))
    getattr(guests.scheduler, end)()
    assert not is_stopped(first)
    assert not is_stopped(second)
    guests.run(0.1)  # and nobody stops them again
    assert not is_stopped(first)
    assert not is_stopped(second)


def test_a_partition_that_its_parent_suspended_is_not_continued(guests: Guests) -> None:
    first, second = guests.add(2, weight=100), guests.add(3, weight=300)
    guests.run_until(lambda: is_stopped(first))
    first.suspended = True
    os.kill(first.pid or 0, signal.SIGSTOP)
    guests.run_until(lambda: is_stopped(first))  # a signal is heard when there is a processor to hear it on
    for _ in range(25):
        guests.run(0.005)
        assert is_stopped(first)
    guests.run_until(lambda: not is_stopped(second))  # whom nobody competes with
    first.suspended = False
    os.kill(first.pid or 0, signal.SIGCONT)
    guests.run_until(lambda: is_stopped(second))  # the two take turns again


def test_a_partition_that_the_platform_stopped_is_not_continued_until_it_says_so(guests: Guests) -> None:
    first, _ = guests.add(2, weight=100), guests.add(3, weight=300)
    guests.run(0.05)
    os.kill(first.pid or 0, signal.SIGSTOP)
    guests.scheduler.signalled(2, signal.SIGSTOP)
    guests.run_until(lambda: is_stopped(first))
    for _ in range(25):
        guests.run(0.005)
        assert is_stopped(first)
    os.kill(first.pid or 0, signal.SIGCONT)
    guests.scheduler.signalled(2, signal.SIGCONT)
    used = cpu_ns(first.pid) or 0
    guests.run_until(lambda: (cpu_ns(first.pid) or 0) > used)


def test_a_held_partition_hears_a_signal_at_once(guests: Guests) -> None:
    guest = guests.add(2, cap=PERCENT)
    guests.run_until(lambda: is_stopped(guest) and guest.held_since_ns is not None)
    os.kill(guest.pid or 0, signal.SIGTERM)
    guests.scheduler.signalled(2, signal.SIGTERM)
    assert os.waitid(os.P_PID, guest.pid or 0, os.WEXITED | os.WNOWAIT) is not None


def test_time_in_which_it_is_held_is_no_missed_heartbeat(guests: Guests) -> None:
    """Promises 20 ms; is held for much longer, again and again."""
    guest = guests.add(2, cap=PERCENT)
    guests.run_until(lambda: guest.held_since_ns is not None)
    guests.machine.now_ns = now_ns()
    heartbeat.promise(guests.machine, guest, 20)
    end = time.monotonic() + 0.4
    while time.monotonic() < end:
        guests.run(0.001)
        if guest.held_since_ns is not None:
            guests.machine.now_ns = now_ns()
            heartbeat.check(guests.machine, guest)
            assert guest.failure is None
    assert guest.heartbeat_due_ns is not None
    heartbeat.let(guest, guests.machine.now_ns)
    guests.machine.now_ns = guest.heartbeat_due_ns + 1
    heartbeat.check(guests.machine, guest)  # but its own silence is one
    assert guest.failure is not None


def test_real_processes_get_what_their_weights_say(guests: Guests) -> None:
    """Of what was delivered; loosely, as this is a short look."""
    both = guests.add(2, weight=100), guests.add(3, weight=300)

    def used() -> list[int]:
        return [cpu_ns(each.pid) or 0 for each in both]

    guests.run_until(lambda: min(used()) > 100_000_000)  # Python has started, everybody is known to be busy
    before = used()

    def is_as_said() -> bool:
        """A turn that a busy host made too long is made up for later."""
        first, second = (now - was for now, was in zip(used(), before, strict=True))
        return first + second > 600_000_000 and 0.12 < first / (first + second) < 0.38

    guests.run_until(is_as_said)


def test_a_process_that_ends_is_forgotten_and_the_others_go_on(guests: Guests) -> None:
    first, second = guests.add(2, weight=100), guests.add(3, weight=300)
    guests.run(0.05)
    os.kill(first.pid or 0, signal.SIGKILL)
    os.waitpid(first.pid or 0, 0)
    first.process, first.pid = Process.ENDED, None
    guests.machine.scheduling_version += 1
    used = cpu_ns(second.pid) or 0
    guests.run_until(lambda: (cpu_ns(second.pid) or 0) > used + 20_000_000)
    report = guests.scheduler.report()
    assert [row["id"] for row in report["partitions"]] == [3]  # type: ignore[attr-defined]


# -- measuring


def test_all_threads_count_also_those_that_have_ended() -> None:
    program = (
        "import threading, time\n"
        "def burn():\n"
        "    end = time.thread_time() + 0.05\n"
        "    while time.thread_time() < end: pass\n"
        "threads = [threading.Thread(target=burn) for _ in range(3)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
        "print('done', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        try:
            meter = CpuMeter(process.pid)
            assert process.stdout is not None
            assert process.stdout.readline()
            assert meter.sample(1).used_ns >= 3 * 50_000_000
            meter.close()
        finally:
            process.kill()


def test_who_waits_for_a_processor_is_no_sleeper_and_a_sleeper_is() -> None:
    sleep = "import time; print('here', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", sleep], stdout=subprocess.PIPE) as sleeper:
        try:
            assert sleeper.stdout is not None
            assert sleeper.stdout.readline()
            until(lambda: state(sleeper.pid) == "S")
            meter = CpuMeter(sleeper.pid)
            time.sleep(0.1)
            sample = meter.sample(100_000_000)
            assert sample.used_ns + sample.waited_ns < 50_000_000
            meter.close()
        finally:
            sleeper.kill()
    burn = f"print('here', flush=True)\n{BURN}"
    with subprocess.Popen([sys.executable, "-c", burn], stdout=subprocess.PIPE) as burner:
        try:
            assert burner.stdout is not None
            assert burner.stdout.readline()
            meter = CpuMeter(burner.pid)
            began = time.monotonic_ns()
            time.sleep(0.1)
            elapsed_ns = time.monotonic_ns() - began
            sample = meter.sample(elapsed_ns)
            assert sample.used_ns + sample.waited_ns > elapsed_ns / 2
            meter.close()
        finally:
            burner.kill()


# -- cgroups


@needs_cgroups
def test_cgroups_have_the_shape_of_the_tree_and_are_gone_at_the_end() -> None:
    kind, place = next(places())
    guests = Guests(kind)
    try:
        guests.add(2, weight=300)
        guests.add(3, parent=2, cap=20 * PERCENT)
        guests.run(0.05)
        assert guests.mechanism() == kind.value
        (top,) = place.glob(f"partvisor-{os.getppid()}-{os.getpid()}-*")
        for folder, id in ((top / "g2" / "own", 2), (top / "g2" / "g3" / "own", 3)):
            assert (folder / "cgroup.procs").read_text().split() == [str(guests.machine.partitions[id].pid)]
        guests.change(guests.machine.partitions[3], reserve=10 * PERCENT)  # of which cgroups know nothing
        guests.run(0.05)
        assert guests.mechanism() == "signals"
        assert not top.exists()
        pid = guests.machine.partitions[3].pid
        assert str(pid) in (place / "cgroup.procs").read_text().split()  # alive, where it was before
    finally:
        guests.close()
    assert not list(place.glob(f"partvisor-{os.getppid()}-{os.getpid()}-*"))


@needs_cgroups
def test_a_childs_cap_may_be_above_its_parents_and_be_changed_in_any_order() -> None:
    """Version 1 refuses a quota above the parent's at any moment."""
    kind, _ = next(places())
    guests = Guests(kind)
    try:
        parent, child = guests.add(2, cap=20 * PERCENT), guests.add(3, parent=2, cap=50 * PERCENT)
        none = 128
        changes: list[tuple[int, int]] = [(20, 50), (10, 5), (none, 30), (50, none), (2, 2)]
        for of_parent, of_child in changes:
            guests.change(parent, cap=of_parent * PERCENT)
            guests.change(child, cap=of_child * PERCENT)
            guests.run(0.03)
            report = guests.scheduler.report()
            assert (report["mechanism"], report["note"]) == (kind.value, None)
    finally:
        guests.close()


@needs_cgroups
def test_what_a_killed_broker_left_is_removed_by_the_next_and_a_live_ones_is_not() -> None:
    _, place = next(places())
    with subprocess.Popen(["sleep", "60"]) as alive:
        start = Path(f"/proc/{alive.pid}/stat").read_text().rpartition(")")[2].split()[19]
        dead, live = place / f"partvisor-1-{alive.pid}-1", place / f"partvisor-1-{alive.pid}-{start}"
        try:
            (dead / "g2" / "own").mkdir(parents=True)  # the same pid at another time
            live.mkdir()
            assert dead in remove_leftovers(place)
            assert not dead.exists()
            assert live.exists()
        finally:
            alive.kill()
            for folder in (dead / "g2" / "own", dead / "g2", dead, live):
                if folder.exists():
                    folder.rmdir()
    assert all(pattern.endswith("/partvisor-77-*") for pattern in cgroups_of(77))


# -- through the broker


def test_a_hypercall_begins_and_changes_scheduling() -> None:
    with broker_process() as broker:
        child = broker.spawn("linger")
        broker.event("partition.started", id=child)
        assert broker.request("sched", {})["mechanism"] is None
        broker.port.set_property(child, _P.CPU_CAP, 20 * PERCENT)
        report = broker.request("sched", {})
        assert report["mechanism"] is not None
        assert report["partitions"][0]["cap"] == 20 * PERCENT
        name = report["partitions"][0]["name"]
        assert broker.request("schedule", {"name": name, "reserve": 30 * PERCENT})["verb"] == "error"
        assert broker.request("schedule", {"name": name, "weight": 0})["verb"] == "error"
        assert broker.request("schedule", {"name": "root", "weight": 5})["verb"] == "error"
        assert broker.request("schedule", {"name": name, "weight": 7})["verb"] == "schedule"
        assert broker.port.get_property(child, _P.CPU_WEIGHT) == 7
        broker.request("schedule", {"name": name, "weight": 100, "cap": 0x10000})
        assert broker.request("sched", {})["mechanism"] is None
