"""What each fault that ends processes does, on a machine whose root and driver partitions have successors.

One dies, another one takes over, and the guest, which knows of none of it, has every answer and every byte.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any, Final

import psutil

from runtime.chaos.faults.catalogue import FAULTS
from runtime.chaos.faults.kinds import Carrier
from runtime.chaos.faults.knobs import Knobs
from tests.machine.faults_of_messages import Exchange
from tests.machine.probed_machine import DISK, ONCE, PROBE, ProbedMachine, soon
from tests.machine.probing_guest import BLOCK, content

_SHORT_MS: Final = 40
_WAIT_MS: Final = 20_000
_IN_THE_DISK_MS: Final = 400  # a read that is asked for at once is there by then


@contextlib.contextmanager
def _successors(machine: ProbedMachine, roots: int = 0, drivers: int = 0) -> Iterator[None]:
    """So many of each die, for good reasons or others, and in the end there is one of each, and a standby."""
    died = machine.count_of("root.exited"), _driver_deaths(machine)
    restored, stood = machine.count_of("root.restored"), machine.count_of("root.standby")
    yield
    if roots:
        assert soon(lambda: machine.count_of("root.restored") > restored)
        assert soon(lambda: machine.count_of("root.standby") > stood)
    if drivers:
        assert soon(lambda: _driver_deaths(machine) == died[1] + drivers and _serves(machine))
    assert soon(lambda: machine.count_of("root.exited") == died[0] + roots)
    assert _driver_deaths(machine) == died[1] + drivers


def _driver_deaths(machine: ProbedMachine) -> int:
    return sum(event["partition"] == DISK for event in machine.all_of("partition.exited"))


def _serves(machine: ProbedMachine) -> bool:
    started = sum(event["partition"] == DISK for event in machine.all_of("partition.started"))
    told = max((event["fields"]["generation"] for event in machine.all_of("driver.serving")), default=0)
    return bool(told >= started > _driver_deaths(machine))


# -- one dies


def kill(machine: ProbedMachine) -> None:
    block, before = machine.filled(), machine.victim("root").pid
    with _successors(machine, roots=1), machine.armed("kill", "root"):
        pass
    assert machine.victim("root").pid != before
    assert machine.get(block) == content(block)


def fault_signal(machine: ProbedMachine) -> None:
    block = machine.filled()
    with _successors(machine, roots=1), machine.armed("fault-signal", "root", signal="SIGSEGV"):
        pass
    assert machine.all_of("root.exited")[-1]["fields"]["reason"] == f"signal {signal.SIGSEGV:d}"
    assert machine.get(block) == content(block)


def kill_at_step(machine: ProbedMachine) -> None:
    """Between its answer and its release: it is done again, and the second answer is dropped."""
    block = machine.filled()
    with _successors(machine, roots=1), machine.armed("kill-at-step", "root", step="publish"):
        machine.put(block, 7)
    assert machine.all_of("root.restored")[-1]["fields"]["died_at"] == "publish"
    assert machine.get(block) == content(7)


def kill_in_recovery(machine: ProbedMachine) -> None:
    block = machine.filled()
    with _successors(machine, roots=2), machine.armed("kill-in-recovery", "root", ONCE, delay_ms=0) as fault:
        os.kill(machine.victim("root").pid, signal.SIGKILL)
        fault.fires()
    assert machine.get(block) == content(block)


def crash_loop(machine: ProbedMachine) -> None:
    with _successors(machine, drivers=3), machine.armed("crash-loop", DISK, Knobs(times=2)) as fault:
        os.kill(machine.victim(DISK).pid, signal.SIGKILL)
        fault.fires(2)


def slow_start(machine: ProbedMachine) -> None:
    with _successors(machine, drivers=1), machine.armed("slow-start", DISK, ONCE, delay_ms=400) as fault:
        before = machine.victim(DISK).pid
        os.kill(before, signal.SIGKILL)
        fault.fires()
        assert soon(lambda: machine.victim(DISK).pid != before)
        assert soon(lambda: machine.victim(DISK).status() == psutil.STATUS_STOPPED)
        machine.works()


def kill_standby(machine: ProbedMachine) -> None:
    before = machine.all_of("root.standby")[-1]["fields"]["pid"]
    stood = machine.count_of("root.standby")
    with machine.armed("kill-standby", "standby"):
        assert soon(lambda: machine.count_of("root.standby") > stood)
    assert machine.all_of("root.standby")[-1]["fields"]["pid"] != before
    assert not psutil.pid_exists(before)


def heartbeat_lost(machine: ProbedMachine) -> None:
    """It lives, and is ended by the hypervisor for its silence."""
    before = machine.count_of("root.exited")
    with _successors(machine, roots=1), machine.armed("heartbeat-lost", "root") as fault:
        assert soon(lambda: machine.count_of("root.exited") > before)
        assert "hung" in machine.all_of("root.exited")[-1]["fields"]["reason"]
        fault.heal()


def _zygotes(machine: ProbedMachine) -> set[int]:
    """The one that there is, by what it is called; none, for a moment."""
    found = set()
    for child in machine.victim("hypervisor").children():
        with contextlib.suppress(psutil.Error):
            if child.name() == "pv-zygote" and child.status() != psutil.STATUS_ZOMBIE:
                found.add(child.pid)
    return found


def _another_zygote(machine: ProbedMachine, before: set[int]) -> bool:
    now = _zygotes(machine)
    return len(now) == 1 and not now & before


def kill_zygote(machine: ProbedMachine) -> None:
    """Whoever is to be born next is born of a new one."""
    before = _zygotes(machine)
    assert len(before) == 1
    with _successors(machine, drivers=1), machine.armed("kill-zygote", "hypervisor"):
        os.kill(machine.victim(DISK).pid, signal.SIGKILL)
        assert soon(lambda: _another_zygote(machine, before))


# -- what a disk loses


def _power_goes(machine: ProbedMachine, *, flushed: bool) -> int:
    """A block was written, and perhaps flushed; then the power goes with another write."""
    block = machine.fresh(2)
    machine.put(block, 5)
    if flushed:
        assert "error" not in machine.ask("flush")
    return block


def power_cut(machine: ProbedMachine) -> None:
    with _successors(machine, roots=1):
        with machine.armed("storage-power-cut", knobs=Knobs(space=2, times=1)):
            kept = _power_goes(machine, flushed=True)
            lost = _power_goes(machine, flushed=False)
            machine.put(lost + 1, 9)  # it strikes here; the successor does it again
        assert machine.get(kept) == content(5)
        assert machine.get(lost) == bytes(BLOCK)


def flush_lie(machine: ProbedMachine) -> None:
    """A flush that was acknowledged kept nothing."""
    with _successors(machine, roots=1), machine.armed("storage-flush-lie"):
        with machine.armed("storage-power-cut", knobs=Knobs(space=1, times=1)):
            lost = _power_goes(machine, flushed=True)
            machine.put(lost + 1, 9)
        assert machine.get(lost) == bytes(BLOCK)


def power_cut_after_lies(machine: ProbedMachine) -> None:
    """As soon as the power cut is armed, the next write is its end; what was flushed before is the lie's alone."""
    block = machine.filled()
    with _successors(machine, roots=1), machine.armed("power-cut-after-lies", after_ms=30) as fault:
        assert "error" not in machine.ask("flush")  # a lie
        assert soon(lambda: fault.row["passes"] == 2)  # both are armed
        machine.put(block, 9)  # strikes the second; the successor does it again
        fault.fires()
    assert machine.get(block) == content(9)


# -- compounds, and what is lost when a root goes


def double_kill(machine: ProbedMachine) -> None:
    with _successors(machine, roots=2), machine.armed("double-kill", "root", delay_ms=0) as fault:
        fault.fires()


def root_dies_without_a_zygote(machine: ProbedMachine) -> None:
    before = _zygotes(machine)
    with _successors(machine, roots=1), machine.armed("root-dies-without-a-zygote", "root"):
        assert soon(lambda: _another_zygote(machine, before))


def root_dies_while_disk_is_slow(machine: ProbedMachine) -> None:
    """The request is in the slow disk when its server goes, and the successor answers it."""
    block, kind = machine.filled(), "root-dies-while-disk-is-slow"
    with (
        _successors(machine, roots=1),
        machine.armed(kind, DISK, delay_ms=2_000, after_ms=_IN_THE_DISK_MS) as fault,
    ):
        answer = machine.ask("read", block=block)
        fault.fires()
    assert answer["done_ns"] > machine.all_of("root.exited")[-1]["fields"]["at_ns"]
    assert bytes.fromhex(answer["value"]) == content(block)


def storm_under_takeover(machine: ProbedMachine) -> None:
    with _successors(machine, roots=1), machine.armed("storm-under-takeover", PROBE, rate=500, after_ms=10):
        assert machine.ask("raises", wait_ms=20_000, enough=5)["messages"] == 0
        assert soon(lambda: machine.count_of("root.restored") > 0)
        machine.works()


def _loses_the_first(machine: ProbedMachine, kind: str, **parameters: Any) -> None:
    """The first timer's line after a root's end is silent, and healed it rings; the next rings at once."""
    before = machine.count_of("root.exited")
    with _successors(machine, roots=1), machine.armed(kind, PROBE, **parameters) as fault:
        if FAULTS[kind].carrier is not Carrier.COMPOUND:
            os.kill(machine.victim("root").pid, signal.SIGKILL)
        assert soon(lambda: machine.count_of("root.exited") > before)
        tick = machine.ask("tick", wait_ms=_SHORT_MS)
        assert tick["raised"] == 0, tick
        fault.fires()
        healed_ns = fault.heal()
        rung = machine.ask("raises", wait_ms=_WAIT_MS, enough=1)
        assert rung["rang_ns"] > healed_ns
        assert tick["messages"] + rung["messages"] == 1
    assert machine.ask("tick", wait_ms=_WAIT_MS)["raised"] == 1


def interrupt_lost_across_reconnect(machine: ProbedMachine) -> None:
    _loses_the_first(machine, "interrupt-lost-across-reconnect")


def silence_across_reconnect(machine: ProbedMachine) -> None:
    _loses_the_first(machine, "silence-across-reconnect", after_ms=0)


def synic_message_lost_across_reconnect(machine: ProbedMachine) -> None:
    before = machine.count_of("root.exited")
    kind = "synic-message-lost-across-reconnect"
    with _successors(machine, roots=1), machine.armed(kind, PROBE, direction="from"):
        os.kill(machine.victim("root").pid, signal.SIGKILL)
        assert soon(lambda: machine.count_of("root.exited") > before)
        exchange = Exchange(machine, 3)
        assert exchange.hears(lambda it: len(it.answers) == 2)
        assert exchange.answers == exchange.gpadls[1:]
    exchange.take_back()
