"""Every fault that the hypervisor carries out: armed in the real state machine, on virtual time, it strikes, has the
effect that it is there for, and leaves nothing behind once it is healed."""

from typing import Any, Final

import pytest

from runtime.abi import (
    ALL_PRIVILEGES,
    GUEST_PRIVILEGES,
    MESSAGE_BUFFERS_PER_PORT,
    ROOT_PARTITION,
    TIMER_DIRECT,
    TIMER_ENABLE,
    TIMER_PERIODIC,
    TIMER_VECTOR_SHIFT,
    HvStatus,
    HypercallCode,
    OverlayPage,
    PortType,
    RegisterName,
    Route,
    timer_config_register,
    timer_count_register,
)
from runtime.chaos.faults.catalogue import FAULTS
from runtime.chaos.faults.hypervisor_kinds import HYPERVISOR_KINDS
from runtime.chaos.faults.kinds import Group
from runtime.chaos.faults.knobs import Knobs
from runtime.chaos.faults.orders import Counts, FaultRefused, Order
from runtime.hypervisor.armed_faults import ArmedFaults
from runtime.hypervisor.machine import RootFailurePolicy
from tests.runtime.hypervisor_world import World, take_message

ALWAYS: Final = Knobs()

_C = HypercallCode
_SINT: Final = 2
_PORT, _CONNECTION = 7, 4


class Broken:
    """A running child with a port of each kind, connected to the root; and faults in its hypervisor."""

    def __init__(self, policy: RootFailurePolicy = RootFailurePolicy.HALT) -> None:
        self.world = World(memory_pages=1 << 14, on_root_failure=policy)
        self.child = self.world.child(pages=400, privileges=GUEST_PRIVILEGES, name="guest")
        self.world.start(self.child)
        self.world.enable_synic(self.child, _SINT)
        for kind, port in ((PortType.MESSAGE, _PORT), (PortType.EVENT, _PORT + 1)):
            flags = {"base_flag": 0, "flag_count": 8} if kind is PortType.EVENT else {}
            made = {
                "port": port,
                "connection_partition": 1,
                "type": int(kind),
                "sint": _SINT,
                "vp": 0,
            } | flags
            self.world.do(1, _C.CREATE_PORT, partition=self.child, **made)
            reached = {"connection": _CONNECTION + port - _PORT, "port_partition": self.child, "port": port}
            self.world.do(1, _C.CONNECT_PORT, route=int(Route.BROKER), **reached)
        self._last = 0

    def arm(self, kind: str, target: str = "guest", knobs: Knobs = ALWAYS, **parameters: Any) -> int:
        machine, self._last = self.world.machine, self._last + 1
        settled = FAULTS[kind].settle(parameters)
        order = Order(self._last, kind, target, settled, knobs, seed=7)

        def act() -> None:
            machine.faults = machine.faults or ArmedFaults(machine)
            machine.faults.inject(order)

        self.world.carry_out(self.world.hypervisor.break_on_purpose(act, self.world.now_ns))
        return self._last

    def heal(self, number: int | None = None) -> None:
        faults = self.world.machine.faults
        assert faults is not None
        heal = lambda: faults.heal(number)  # noqa: E731
        self.world.carry_out(self.world.hypervisor.break_on_purpose(heal, self.world.now_ns))
        self.world.check()

    def counts(self, number: int) -> Counts:
        assert self.world.machine.faults is not None
        return self.world.machine.faults.counts()[number]

    def fired(self, number: int) -> int:
        return self.counts(number).fired

    @property
    def is_whole(self) -> bool:
        """The state machine does not ask anybody any more."""
        return self.world.machine.faults is None

    def signal(self, flag: int) -> None:
        self.world.do(1, _C.SIGNAL_EVENT, connection=_CONNECTION + 1, flag=flag)

    @property
    def lines(self) -> int:
        return self.world.lines[self.child, 0]

    def post(self, payload: bytes) -> HvStatus:
        return self.world.status(1, _C.POST_MESSAGE, connection=_CONNECTION, type=1, payload=payload)

    def received(self) -> list[bytes]:
        """Every message that the guest gets now; it looks until nothing comes."""
        payloads = []
        while (found := take_message(self.world.vps[self.child, 0][0], _SINT)) is not None:
            payloads.append(found[2])
            self.world.do(self.child, _C.SET_VP_REGISTERS, vp=0, registers=[[int(RegisterName.EOM), 0]])
        return payloads

    def time(self) -> int:
        """100 ns."""
        names = [int(RegisterName.TIME_REF_COUNT)]
        return int(self.world.do(self.child, _C.GET_VP_REGISTERS, vp=0, names=names)["values"][0])


# -- interrupts


def test_a_lost_interrupt_rings_once_when_the_fault_is_healed() -> None:
    machine = Broken()
    number = machine.arm("interrupt-lost")
    before = machine.lines
    machine.signal(0)
    assert machine.lines == before
    assert machine.counts(number) == Counts(1, 1)
    machine.heal(number)
    assert machine.lines == before + 1
    assert machine.is_whole


def test_a_duplicate_interrupt_comes_twice() -> None:
    machine = Broken()
    number = machine.arm("interrupt-duplicate", knobs=Knobs(times=1))
    before = machine.lines
    machine.signal(0)
    machine.signal(1)
    assert machine.lines == before + 3
    assert machine.counts(number) == Counts(2, 1)


def test_a_delayed_interrupt_comes_when_its_time_is_over() -> None:
    machine = Broken()
    number = machine.arm("interrupt-delayed", delay_ms=20)
    before = machine.lines
    machine.signal(0)
    machine.world.advance(19)
    assert machine.lines == before
    machine.world.advance(1)
    assert machine.lines == before + 1
    machine.signal(1)
    machine.heal(number)
    machine.world.advance(0)
    assert machine.lines == before + 2
    assert machine.is_whole


def test_a_delayed_interrupt_of_a_port_that_is_gone_reaches_nobody() -> None:
    """The world objects to a ring of a doorbell that is closed."""
    machine = Broken()
    machine.world.do(1, _C.CLAIM_DOORBELL, connection=_CONNECTION + 1, flag=0)
    machine.arm("interrupt-delayed", delay_ms=20)
    machine.signal(0)
    machine.world.do(1, _C.DELETE_PORT, partition=machine.child, port=_PORT + 1)
    machine.world.advance(30)


def test_a_storm_rings_every_line_at_its_rate_and_no_longer_than_it_is_armed() -> None:
    machine = Broken()
    number = machine.arm("interrupt-storm", rate=100)
    before = machine.lines
    machine.world.advance(100)
    assert machine.fired(number) == machine.lines - before
    assert 10 <= machine.fired(number) <= 11
    machine.heal(number)
    rung = machine.lines
    machine.world.advance(100)
    assert machine.lines == rung
    assert machine.is_whole


def _replaced(kind: str, **parameters: Any) -> tuple[Broken, int]:
    """A machine whose root has just been replaced."""
    machine = Broken(RootFailurePolicy.RESTART)
    machine.world.do(1, _C.HEARTBEAT, within_ms=0)
    number = machine.arm(kind, **parameters)
    machine.signal(0)
    machine.post(b"before")
    assert machine.counts(number) == Counts(0, 0)
    assert machine.received() == [b"before"]
    machine.world.ended(ROOT_PARTITION)
    machine.world.started(ROOT_PARTITION)
    return machine, number


def test_the_first_interrupt_after_a_takeover_is_lost_and_the_second_is_not() -> None:
    machine, number = _replaced("interrupt-lost-across-reconnect")
    before = machine.lines
    machine.signal(1)
    assert machine.lines == before
    machine.signal(2)
    assert machine.lines == before + 1
    assert machine.counts(number) == Counts(1, 1)


def test_the_first_message_after_a_takeover_is_lost_and_the_second_is_not() -> None:
    machine, number = _replaced("synic-message-lost-across-reconnect")
    machine.post(b"first")
    machine.post(b"second")
    assert machine.received() == [b"second"]
    assert machine.counts(number) == Counts(1, 1)


# -- messages


def test_a_dropped_message_is_accepted_counted_as_posted_and_never_comes() -> None:
    machine = Broken()
    number = machine.arm("synic-message-drop", knobs=Knobs(times=1))
    assert machine.post(b"one") == HvStatus.SUCCESS
    assert machine.post(b"two") == HvStatus.SUCCESS
    assert machine.received() == [b"two"]
    posted = machine.world.do(1, _C.GET_PORT_PROPERTY, partition=machine.child, port=_PORT, property=0)
    assert posted["value"] == 2  # a root that takes over counts by this
    assert machine.counts(number) == Counts(2, 1)


def test_a_message_is_dropped_in_its_direction_alone() -> None:
    machine = Broken()
    from_guest = machine.arm("synic-message-drop", direction="from")
    from_root = machine.arm("synic-message-drop", target="root", direction="from", knobs=Knobs(times=1))
    machine.post(b"one")
    machine.post(b"two")
    assert machine.received() == [b"two"]
    assert (machine.fired(from_guest), machine.fired(from_root)) == (0, 1)


def test_a_duplicate_message_comes_twice_and_counts_as_one_post() -> None:
    machine = Broken()
    number = machine.arm("synic-message-duplicate", knobs=Knobs(times=1))
    machine.post(b"one")
    machine.post(b"two")
    assert machine.received() == [b"one", b"one", b"two"]
    posted = machine.world.do(1, _C.GET_PORT_PROPERTY, partition=machine.child, port=_PORT, property=0)
    assert posted["value"] == 2
    assert machine.fired(number) == 1


def test_a_delayed_message_holds_up_those_behind_it() -> None:
    machine = Broken()
    number = machine.arm("synic-message-delay", delay_ms=20, knobs=Knobs(times=1))
    machine.post(b"one")
    machine.world.advance(10)
    machine.post(b"two")
    assert machine.received() == []
    machine.world.advance(10)
    assert machine.received() == [b"one", b"two"]
    machine.heal(number)
    assert machine.is_whole


def test_healing_lets_a_delayed_message_go_and_a_full_port_makes_it_wait() -> None:
    machine = Broken()
    number = machine.arm("synic-message-delay", delay_ms=1_000, knobs=Knobs(times=1, space=1))
    sent = [bytes([index]) for index in range(MESSAGE_BUFFERS_PER_PORT + 8)]
    for payload in sent:
        assert machine.post(payload) == HvStatus.SUCCESS
    machine.heal(number)
    machine.world.advance(0)
    got = machine.received()
    while not machine.is_whole:
        machine.world.advance(5)
        got += machine.received()
    assert got == sent


def test_a_message_does_not_overtake_one_that_waits_for_a_buffer() -> None:
    machine = Broken()
    number = machine.arm("synic-message-delay", delay_ms=1_000, knobs=Knobs(times=1, space=1))
    sent = [bytes([index]) for index in range(MESSAGE_BUFFERS_PER_PORT + 4)]
    for payload in sent:
        machine.post(payload)
    machine.heal(number)
    machine.world.advance(0)  # the port is full, and some wait
    page = machine.world.vps[machine.child, 0][0]
    first = take_message(page, _SINT)
    assert first is not None
    assert machine.post(b"last") == HvStatus.SUCCESS
    got = [first[2]]
    while not machine.is_whole:
        machine.world.advance(5)
        got += machine.received()
    assert got == [*sent, b"last"]


def test_a_reordered_message_is_overtaken_by_the_next_one() -> None:
    machine = Broken()
    number = machine.arm("synic-message-reorder", knobs=Knobs(times=1))
    for payload in (b"one", b"two", b"three"):
        machine.post(payload)
    assert machine.received() == [b"two", b"one", b"three"]
    assert machine.fired(number) == 1


def test_a_message_that_nobody_overtakes_comes_late() -> None:
    machine = Broken()
    machine.arm("synic-message-reorder", delay_ms=50, knobs=Knobs(times=1))
    machine.post(b"one")
    assert machine.received() == []
    machine.world.advance(50)
    assert machine.received() == [b"one"]


def test_a_corrupt_message_differs_in_one_bit() -> None:
    machine = Broken()
    machine.arm("synic-message-corrupt")
    sent = bytes(range(64))
    machine.post(sent)
    (got,) = machine.received()
    assert sum((a ^ b).bit_count() for a, b in zip(sent, got, strict=True)) == 1


# -- calls


def test_a_slow_call_is_answered_late_and_done_when_it_is_answered() -> None:
    machine = Broken()
    number = machine.arm("hypercall-slow", target="root", call="POST_MESSAGE", delay_ms=20)
    world = machine.world
    reply = world.call(1, int(_C.POST_MESSAGE), {"connection": _CONNECTION, "type": 1, "payload": b"late"})
    assert reply.status == HvStatus.CALL_PENDING
    world.advance(19)
    assert machine.received() == []
    assert world.completed == []
    world.advance(1)
    assert machine.received() == [b"late"]
    assert world.completed == [(1, {})]
    assert machine.fired(number) == 1


def test_a_slow_call_of_a_process_that_died_is_answered_to_nobody() -> None:
    machine = Broken()
    machine.arm("hypercall-slow", call="GET_PARTITION_ID", delay_ms=20)
    assert machine.world.call(machine.child, int(_C.GET_PARTITION_ID), {}).status == HvStatus.CALL_PENDING
    machine.world.pending.clear()
    machine.world.ended(machine.child)
    machine.world.advance(30)
    assert machine.world.completed == []


def test_a_refused_call_has_that_status_so_often_and_does_nothing() -> None:
    machine = Broken()
    number = machine.arm("hypercall-refused", target="root", call="POST_MESSAGE", knobs=Knobs(times=2))
    assert [machine.post(payload) for payload in (b"1", b"2", b"3")] == [
        HvStatus.INSUFFICIENT_BUFFERS,
        HvStatus.INSUFFICIENT_BUFFERS,
        HvStatus.SUCCESS,
    ]
    assert machine.received() == [b"3"]
    assert machine.counts(number) == Counts(3, 2)
    machine.signal(0)  # another call of the same caller


# -- time


def _timer(machine: Broken, period_ms: int, *, periodic: bool) -> None:
    config = TIMER_ENABLE | TIMER_DIRECT | 77 << TIMER_VECTOR_SHIFT | (TIMER_PERIODIC if periodic else 0)
    count = period_ms * 10_000 if periodic else machine.time() + period_ms * 10_000
    registers = [[timer_count_register(0), count], [timer_config_register(0), config]]
    machine.world.do(machine.child, _C.SET_VP_REGISTERS, vp=0, registers=registers)


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
    world.do(machine.child, _C.HEARTBEAT, within_ms=100)
    number = machine.arm("heartbeat-lost")
    for _ in range(3):
        world.advance(40)
        if machine.child not in world.doomed:
            world.do(machine.child, _C.HEARTBEAT, within_ms=100)
    assert machine.child in world.doomed
    assert machine.fired(number) == 2
    other = Broken()
    other.world.do(other.child, _C.HEARTBEAT, within_ms=100)
    other.arm("heartbeat-lost")
    other.world.do(other.child, _C.HEARTBEAT, within_ms=0)
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
    machine.world.do(1, _C.SET_PARTITION_PROPERTY, **freeze, value=1)
    with pytest.raises(FaultRefused, match="stands still"):
        machine.arm("clock-skew", ppm=500)
    machine.world.do(1, _C.SET_PARTITION_PROPERTY, **freeze, value=0)
    machine.arm("clock-skew", ppm=100_000)
    machine.world.advance(100)
    machine.world.do(1, _C.SET_PARTITION_PROPERTY, **freeze, value=1)
    stopped = machine.time()
    machine.world.advance(100)
    assert machine.time() == stopped
    machine.world.do(1, _C.SET_PARTITION_PROPERTY, **freeze, value=0)
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
            machine.world.do(machine.child, _C.CLAIM_OVERLAY_PAGE, page=int(OverlayPage.REFERENCE_TSC))
    assert [effect.drift.ppm for effect in told if hasattr(effect, "drift")] == [500]


# -- authority


STATUSES: Final = {
    ("forge-partition-id", False): {HvStatus.ACCESS_DENIED, HvStatus.INVALID_PARTITION_ID},
    ("forge-partition-id", True): {HvStatus.ACCESS_DENIED, HvStatus.INVALID_PARTITION_ID},
    ("forge-connection-id", False): {HvStatus.INVALID_CONNECTION_ID},
    ("forge-connection-id", True): {HvStatus.INVALID_CONNECTION_ID},
    ("hypercall-garbage", False): {HvStatus.INVALID_HYPERCALL_CODE, HvStatus.INVALID_HYPERCALL_INPUT},
    ("hypercall-garbage", True): {HvStatus.INVALID_HYPERCALL_CODE, HvStatus.INVALID_HYPERCALL_INPUT},
}


@pytest.mark.parametrize("kind", ["forge-partition-id", "forge-connection-id", "hypercall-garbage"])
@pytest.mark.parametrize("privileges", [GUEST_PRIVILEGES, ALL_PRIVILEGES])
def test_forged_calls_are_refused_and_change_nothing(
    kind: str, privileges: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state machine's invariants are looked at after each; what others have is compared."""
    machine = Broken()
    world = machine.world
    sibling = world.child(pages=100, privileges=privileges, name="sibling")
    world.start(sibling)
    before = _standing(machine)
    calls = world.machine.calls_of[sibling].made if sibling in world.machine.calls_of else 0
    statuses: set[HvStatus] = set()
    decide = world.hypervisor.decide

    def hear(*call: Any) -> Any:
        reply = decide(*call)
        statuses.add(reply.status)
        return reply

    monkeypatch.setattr(world.hypervisor, "decide", hear)
    number = machine.arm(kind, target="sibling", rate=1_000)
    world.advance(400)
    assert statuses == STATUSES[kind, privileges is ALL_PRIVILEGES]
    assert machine.fired(number) >= 400
    count = world.machine.calls_of[sibling]
    assert count.made - calls == count.refused == machine.fired(number)
    assert [one.kind for one in world.announced if one.kind.startswith("fault.")] == []
    assert _standing(machine) == before
    machine.heal(number)
    assert machine.is_whole


def _standing(machine: Broken) -> list[tuple[object, ...]]:
    return [
        (one.id, one.state, one.process, one.pool.available, one.pool.in_use, len(one.ports), len(one.vps))
        for one in machine.world.machine.partitions.values()
    ]


def test_a_call_that_a_forger_gets_through_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hole, planted: whoever asks is taken for the parent."""
    machine = Broken()
    machine.world.child(pages=100, privileges=ALL_PRIVILEGES, name="sibling")
    machine.world.start(3)
    monkeypatch.setattr("runtime.hypervisor.machine.Machine.is_below", lambda *_: True)
    monkeypatch.setattr(
        "runtime.hypervisor.dispatch.Hypervisor._needed", lambda self, rule, caller, target: rule.on_child
    )
    monkeypatch.setattr(
        "runtime.hypervisor.forgeries.Forgeries._foreign_partition", lambda self, target, trigger: 2
    )
    machine.arm("forge-partition-id", target="sibling", rate=1_000)
    machine.world.advance(100)
    assert "fault.forgery_accepted" in [one.kind for one in machine.world.announced]


def test_a_greedy_partition_gets_what_its_pool_has_and_gives_it_back() -> None:
    machine = Broken()
    world = machine.world
    others = [row for row in _standing(machine) if row[0] != machine.child]
    pool = world.machine.partitions[machine.child].pool
    had = pool.available
    number = machine.arm("memory-greed", rate=1_000)
    world.advance(1_000)
    assert pool.available == 0
    assert [row for row in _standing(machine) if row[0] != machine.child] == others
    assert machine.fired(number) > had // 64
    machine.heal(number)
    assert pool.available == had
    assert machine.is_whole


def test_the_root_cannot_forge_what_it_may_do_anyway() -> None:
    machine = Broken()
    with pytest.raises(FaultRefused, match="it may call on any"):
        machine.arm("forge-partition-id", target="root")


# -- the whole


def test_what_is_aimed_at_nobody_is_refused() -> None:
    machine = Broken()
    with pytest.raises(FaultRefused, match="no partition is named 'nobody'"):
        machine.arm("interrupt-lost", target="nobody")
    with pytest.raises(FaultRefused, match="wants one partition"):
        machine.arm("clock-jump", target="*")
    machine.arm("interrupt-lost", target="*")


def test_two_machines_with_the_same_faults_and_seeds_do_the_same() -> None:
    def run() -> list[object]:
        machine = Broken()
        some = Knobs(probability=40)
        machine.arm("synic-message-drop", knobs=some)
        machine.arm("synic-message-corrupt", knobs=some)
        machine.arm("synic-message-reorder", knobs=some, delay_ms=5)
        machine.arm("interrupt-delayed", knobs=some, delay_ms=3)
        machine.arm("forge-connection-id", rate=200, knobs=some)
        seen: list[object] = []
        for index in range(200):
            machine.post(bytes([index] * 8))
            machine.world.advance(1.5)
            seen.append((machine.received(), machine.lines, machine.world.machine.calls.refused))
        return seen

    first = run()
    assert first == run()
    assert len({str(one) for one in first}) > 50


def test_every_kind_of_the_hypervisors_has_a_test_here_but_the_zygotes() -> None:
    with open(__file__) as source:
        text = source.read()
    of_machine = [kind.name for kind in HYPERVISOR_KINDS if kind.group is not Group.PROCESS]
    assert [name for name in of_machine if f'"{name}"' not in text] == []
