"""Every fault that the hypervisor carries out: armed in the real state machine, on virtual time, it strikes, has the
effect that it is there for, and leaves nothing behind once it is healed. Here: interrupts, messages, calls."""

from pathlib import Path
from typing import Any

import pytest

from runtime.abi import (
    MESSAGE_BUFFERS_PER_PORT,
    ROOT_PARTITION,
    HvStatus,
)
from runtime.chaos.faults.hypervisor_kinds import HYPERVISOR_KINDS
from runtime.chaos.faults.kinds import Group
from runtime.chaos.faults.knobs import Knobs
from runtime.chaos.faults.orders import Counts, FaultRefused
from runtime.hypervisor.machine import RootFailurePolicy
from tests.runtime.broken_hypervisor import CONNECTION, PORT, SINT, Broken, C
from tests.runtime.plain_synic import take_message

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
    machine.world.do(1, C.CLAIM_DOORBELL, connection=CONNECTION + 1, flag=0)
    machine.arm("interrupt-delayed", delay_ms=20)
    machine.signal(0)
    machine.world.do(1, C.DELETE_PORT, partition=machine.child, port=PORT + 1)
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
    machine.world.do(1, C.HEARTBEAT, within_ms=0)
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
    posted = machine.world.do(1, C.GET_PORT_PROPERTY, partition=machine.child, port=PORT, property=0)
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
    posted = machine.world.do(1, C.GET_PORT_PROPERTY, partition=machine.child, port=PORT, property=0)
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
    first = take_message(page, SINT)
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
    reply = world.call(1, int(C.POST_MESSAGE), {"connection": CONNECTION, "type": 1, "payload": b"late"})
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
    assert machine.world.call(machine.child, int(C.GET_PARTITION_ID), {}).status == HvStatus.CALL_PENDING
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


def test_every_kind_of_the_hypervisors_has_a_test_beside_this_one_but_the_zygotes() -> None:
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_hypervisor_faults*.py"))
    of_machine = [kind.name for kind in HYPERVISOR_KINDS if kind.group is not Group.PROCESS]
    assert [name for name in of_machine if f'"{name}"' not in text] == []
