"""Faults that the broker itself has a hand in: doorbells rung past the state machine, the zygote, the reference page.

Real eventfds, a real router, a real zygote.
"""

import gc
import mmap
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from bus.memory import PAGE_BYTES
from bus.native import eventfd_signal, flags_take_all, reference_time
from runtime.abi import HvStatus, HypercallCode, PortType, Route
from runtime.chaos.faults.catalogue import FAULTS
from runtime.chaos.faults.knobs import Knobs
from runtime.chaos.faults.orders import Order
from runtime.hypervisor.broker_faults import BrokerFaults
from runtime.hypervisor.drift import Drift
from runtime.hypervisor.loop import now_ns
from runtime.hypervisor.reference_clock import MEASURED_NS_MIN, ReferenceClock, is_reliable
from tests.runtime.broker_in_process import BrokerInProcess, brokers
from tests.runtime.broker_process import BrokerProcess, broker_process

ALWAYS: Final = Knobs()

SINT, PORT, CONNECTION = 2, 7, 4
PATIENCE_S: Final = 20.0


class Wired:
    """A port of the root's, and a child that rings it over one of the two routes."""

    def __init__(self, world: BrokerInProcess, route: Route) -> None:
        self.world, self.faults = world, BrokerFaults(world.broker)
        root = world.root
        root.enable_synic(0, [SINT])
        self.child = world.child()
        root.create_port(PORT, self.child, PortType.EVENT, SINT, flag_count=1)
        root.connect_port(CONNECTION, 1, PORT, partition=self.child, route=route)
        self.doorbell = root.claim_port_doorbell(PORT).fd
        os.set_blocking(self.doorbell, False)
        world.send(self.child, [int(HypercallCode.CLAIM_DOORBELL), {"connection": CONNECTION, "flag": 0}])
        ((status, _, (self.kick,)),) = world.replies(self.child)
        assert status == HvStatus.SUCCESS
        self._sief = world.broker.host._vps[1, 0].sief.memory

    def arm(self, kind: str, number: int, knobs: Knobs = ALWAYS, **parameters: Any) -> None:
        order = Order(number, kind, "root", FAULTS[kind].settle(parameters), knobs)
        assert self.faults.answer("inject", {"order": order.to_table()}) == {}

    def count(self, number: int) -> tuple[int, int]:
        rows: Any = self.faults.answer("fault-counts", {})["counts"]
        return next((passes, fired) for one, passes, fired in rows if one == number)

    def ring(self) -> None:
        """As the child does; what was told before has been seen."""
        flags_take_all(self._sief, SINT)
        assert eventfd_signal(self.kick)

    def rung(self) -> int:
        try:
            return os.eventfd_read(self.doorbell)
        except BlockingIOError:
            return 0

    def run_until(self, condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> bool:
        deadline = time.monotonic() + patience_s
        self.world.broker.loop.run_once(
            2
        )  # first: on the direct route, who looks earlier than a thief loses nothing
        while not (came := condition()) and time.monotonic() < deadline:
            self.world.broker.loop.run_once(2)
        return came

    def run_for(self, seconds: float) -> None:
        self.run_until(lambda: False, seconds)


@pytest.fixture(params=[Route.BROKER, Route.DIRECT], ids=["broker", "direct"])
def wired(request: pytest.FixtureRequest) -> Iterator[Wired]:
    with brokers(1) as (world,):
        yield Wired(world, request.param)


def test_a_ring_past_the_state_machine_is_lost_and_comes_once_when_the_fault_is_healed(wired: Wired) -> None:
    wired.ring()
    assert wired.run_until(lambda: wired.rung() == 1)
    wired.arm("interrupt-lost", 1)
    wired.ring()
    assert wired.run_until(lambda: wired.count(1) == (1, 1))
    assert wired.rung() == 0
    wired.faults.answer("heal", {"number": 1})
    assert wired.rung() == 1
    wired.run_for(0.05)
    assert wired.rung() == 0
    wired.ring()
    assert wired.run_until(lambda: wired.rung() == 1)
    assert wired.world.machine.faults is None


def test_a_ring_past_the_state_machine_is_delayed_once(wired: Wired) -> None:
    """What we ring ourselves, late, is not taken for another interrupt."""
    wired.arm("interrupt-delayed", 1, delay_ms=30)
    began = time.monotonic()
    wired.ring()
    total = 0

    def look() -> bool:
        nonlocal total
        total += wired.rung()
        return total > 0

    assert wired.run_until(look)
    assert time.monotonic() - began >= 0.03
    wired.run_for(0.1)
    assert wired.rung() == 0
    assert wired.count(1) == (1, 1)


def test_a_ring_that_the_fault_lets_pass_comes(wired: Wired) -> None:
    wired.arm("interrupt-lost", 1, Knobs(times=1))
    wired.ring()
    assert wired.run_until(lambda: wired.count(1) == (1, 1))
    wired.ring()
    assert wired.run_until(lambda: wired.rung() == 1)
    assert wired.count(1) == (2, 1)


def test_a_port_that_comes_and_one_that_goes_while_a_fault_is_armed_are_seen(wired: Wired) -> None:
    wired.ring()  # whose first use opens what it rings with
    assert wired.run_until(lambda: wired.rung() == 1)
    wired.arm("interrupt-lost", 1)
    gc.collect()  # what others have left
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    root, world = wired.world.root, wired.world
    root.create_port(PORT + 1, wired.child, PortType.EVENT, SINT, flag_count=1, base_flag=8)
    root.connect_port(CONNECTION + 1, 1, PORT + 1, partition=wired.child, route=Route.BROKER)
    doorbell = root.claim_port_doorbell(PORT + 1).fd
    world.send(wired.child, [int(HypercallCode.CLAIM_DOORBELL), {"connection": CONNECTION + 1, "flag": 0}])
    ((_, _, (kick,)),) = world.replies(wired.child)
    assert wired.run_until(lambda: (1, PORT + 1) in wired.faults._watched)
    assert wired.run_until(lambda: wired.faults._watched[1, PORT + 1].route is not None)
    assert eventfd_signal(kick)
    assert wired.run_until(lambda: wired.count(1) == (1, 1))
    root.delete_port(PORT + 1)
    assert wired.run_until(lambda: (1, PORT + 1) not in wired.faults._watched)
    root.disconnect_port(CONNECTION + 1, partition=wired.child)
    for fd in (kick, doorbell):
        os.close(fd)
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_an_order_for_somebody_else_is_refused(wired: Wired) -> None:
    order = Order(1, "kill", "root").to_table()
    with pytest.raises(ValueError, match="carries out no kill"):
        wired.faults.answer("inject", {"order": order})
    with pytest.raises(ValueError, match="no order"):
        wired.faults.answer("inject", {"order": 1})
    wired.faults.answer("heal", {"number": 4711})


@pytest.fixture(scope="module")
def broker() -> Iterator[BrokerProcess]:
    with broker_process() as running:
        yield running


def test_a_killed_zygote_has_a_successor_and_the_count_says_so(broker: BrokerProcess) -> None:
    (before,) = psutil.Process(broker.process.pid).children()
    order = Order(1, "kill-zygote", "hypervisor")
    broker.request("inject", {"order": order.to_table()})
    assert broker.request("fault-counts", {})["counts"] == [[1, 1, 1]]
    before.wait(PATIENCE_S)
    child = broker.spawn("exit", code=5)
    assert broker.event("partition.exited", id=child)["code"] == 5
    broker.request("heal", {"number": 1})
    assert broker.request("fault-counts", {})["counts"] == []


@pytest.mark.skipif(not is_reliable(), reason="this host's TSC is not to be relied on")
@pytest.mark.parametrize("ppm", [-200_000, 200_000])
def test_a_reference_page_drifts_with_its_partition_and_never_goes_back(ppm: int) -> None:
    """Against what the state machine says at the same moment: a page that is off by 100 us is another clock."""
    clock, memory = ReferenceClock(), mmap.mmap(-1, PAGE_BYTES)
    time.sleep(2 * MEASURED_NS_MIN / 1e9)
    created_ns = now_ns()
    clock.add(1, memory, created_ns)
    last = 0

    def follow(drift: Drift | None, seconds: float, gone_ns: int = 0) -> None:
        nonlocal last
        clock.set(1, created_ns - gone_ns, drift)
        told_ns = refreshed_ns = now_ns()
        late_ns = told_ns - drift.since_ns if drift is not None else 0  # so long the page did not know
        while (before := now_ns()) < told_ns + seconds * 1e9:
            if before > refreshed_ns + 10_000_000:  # far more often than the broker
                clock.refresh()
                refreshed_ns = before = now_ns()
            shown = reference_time(memory)
            after = now_ns()
            assert shown is not None
            assert shown >= last
            last = shown
            over_ns = 0 if drift is None or drift.until_ns is None else max(after - drift.until_ns, 0)
            slack = 1_000 + late_ns // 100 + min(over_ns, after - refreshed_ns) // 100
            bounds = [
                (at - created_ns + gone_ns + (0 if drift is None else drift.added_ns(at))) // 100
                for at in (before, after)
            ]
            assert bounds[0] - slack <= shown <= bounds[1] + slack

    follow(None, 0.02)
    began_ns = now_ns()
    drift = Drift(began_ns, ppm)
    follow(drift, 0.15)
    healed_ns = now_ns()
    added_ns = drift.added_ns(healed_ns)
    if added_ns > 0:
        back = Drift(healed_ns, -500_000, healed_ns + 2 * added_ns)
        follow(back, 2 * added_ns / 1e9 + 0.01, added_ns)
    follow(None, 0.05)
