"""Intercepts that wait for a slot, or whose parent or child ends, and any history of them."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bus.intercept_messages import (
    InterceptAccess,
    PortIntercept,
)
from runtime.abi import (
    ALL_PRIVILEGES,
    HvStatus,
    PartitionProperty,
)
from tests.runtime.intercepting import (
    SINT,
    UART,
    C,
    R,
    access_port,
    answer,
    install,
    intercepting_world,
    message_of,
    registers_of,
)
from tests.runtime.plain_synic import take_message

# -- slots and deaths ----------------------------------------------------------------------------------------


def test_messages_of_many_children_wait_for_the_one_slot_in_order() -> None:
    world, first = intercepting_world()
    children = [first, *(world.child() for _ in range(4))]
    for child in children[1:]:
        world.start(child)
    for child in children:
        install(world, child, UART, UART)
        assert access_port(world, child) == HvStatus.CALL_PENDING
    # The third dies while its message waits: nobody is told of it any more.
    world.ended(children[2])
    senders = []
    while (found := message_of(world)) is not None:
        senders.append(found[1])
    assert senders == [children[0], children[1], children[3], children[4]]
    assert world.status(1, C.SET_VP_REGISTERS, partition=children[2], vp=0, registers=[[1, 0]]) == 7


def test_a_message_waits_until_its_parent_switches_its_synic_on() -> None:
    world, child = intercepting_world()
    off, on = [[int(R.SCONTROL), 0]], [[int(R.SCONTROL), 1]]
    world.do(1, C.SET_VP_REGISTERS, vp=0, registers=off)
    install(world, child, UART, UART)
    assert access_port(world, child) == HvStatus.CALL_PENDING
    assert take_message(world.vps[1, 0][0], SINT) is None
    lines = world.lines[1, 0]
    world.do(1, C.SET_VP_REGISTERS, vp=0, registers=on)
    assert world.lines[1, 0] == lines + 1
    assert message_of(world) is not None


def test_a_parent_that_never_answers_leaves_the_vp_suspended_and_it_can_be_killed() -> None:
    world, child = intercepting_world()
    install(world, child, UART, UART)
    assert access_port(world, child) == HvStatus.CALL_PENDING
    world.advance(3_600_000)
    assert registers_of(world, child, R.INTERCEPT_SUSPEND) == [1]
    world.carry_out(world.hypervisor.kill(child))
    world.bury()
    assert not world.completed
    assert world.status(1, C.DELETE_PARTITION, partition=child) == HvStatus.SUCCESS


@pytest.mark.parametrize("taken", [False, True])
def test_a_parents_next_process_is_told_of_what_its_predecessor_had_not_answered(taken: bool) -> None:
    """Once each, whether the dead one had taken the message out of its slot or not."""
    world, child = intercepting_world()
    other = world.child()
    world.start(other)
    for each in (child, other):
        install(world, each, UART, UART)
        assert access_port(world, each) == HvStatus.CALL_PENDING
    if taken:
        assert message_of(world) is not None
    world.ended(1, 1)
    world.started(1)
    senders = []
    while (found := message_of(world)) is not None:
        senders.append(found[1])
    assert sorted(senders) == [child, other]
    assert answer(world, child, rip=1, rax=7) == HvStatus.SUCCESS
    assert world.completed == [(child, {"value": 7, "left": 0})]


def test_a_partition_that_outlives_its_process_forgets_the_access_and_its_registers_stay() -> None:
    world, child = intercepting_world()
    install(world, child, UART, UART)
    outlives = {"partition": child, "property": int(PartitionProperty.OUTLIVES_PROCESS), "value": 1}
    world.do(1, C.SET_PARTITION_PROPERTY, **outlives)
    assert access_port(world, child) == HvStatus.CALL_PENDING
    world.ended(child)
    world.pending.clear()
    assert answer(world, child, rip=1) == HvStatus.INVALID_VP_STATE
    world.start(child)
    assert access_port(world, child) == HvStatus.CALL_PENDING


def test_a_vp_that_waits_for_messages_of_children_is_not_deleted() -> None:
    world, child = intercepting_world()
    world.do(1, C.CREATE_VP, vp=1)
    both = {"partition": child, "access": 3, "type": 0, "parameter": UART, "vp": 1}
    world.do(1, C.INSTALL_INTERCEPT, **both)
    assert access_port(world, child) == HvStatus.CALL_PENDING
    assert world.status(1, C.DELETE_VP, vp=1) == HvStatus.OBJECT_IN_USE
    world.enable_synic(1, SINT, vp=1)
    assert world.lines[1, 1] == 1
    assert world.status(1, C.DELETE_VP, vp=1) == HvStatus.SUCCESS  # the message went with its slot
    assert answer(world, child, rip=1) == HvStatus.SUCCESS


# -- any history ---------------------------------------------------------------------------------------------


class InterceptHistory(RuleBasedStateMachine):
    """Children access, parents answer, processes die. Every access that was left pending is answered once, or its
    process ended; and its parent was told of it at least once before it was answered properly."""

    def __init__(self) -> None:
        super().__init__()
        self.world, first = intercepting_world()
        self.children = [first, self.world.child(privileges=ALL_PRIVILEGES)]
        self.world.start(self.children[1])
        self.accepted = dict.fromkeys(self.children, 0)
        self.serial = 0
        for child in self.children:
            install(self.world, child, 0x100, 0x1FF)

    @rule(who=st.integers(0, 1), port=st.sampled_from([0xFF, 0x100, 0x1FF, 0x200]), write=st.integers(0, 1))
    def access(self, who: int, port: int, write: int) -> None:
        child = self.children[who]
        suspended = self.world.machine.partitions[child].vps[0].intercept.access is not None
        status = access_port(self.world, child, port, write=write)
        if suspended:
            assert status == HvStatus.INVALID_VP_STATE
        else:
            told = 0x100 <= port < 0x200
            assert status == (HvStatus.CALL_PENDING if told else HvStatus.SUCCESS)
            self.accepted[child] += told

    @precondition(lambda self: 1 in self.world.running)
    @rule(past=st.booleans(), value=st.integers(0, 255))
    def serve(self, past: bool, value: int) -> None:
        """Take one message, and answer it; or leave RIP where it is, so that it comes again."""
        found = message_of(self.world)
        if found is None:
            return
        header = PortIntercept.decode(found[2]).header
        done = len(self.world.completed)
        access = self.world.machine.partitions[found[1]].vps[0].intercept.access
        if access is not None and access.rip != header.rip:
            return  # of an access that was answered unasked: the message for this one comes behind it
        status = answer(self.world, found[1], rip=header.rip + past, rax=value)
        if past and status == HvStatus.SUCCESS:
            assert len(self.world.completed) == done + 1
            expected = 0 if header.access is InterceptAccess.WRITE else value
            assert self.world.completed[-1] == (found[1], {"value": expected, "left": 0})
        else:
            assert len(self.world.completed) == done

    @precondition(lambda self: 1 in self.world.running)
    @rule(who=st.integers(0, 1))
    def answer_unasked(self, who: int) -> None:
        """Without having looked at the message."""
        answer(self.world, self.children[who], rip=0xFFFF)

    @precondition(lambda self: 1 in self.world.running)
    @rule()
    def root_dies(self) -> None:
        self.world.now_ns += 10**9
        self.world.ended(1, 1)
        self.world.started(1)

    @invariant()
    def no_reply_is_lost_or_sent_twice(self) -> None:
        for child in self.children:
            answered = sum(who == child for who, _ in self.world.completed)
            waits = self.world.machine.partitions[child].vps[0].intercept.access is not None
            assert answered + waits == self.accepted[child]

    def teardown(self) -> None:
        """A root that serves everything lets everybody go."""
        for _ in range(4):  # two that are due, behind two that were answered unasked
            self.serve(True, 1)
            self.world.do(1, C.SET_VP_REGISTERS, vp=0, registers=[[int(R.EOM), 0]])
        for child in self.children:
            partition: Any = self.world.machine.partitions[child]
            assert partition.vps[0].intercept.access is None


TestInterceptHistory = InterceptHistory.TestCase
TestInterceptHistory.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
