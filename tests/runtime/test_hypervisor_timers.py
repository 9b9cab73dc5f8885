"""Synthetic timers through the whole state machine: registers in, messages and vectors out, on virtual time."""

import struct
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.abi import (
    TIMER_AUTO_ENABLE,
    TIMER_DIRECT,
    TIMER_ENABLE,
    TIMER_EXPIRED_MESSAGE,
    TIMER_LAZY,
    TIMER_PERIOD_MIN_100NS,
    TIMER_PERIODIC,
    TIMER_SINT_SHIFT,
    TIMER_VECTOR_SHIFT,
    HvStatus,
    HypercallCode,
    OverlayPage,
    PartitionProperty,
    Privilege,
    RegisterName,
    timer_config_register,
    timer_count_register,
)
from runtime.hypervisor.machine import RootFailurePolicy
from runtime.hypervisor.synthetic_timers import TIMER_BURST, TIMER_GRID_NS, TIMER_SPACING_NS
from runtime.hypervisor.timer_expiry import EXPIRIES_AT_ONCE_MAX
from tests.runtime.hypervisor_world import World
from tests.runtime.plain_synic import take_message

_C = HypercallCode
_SINT: Final = 5
_MS: Final = 10_000  # in 100 ns
_MESSAGE: Final = TIMER_ENABLE | _SINT << TIMER_SINT_SHIFT
_VECTOR: Final = 77
_DIRECT: Final = TIMER_ENABLE | TIMER_DIRECT | _VECTOR << TIMER_VECTOR_SHIFT


def _child(vps: int = 1) -> tuple[World, int]:
    """A running partition with its SynIC on, born at 1 ms."""
    world = World()
    world.now_ns = 1_000_000
    child = world.child(pages=400)
    world.start(child)
    for vp in range(1, vps):
        world.do(1, _C.CREATE_VP, partition=child, vp=vp)
    for vp in range(vps):
        world.enable_synic(child, _SINT, vp)
    return world, child


def _set(world: World, child: int, config: int, count: int, timer: int = 0, vp: int = 0) -> None:
    registers = [[timer_count_register(timer), count], [timer_config_register(timer), config]]
    world.do(child, _C.SET_VP_REGISTERS, vp=vp, registers=registers)


def _now(world: World, child: int) -> int:
    names = [int(RegisterName.TIME_REF_COUNT)]
    value: int = world.do(child, _C.GET_VP_REGISTERS, vp=0, names=names)["values"][0]
    return value


def _take(world: World, child: int, vp: int = 0) -> tuple[int, int, int] | None:
    """(timer, expiration, delivery) of the message in the slot, and the end-of-message that is owed for it."""
    message = take_message(world.vps[child, vp][0], _SINT)
    if message is None:
        return None
    message_type, sender, payload, owed = message
    assert (message_type, sender, len(payload)) == (TIMER_EXPIRED_MESSAGE, 0, 24)
    timer, zero, expired, delivered = struct.unpack("<IIQQ", payload)
    assert zero == 0
    if owed:
        world.do(child, _C.SET_VP_REGISTERS, vp=vp, registers=[[int(RegisterName.EOM), 0]])
    return timer, expired, delivered


# -- messages --------------------------------------------------------------------------------------------------


def test_a_timers_message_names_it_and_both_times_and_raises_the_line() -> None:
    world, child = _child()
    _set(world, child, _MESSAGE, _now(world, child) + 3 * _MS, timer=2)
    moment = _now(world, child) + 3 * _MS
    world.advance(2.9999)
    assert _take(world, child) is None
    assert world.lines[child, 0] == 0
    world.advance(0.0001)
    assert world.lines[child, 0] == 1
    assert _take(world, child) == (2, moment, moment)
    config = world.do(child, _C.GET_VP_REGISTERS, vp=0, names=[timer_config_register(2)])["values"][0]
    assert config == _MESSAGE & ~TIMER_ENABLE


def test_a_moment_that_is_past_comes_at_once() -> None:
    world, child = _child()
    world.advance(10)
    _set(world, child, _MESSAGE, 1)
    world.advance(0)
    assert _take(world, child) == (0, 1, _now(world, child))


def test_a_timers_messages_wait_their_turn_in_the_sints_queue() -> None:
    """All four timers and the slot is full: each has one message, in the order in which they expired."""
    world, child = _child()
    for timer in (3, 0, 2, 1):
        _set(world, child, _MESSAGE, (4 - timer) * _MS, timer)
    world.advance(30)
    seen = []
    for _ in range(4):
        message = _take(world, child)
        assert message is not None
        seen.append((message[0], message[1]))
    assert seen == [(timer, (4 - timer) * _MS) for timer in (3, 2, 1, 0)]


def test_a_timer_of_a_vp_with_its_synic_off_is_heard_when_it_is_switched_on() -> None:
    world, child = _child()
    world.do(child, _C.SET_VP_REGISTERS, vp=0, registers=[[int(RegisterName.SCONTROL), 0]])
    _set(world, child, _MESSAGE, 2 * _MS)
    world.advance(5)
    assert _take(world, child) is None
    world.do(child, _C.SET_VP_REGISTERS, vp=0, registers=[[int(RegisterName.SCONTROL), 1]])
    message = _take(world, child)
    assert message is not None
    assert message[:2] == (0, 2 * _MS)
    assert message[2] == _now(world, child)


@settings(deadline=None, max_examples=60)
@given(
    st.booleans(),
    st.integers(TIMER_PERIOD_MIN_100NS * 3, 20 * _MS),
    st.lists(st.tuples(st.floats(0, 40), st.booleans()), max_size=30),
)
def test_no_expiry_is_lost_but_what_the_rules_drop_and_none_is_early_or_doubled(
    lazy: bool, period: int, steps: list[tuple[float, bool]]
) -> None:
    world, child = _child()
    start = _now(world, child)
    _set(world, child, _MESSAGE | TIMER_PERIODIC | (TIMER_LAZY if lazy else 0), period)
    seen: list[int] = []
    for wait_ms, takes in steps:
        world.advance(wait_ms)
        while takes and (message := _take(world, child)) is not None:
            _, expired, delivered = message
            assert expired <= delivered <= _now(world, child)
            seen.append(expired)
    assert seen == sorted(set(seen))
    assert all(moment > start and (moment - start) % period == 0 for moment in seen)


def test_a_guest_that_takes_each_message_at_once_gets_every_period() -> None:
    world, child = _child()
    start = _now(world, child)
    _set(world, child, _MESSAGE | TIMER_PERIODIC, 2 * _MS)
    for number in range(1, 50):
        world.advance(2)
        assert _take(world, child) == (0, start + 2 * number * _MS, _now(world, child))


# -- vectors ---------------------------------------------------------------------------------------------------


def _vectors(world: World, child: int, vp: int = 0) -> list[int]:
    page = world.interrupt_pages[child, vp]
    found = [vector for vector in range(256) if page[vector // 8] >> vector % 8 & 1]
    page[:] = bytes(4096)
    return found


def test_a_direct_timer_requests_its_vector_and_merges_until_the_vp_looks() -> None:
    world, child = _child()
    world.do(child, _C.CLAIM_OVERLAY_PAGE, page=int(OverlayPage.INTERRUPTS), vp=0)
    _set(world, child, _DIRECT | TIMER_PERIODIC, 2 * _MS)
    world.advance(7)
    assert world.lines[child, 0] == 1
    assert _vectors(world, child) == [_VECTOR]
    world.advance(1)
    assert world.lines[child, 0] == 2
    assert _vectors(world, child) == [_VECTOR]
    assert _take(world, child) is None


def test_a_vector_from_before_the_page_was_claimed_stands_in_it() -> None:
    world, child = _child()
    _set(world, child, _DIRECT, 2 * _MS)
    world.advance(2)
    assert world.lines[child, 0] == 1
    world.do(child, _C.CLAIM_OVERLAY_PAGE, page=int(OverlayPage.INTERRUPTS), vp=0)
    assert world.lines[child, 0] == 2
    assert _vectors(world, child) == [_VECTOR]
    world.do(child, _C.CLAIM_OVERLAY_PAGE, page=int(OverlayPage.INTERRUPTS), vp=0)
    assert _vectors(world, child) == []


# -- registers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("register", "value", "status"),
    [
        (timer_config_register(0), 1 << 13, HvStatus.INVALID_REGISTER_VALUE),
        (timer_config_register(3), 1 << 20, HvStatus.INVALID_REGISTER_VALUE),
        (timer_config_register(0), TIMER_ENABLE | TIMER_DIRECT | 15 << 4, HvStatus.INVALID_REGISTER_VALUE),
        (timer_config_register(0), TIMER_ENABLE | TIMER_DIRECT | 16 << 4, HvStatus.SUCCESS),
        (timer_config_register(0), TIMER_DIRECT, HvStatus.SUCCESS),  # not enabled: no vector yet
        (timer_config_register(3), 0xF1FFF, HvStatus.SUCCESS),
        (timer_count_register(3), 2**64 - 1, HvStatus.SUCCESS),
        (timer_count_register(3) + 1, 0, HvStatus.UNKNOWN_REGISTER_NAME),
    ],
)
def test_timer_registers_take_what_their_bits_allow(register: int, value: int, status: HvStatus) -> None:
    world, child = _child()
    assert world.status(child, _C.SET_VP_REGISTERS, vp=0, registers=[[register, value]]) == status


def test_without_a_sint_and_without_a_vector_enable_reads_0() -> None:
    world, child = _child()
    _set(world, child, TIMER_ENABLE | TIMER_AUTO_ENABLE, 5)
    names = [timer_config_register(0), timer_count_register(0)]
    assert world.do(child, _C.GET_VP_REGISTERS, vp=0, names=names) == {"values": [TIMER_AUTO_ENABLE, 5]}


def test_timers_need_their_own_privilege_and_a_parent_does_not() -> None:
    world = World()
    child = world.child(privileges=Privilege.ACCESS_SYNIC)
    world.start(child)
    write: dict[str, Any] = {"vp": 0, "registers": [[timer_count_register(1), 5]]}
    assert world.status(child, _C.SET_VP_REGISTERS, **write) == HvStatus.ACCESS_DENIED
    read: dict[str, Any] = {"vp": 0, "names": [timer_count_register(1)]}
    assert world.status(child, _C.GET_VP_REGISTERS, **read) == HvStatus.ACCESS_DENIED
    assert world.status(1, _C.SET_VP_REGISTERS, partition=child, **write) == HvStatus.SUCCESS
    assert world.do(1, _C.GET_VP_REGISTERS, partition=child, **read) == {"values": [5]}


# -- what a partition cannot do to others ----------------------------------------------------------------------


def test_a_tiny_period_costs_the_broker_no_more_than_the_partitions_pace() -> None:
    """Every timer of many VPs at the shortest period there is, for a second: events of the loop, counted."""
    world, child = _child(vps=8)
    for vp in range(8):
        for timer in range(4):
            _set(world, child, _DIRECT | TIMER_PERIODIC, 1, timer, vp)
    wakes = 0
    end_ns = world.now_ns + 100_000_000
    while world.vp_timer_ns is not None and world.vp_timer_ns <= end_ns:
        world.now_ns = max(world.now_ns, world.vp_timer_ns)
        world.expire_vp_timers()
        wakes += 1
    expiries = sum(world.lines.values())  # nobody claimed the page, so each raises the line
    allowed = TIMER_BURST + 100_000_000 // TIMER_SPACING_NS
    assert allowed * 0.9 <= expiries <= allowed + TIMER_GRID_NS // TIMER_SPACING_NS
    # For each group twice, to see that they are due and when their turn has come; and each timer's first.
    assert wakes <= 2 * (100_000_000 // TIMER_GRID_NS + 8 * 4)


def test_a_partition_at_its_pace_delays_nobody_else() -> None:
    world, greedy = _child(vps=4)
    modest = world.child(name="modest", pages=100)
    world.start(modest)
    world.enable_synic(modest, _SINT)
    for vp in range(4):
        for timer in range(4):
            _set(world, greedy, _DIRECT | TIMER_PERIODIC, 1, timer, vp)
    world.advance(20)
    moment = _now(world, modest) + _MS
    _set(world, modest, _MESSAGE, moment)
    world.advance(1)
    assert _take(world, modest) == (0, moment, moment)


def test_a_late_broker_does_not_do_everything_at_once() -> None:
    """Timers of many partitions due together: calls have their turn in between."""
    world = World(memory_pages=40_000)
    children = []
    for number in range(8):
        child = world.child(pages=100, name=f"c{number}")
        world.start(child)
        children.append(child)
        for vp in range(1, 4):
            world.do(1, _C.CREATE_VP, partition=child, vp=vp)
        for vp in range(4):
            for timer in range(4):
                _set(world, child, _DIRECT, _MS, timer, vp)
    world.now_ns += 50_000_000
    world.expire_vp_timers()
    assert sum(world.lines.values()) <= EXPIRIES_AT_ONCE_MAX
    world.advance(50)
    assert sum(world.lines.values()) == 8 * 16


@pytest.mark.parametrize("ending", ["process", "finalize", "delete vp"])
def test_no_timer_outlives_its_vp(ending: str) -> None:
    world, child = _child(vps=2)
    for timer in range(4):
        _set(world, child, _MESSAGE | TIMER_PERIODIC, 2 * _MS, timer, vp=1)
    world.advance(30)
    if ending == "process":
        world.ended(child)
    elif ending == "finalize":
        world.do(1, _C.FINALIZE_PARTITION, partition=child)
    else:
        world.do(1, _C.DELETE_VP, partition=child, vp=1)
    assert world.vp_timer_ns is None
    world.advance(30)


def test_the_roots_successor_finds_no_timers_running() -> None:
    world = World(on_root_failure=RootFailurePolicy.RESTART)
    world.enable_synic(1, _SINT)
    _set(world, 1, _MESSAGE | TIMER_PERIODIC, _MS)
    world.do(1, _C.HEARTBEAT, within_ms=1_000)  # it is up: its end is no failure to boot
    world.advance(3)
    assert _take(world, 1) is not None
    world.ended(1)
    assert world.vp_timer_ns is None
    world.started(1)
    config = world.do(1, _C.GET_VP_REGISTERS, vp=0, names=[timer_config_register(0)])["values"][0]
    assert not config & TIMER_ENABLE


def test_a_frozen_partitions_timers_stand_still_with_its_time() -> None:
    world, child = _child()
    _set(world, child, _MESSAGE, _now(world, child) + 5 * _MS)
    moment = _now(world, child) + 5 * _MS
    world.advance(3)
    world.do(
        1, _C.SET_PARTITION_PROPERTY, partition=child, property=int(PartitionProperty.TIME_FREEZE), value=1
    )
    world.advance(100)
    assert _take(world, child) is None
    world.do(
        1, _C.SET_PARTITION_PROPERTY, partition=child, property=int(PartitionProperty.TIME_FREEZE), value=0
    )
    world.advance(1.9)
    assert _take(world, child) is None
    world.advance(0.2)
    message = _take(world, child)
    assert message is not None
    assert message[1] == moment
