"""What each fault of interrupts, timers, clocks, calls and authority does to a guest, on a machine that runs."""

from typing import Any, Final

from runtime.chaos.faults.knobs import Knobs
from tests.machine.probed_machine import ONCE, PROBE, Fault, ProbedMachine, soon
from tests.machine.probing_guest import content

_DELAY_MS: Final = 30
_WAIT_MS: Final = 20_000
_SHORT_MS: Final = 40
_JUMP_MS: Final = 200  # it takes as long again, and twice that, to come back


def _ticks(machine: ProbedMachine) -> None:
    """A timer's message, and one interrupt for it."""
    tick = machine.ask("tick", wait_ms=_WAIT_MS)
    assert (tick["raised"], tick["messages"]) == (1, 1), tick


# -- interrupts


def interrupt_lost(machine: ProbedMachine) -> None:
    """The message stands there, and its line is silent. Healed, the line rings."""
    with machine.armed("interrupt-lost", PROBE) as fault:
        tick = machine.ask("tick", wait_ms=_SHORT_MS)
        assert tick["raised"] == 0, tick
        fault.fires()
        healed_ns = fault.heal()
        rung = machine.ask("raises", wait_ms=_WAIT_MS, enough=1)
        assert rung["rang_ns"] > healed_ns
        assert tick["messages"] + rung["messages"] == 1
    _ticks(machine)


def interrupt_duplicate(machine: ProbedMachine) -> None:
    with machine.armed("interrupt-duplicate", PROBE):
        tick = machine.ask("tick", wait_ms=_WAIT_MS)
        more = {"raised": 0}
        if tick["raised"] == 1:  # it was faster than the second one
            more = machine.ask("raises", wait_ms=_WAIT_MS, enough=1)
        assert tick["raised"] + more["raised"] == 2, (tick, more)
        assert tick["messages"] == 1
    _ticks(machine)


def interrupt_delayed(machine: ProbedMachine) -> None:
    with machine.armed("interrupt-delayed", PROBE, delay_ms=_DELAY_MS):
        tick = machine.ask("tick", wait_ms=_WAIT_MS)
        assert tick["messages"] == 1
        assert tick["reached_us"] - tick["late_us"] >= _DELAY_MS * 1_000, "it stood there long before"
    _ticks(machine)


def interrupt_storm(machine: ProbedMachine) -> None:
    with machine.armed("interrupt-storm", PROBE, rate=1000):
        rung = machine.ask("raises", wait_ms=_WAIT_MS, enough=10)
        assert rung["raised"] >= 10
        assert rung["messages"] == 0
        machine.works()
    machine.ask("raises", wait_ms=5, enough=1_000)  # what was on its way
    _ticks(machine)


# -- time


def timer_late(machine: ProbedMachine) -> None:
    with machine.armed("timer-late", PROBE, delay_ms=_DELAY_MS):
        tick = machine.ask("tick", wait_ms=_WAIT_MS)
        assert tick["late_us"] >= _DELAY_MS * 1_000
    _ticks(machine)


def _never_goes_back(clocks: list[dict[str, Any]]) -> None:
    times = [at for one in clocks for at in one["at_us"]]
    assert times == sorted(times)


def clock_skew(machine: ProbedMachine) -> None:
    with machine.armed("clock-skew", PROBE, ppm=-200_000):
        clocks = [_until(machine, lambda one: one["own_us"] < 0.9 * one["least_us"])]
    clocks.append(_until(machine, lambda one: one["own_us"] >= 0.95 * one["least_us"]))
    _never_goes_back(clocks)


def clock_jump(machine: ProbedMachine) -> None:
    clocks = [machine.ask("clocks", pause_ms=1)]
    with machine.armed("clock-jump", PROBE, jump_ms=_JUMP_MS) as fault:
        clocks.append(machine.ask("clocks", pause_ms=1))
        own_us = clocks[1]["at_us"][0] - clocks[0]["at_us"][0]
        assert own_us >= clocks[1]["host_us"][0] - clocks[0]["host_us"][1] + _JUMP_MS * 1_000
        fault.fires()
    clocks.append(_until(machine, lambda one: one["own_us"] < 0.8 * one["least_us"]))
    _never_goes_back(clocks)


def _until(machine: ProbedMachine, condition: Any) -> dict[str, Any]:
    """A look at its clocks of which that is true. A clock that keeps time has none that is too slow."""
    looks: list[dict[str, Any]] = []

    def look() -> bool:
        looks.append(machine.ask("clocks", pause_ms=10))
        return bool(condition(looks[-1]))

    assert soon(look), looks[-1]
    return looks[-1]


def hypercall_slow(machine: ProbedMachine) -> None:
    with machine.armed("hypercall-slow", PROBE, call="GET_PARTITION_ID", delay_ms=_DELAY_MS):
        called = machine.ask("call")
        assert called["status"] == "SUCCESS"
        assert called["took_us"] >= _DELAY_MS * 1_000


# -- what it may not, or may no longer


def hypercall_refused(machine: ProbedMachine) -> None:
    with machine.armed("hypercall-refused", PROBE, ONCE, call="GET_PARTITION_ID", status="NO_RESOURCES"):
        assert machine.ask("call")["status"] == "NO_RESOURCES"
        assert machine.ask("call")["status"] == "SUCCESS"


def _holdings(machine: ProbedMachine) -> dict[str, Any]:
    """What the guest has and is, by the hypervisor's account."""
    shown = machine.request("show", name=PROBE)
    rows: dict[str, Any] = shown.get("partition", shown)
    return {name: value for name, value in rows.items() if name != "devices"}


def _refuses(machine: ProbedMachine, kind: str) -> None:
    """Each of them, by the hypervisor's own account of the guest's calls; and nothing is different."""
    block, before = machine.filled(), machine.ask("refused")
    shown = _holdings(machine)

    def more_than(fault: Fault) -> bool:
        return bool(machine.ask("refused")["refused"] >= before["refused"] + fault.fired)

    with machine.armed(kind, PROBE, Knobs(times=20), rate=1000) as fault:
        fault.fires(20)
        assert soon(lambda: more_than(fault))
        assert machine.get(block) == content(block)
    assert machine.count_of("fault.forgery_accepted") == 0
    assert _holdings(machine) == shown


def forge_partition_id(machine: ProbedMachine) -> None:
    _refuses(machine, "forge-partition-id")


def forge_connection_id(machine: ProbedMachine) -> None:
    _refuses(machine, "forge-connection-id")


def hypercall_garbage(machine: ProbedMachine) -> None:
    _refuses(machine, "hypercall-garbage")


def memory_greed(machine: ProbedMachine) -> None:
    """It gets what its own pool pays for, to the last page; another partition's pool is as it was."""

    def pages(name: str, which: str) -> int:
        rows: dict[str, Any] = machine.request("show", name=name)
        return int(rows.get("partition", rows)[which])

    before, roots = pages(PROBE, "pages_available"), pages("root", "pages_in_use")
    assert before > 0
    with machine.armed("memory-greed", PROBE, rate=1000):
        assert soon(lambda: pages(PROBE, "pages_available") == 0)
        assert pages("root", "pages_in_use") == roots
    assert soon(lambda: pages(PROBE, "pages_available") == before)
