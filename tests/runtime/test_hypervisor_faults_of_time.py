"""Faults of the clock, of timers and of heartbeats, as in test_hypervisor_faults."""

from typing import Any

import pytest

from runtime.abi import (
    TIMER_DIRECT,
    TIMER_ENABLE,
    TIMER_PERIODIC,
    TIMER_VECTOR_SHIFT,
    OverlayPage,
    timer_config_register,
    timer_count_register,
)
from runtime.chaos.faults.orders import Counts, FaultRefused
from tests.runtime.broken_hypervisor import Broken, C

# -- time


def _timer(machine: Broken, period_ms: int, *, periodic: bool) -> None:
    config = TIMER_ENABLE | TIMER_DIRECT | 77 << TIMER_VECTOR_SHIFT | (TIMER_PERIODIC if periodic else 0)
    count = period_ms * 10_000 if periodic else machine.time() + period_ms * 10_000
    registers = [[timer_count_register(0), count], [timer_config_register(0), config]]
    machine.world.do(machine.child, C.SET_VP_REGISTERS, vp=0, registers=registers)


def test_a_late_timer_expires_once_and_late() -> None:
    machine = Broken()
    number = machine.arm("timer-late", delay_ms=30)
    _timer(machine, 10, periodic=False)
    before = machine.lines
    machine.world.advance(39)
    assert machine.lines == before
    machine.world.advance(2)
    assert machine.lines == before + 1
    machine.world.advance(100)
    assert machine.lines == before + 1
    assert machine.counts(number) == Counts(1, 1)


def test_who_loses_its_heartbeats_is_declared_hung_and_a_farewell_is_heard() -> None:
    machine = Broken()
    world = machine.world
    world.do(machine.child, C.HEARTBEAT, within_ms=100)
    number = machine.arm("heartbeat-lost")
    for _ in range(3):
        world.advance(40)
        if machine.child not in world.doomed:
            world.do(machine.child, C.HEARTBEAT, within_ms=100)
    assert machine.child in world.doomed
    assert machine.fired(number) == 2
    other = Broken()
    other.world.do(other.child, C.HEARTBEAT, within_ms=100)
    other.arm("heartbeat-lost")
    other.world.do(other.child, C.HEARTBEAT, within_ms=0)
    other.world.advance(200)
    assert other.world.doomed == set()


def _watch(machine: Broken, advance_ms: float, steps: int) -> list[int]:
    """The guest's time at each step; it is checked that it never went back."""
    times = [machine.time()]
    for _ in range(steps):
        machine.world.advance(advance_ms)
        times.append(machine.time())
    assert times == sorted(times)
    return times


def test_a_clock_that_jumped_comes_back_at_half_its_speed_and_never_goes_back() -> None:
    machine = Broken()
    before = machine.time()
    number = machine.arm("clock-jump", jump_ms=1_000)
    assert machine.time() == before + 10_000_000
    assert machine.fired(number) == 1
    machine.heal(number)
    times = _watch(machine, 0.7, 3_000)
    assert times[1] - times[0] == 3_500
    assert times[-1] == before + 3_000 * 7_000  # as if nothing had ever happened
    assert machine.is_whole


def test_a_clock_can_be_broken_again_once_it_is_right() -> None:
    machine = Broken()
    machine.arm("timer-late")  # so that it is the same agent all the time
    before = machine.time()
    for _ in range(2):
        number = machine.arm("clock-jump", jump_ms=100)
        with pytest.raises(FaultRefused, match="wrong already"):
            machine.arm("clock-skew")
        machine.heal(number)
        with pytest.raises(FaultRefused, match="let it come back"):
            machine.arm("clock-skew")
        _watch(machine, 1, 500)
    assert machine.time() == before + 10_000_000


@pytest.mark.parametrize("ppm", [-200_000, -500, 500, 200_000])
def test_a_skewed_clock_runs_at_that_rate_and_is_right_again_after_it_was_healed(ppm: int) -> None:
    machine = Broken()
    before = machine.time()
    number = machine.arm("clock-skew", ppm=ppm)
    times = _watch(machine, 1, 1_000)
    assert times[-1] - before == pytest.approx(10_000_000 * (1_000_000 + ppm) / 1_000_000, abs=1)
    machine.heal(number)
    times = _watch(machine, 1, 1_000)
    assert times[-1] - before == 20_000_000
    assert machine.is_whole


@pytest.mark.parametrize(("ppm", "rung"), [(-200_000, 80), (200_000, 120)])
def test_timers_follow_the_clock_that_is_wrong(ppm: int, rung: int) -> None:
    """The world checks, after each event, that no timer is looked at before its moment."""
    machine = Broken()
    machine.arm("clock-skew", ppm=ppm)
    _timer(machine, 10, periodic=True)
    before = machine.lines
    machine.world.advance(1_000)
    assert machine.lines - before == pytest.approx(rung, abs=1)


def test_a_clock_that_stands_still_is_not_broken_and_a_broken_one_can_be_stopped() -> None:
    machine = Broken()
    freeze = {"partition": machine.child, "property": 0x30003}
    machine.world.do(1, C.SET_PARTITION_PROPERTY, **freeze, value=1)
    with pytest.raises(FaultRefused, match="stands still"):
        machine.arm("clock-skew", ppm=500)
    machine.world.do(1, C.SET_PARTITION_PROPERTY, **freeze, value=0)
    machine.arm("clock-skew", ppm=100_000)
    machine.world.advance(100)
    machine.world.do(1, C.SET_PARTITION_PROPERTY, **freeze, value=1)
    stopped = machine.time()
    machine.world.advance(100)
    assert machine.time() == stopped
    machine.world.do(1, C.SET_PARTITION_PROPERTY, **freeze, value=0)
    assert machine.time() == stopped
    machine.world.advance(100)
    assert machine.time() == stopped + 1_100_000


@pytest.mark.parametrize("claimed", ["before", "after"])
def test_the_reference_page_is_told_of_a_drift_whenever_it_is_claimed(claimed: str) -> None:
    machine = Broken()
    told: list[Any] = []
    carry_out = machine.world._carry_out

    def hear(effect: Any, files: int) -> None:
        told.append(effect)
        carry_out(effect, files)

    machine.world._carry_out = hear  # type: ignore[method-assign]
    for moment in ("before", "now", "after"):
        if moment == "now":
            machine.arm("clock-skew", ppm=500)
        if moment == claimed:
            machine.world.do(machine.child, C.CLAIM_OVERLAY_PAGE, page=int(OverlayPage.REFERENCE_TSC))
    assert [effect.drift.ppm for effect in told if hasattr(effect, "drift")] == [500]
