"""Properties beside the scheduler's, and calls about processors."""

from typing import Any

import pytest

from runtime.abi import (
    ALL_PRIVILEGES,
    HvStatus,
    HypercallCode,
    PartitionProperty,
    PortType,
    Privilege,
    RegisterName,
)
from runtime.hypervisor.properties import WORKED_NS_MAX
from tests.runtime.hypervisor_world import World
from tests.runtime.plain_synic import take_message

_C, _P = HypercallCode, PartitionProperty
SINT = 2


def _get(world: World, partition: int, code: PartitionProperty) -> int:
    value: int = world.do(1, _C.GET_PARTITION_PROPERTY, partition=partition, property=int(code))["value"]
    return value


def _set(world: World, partition: int, code: PartitionProperty, value: int) -> HvStatus:
    return world.status(1, _C.SET_PARTITION_PROPERTY, partition=partition, property=int(code), value=value)


def test_every_property_can_be_read_or_says_that_it_cannot() -> None:
    world = World()
    child = world.child()
    ex_only = {_P.PROGRAM, _P.VMM_CAPABILITIES, _P.CAPPED_TIME}
    for code in PartitionProperty:
        args = {"partition": child, "property": int(code)}
        status = world.status(1, _C.GET_PARTITION_PROPERTY, **args)
        wanted = {HvStatus.UNKNOWN_PROPERTY} if code in ex_only else {HvStatus.SUCCESS, HvStatus.NO_DATA}
        assert status in wanted, code
        assert (world.status(1, _C.GET_PARTITION_PROPERTY_EX, **args) == HvStatus.SUCCESS) is (
            code in ex_only
        )


def test_a_parent_is_told_what_its_own_children_with_a_cap_have_had_and_nobody_sets_what_that_is() -> None:
    world = World()
    capped, free, other = (world.child(privileges=ALL_PRIVILEGES) for _ in range(3))
    grandchild = world.child(parent=capped, pages=16)
    world.hypervisor.machine.capped_ns.update({capped: 5, grandchild: 2**50, other + 1000: 9})
    told = {"property": int(_P.CAPPED_TIME)}
    assert world.do(1, _C.GET_PARTITION_PROPERTY_EX, **told)["value"] == {str(capped): 5}
    for partition, value in ((capped, {str(grandchild): 2**50}), (free, {})):
        assert world.do(1, _C.GET_PARTITION_PROPERTY_EX, partition=partition, **told)["value"] == value
        assert world.do(partition, _C.GET_PARTITION_PROPERTY_EX, **told)["value"] == value
    refused = world.status(other, _C.GET_PARTITION_PROPERTY_EX, partition=capped, **told)
    assert refused == HvStatus.ACCESS_DENIED
    asked: dict[str, Any] = {"partition": capped, "value": {}, **told}
    assert world.status(1, _C.SET_PARTITION_PROPERTY_EX, **asked) == HvStatus.OPERATION_DENIED


def test_a_parent_has_a_child_with_a_cap_pay_for_what_it_did_for_it_and_nobody_else_can() -> None:
    world = World()
    capped, free, other = (world.child(privileges=ALL_PRIVILEGES) for _ in range(3))
    worked = world.machine.worked_ns
    assert _set(world, capped, _P.CPU_CAP, 0x1000) == HvStatus.SUCCESS
    for value in (5, 0, 7, WORKED_NS_MAX):
        assert _set(world, capped, _P.CAPPED_TIME, value) == HvStatus.SUCCESS
    assert worked == {capped: 12 + WORKED_NS_MAX}
    assert _set(world, capped, _P.CAPPED_TIME, WORKED_NS_MAX + 1) == HvStatus.PROPERTY_VALUE_OUT_OF_RANGE
    assert _set(world, free, _P.CAPPED_TIME, 5) == HvStatus.SUCCESS, "it owes nothing"
    mine = {"property": int(_P.CAPPED_TIME), "value": 5}
    for target in (capped, other):  # another's child, and itself
        refused = world.status(other, _C.SET_PARTITION_PROPERTY, partition=target, **mine)
        assert refused == HvStatus.ACCESS_DENIED
    assert worked == {capped: 12 + WORKED_NS_MAX}


def test_features_are_privileges_seen_from_the_other_side() -> None:
    world = World()
    child = world.do(1, _C.CREATE_PARTITION)["partition"]
    features = _get(world, child, _P.SYNTHETIC_PROCESSOR_FEATURES)
    assert features & 0b11 == 0b11
    without_timers = features & ~(1 << 5)
    assert _set(world, child, _P.SYNTHETIC_PROCESSOR_FEATURES, without_timers) == HvStatus.SUCCESS
    assert not _get(world, child, _P.PRIVILEGE_FLAGS) & Privilege.ACCESS_SYNTHETIC_TIMERS
    assert _get(world, child, _P.SYNTHETIC_PROCESSOR_FEATURES) == without_timers
    for value in (0, 1 << 20 | 0b11):
        assert (
            _set(world, child, _P.SYNTHETIC_PROCESSOR_FEATURES, value) == HvStatus.PROPERTY_VALUE_OUT_OF_RANGE
        )


def test_nobody_gives_features_that_it_does_not_hold() -> None:
    world = World()
    parent = world.child(pages=200, privileges=Privilege.CREATE_PARTITIONS)
    child = world.do(parent, _C.CREATE_PARTITION)["partition"]
    args = {"partition": child, "property": int(_P.SYNTHETIC_PROCESSOR_FEATURES)}
    assert world.status(parent, _C.SET_PARTITION_PROPERTY, **args, value=0b10011) == HvStatus.ACCESS_DENIED
    assert world.status(parent, _C.SET_PARTITION_PROPERTY, **args, value=0b11) == HvStatus.SUCCESS


@pytest.mark.parametrize("code", [_P.SYNTHETIC_PROCESSOR_FEATURES, _P.PHYSICAL_ADDRESS_WIDTH])
def test_early_properties_are_set_before_the_start(code: PartitionProperty) -> None:
    world = World()
    child = world.child()
    value = _get(world, child, code)
    assert _set(world, child, code, value) == HvStatus.INVALID_PARTITION_STATE


def test_time_stands_still_while_it_is_frozen_and_goes_on_from_there() -> None:
    world = World()
    child = world.child()
    world.advance(5)
    assert _set(world, child, _P.REFERENCE_TIME, 1) == HvStatus.OPERATION_DENIED
    assert _set(world, child, _P.TIME_FREEZE, 1) == HvStatus.SUCCESS
    frozen = _get(world, child, _P.REFERENCE_TIME)
    world.advance(7)
    assert _get(world, child, _P.REFERENCE_TIME) == frozen == 5 * 10_000
    register: dict[str, Any] = {"partition": child, "vp": 0, "names": [int(RegisterName.TIME_REF_COUNT)]}
    assert world.do(1, _C.GET_VP_REGISTERS, **register)["values"] == [frozen]
    assert _set(world, child, _P.REFERENCE_TIME, 2**56 + 1) == HvStatus.PROPERTY_VALUE_OUT_OF_RANGE
    assert _set(world, child, _P.REFERENCE_TIME, 123) == HvStatus.SUCCESS
    assert _set(world, child, _P.TIME_FREEZE, 0) == HvStatus.SUCCESS
    world.advance(1)
    assert _get(world, child, _P.REFERENCE_TIME) == 123 + 10_000


def test_a_suspended_partition_stands_still_and_is_not_taken_for_hung() -> None:
    world = World()
    child = world.child()
    world.start(child)
    world.do(child, _C.HEARTBEAT, within_ms=10)
    assert _set(world, child, _P.SUSPEND, 1) == HvStatus.SUCCESS
    assert world.stopped == {child}
    world.advance(1_000)
    assert world.doomed == set()
    assert _set(world, child, _P.SUSPEND, 1) == HvStatus.SUCCESS  # twice is once
    assert _set(world, child, _P.SUSPEND, 0) == HvStatus.SUCCESS
    assert world.stopped == set()
    world.advance(5)
    assert world.doomed == set()
    world.advance(10)
    assert world.doomed == {child}  # its promise counts again


def test_a_parent_ends_its_childs_process_and_nobody_ends_a_driver_in_the_hypervisor() -> None:
    world = World()
    child = world.child()
    assert _set(world, child, _P.OUTLIVES_PROCESS, 1) == HvStatus.SUCCESS
    assert _set(world, child, _P.END_PROCESS, 1) == HvStatus.SUCCESS  # it has none
    world.start(child)
    assert _set(world, child, _P.END_PROCESS, 2) == HvStatus.PROPERTY_VALUE_OUT_OF_RANGE
    assert _set(world, child, _P.END_PROCESS, 0) == HvStatus.SUCCESS
    world.machine.loads_drivers = True
    assert _set(world, child, _P.END_PROCESS, 1) == HvStatus.OPERATION_DENIED
    world.machine.loads_drivers = False
    assert world.doomed == set()
    assert _set(world, child, _P.END_PROCESS, 1) == HvStatus.SUCCESS
    assert world.doomed == {child}
    assert _get(world, child, _P.END_PROCESS) == 0


def test_a_partition_suspended_before_its_start_starts_stopped() -> None:
    world = World()
    child = world.child()
    assert _set(world, child, _P.SUSPEND, 1) == HvStatus.SUCCESS
    world.start(child)
    assert world.stopped == {child}
    world.do(1, _C.FINALIZE_PARTITION, partition=child)
    world.bury()


def test_a_guest_tells_its_os_and_its_parent_reads_it() -> None:
    world = World()
    child = world.child(privileges=ALL_PRIVILEGES)
    registers = [[int(RegisterName.GUEST_OS_ID), 0x8100_0000_0006_0000]]
    world.do(child, _C.SET_VP_REGISTERS, vp=0, registers=registers)
    assert _get(world, child, _P.GUEST_OS_ID) == 0x8100_0000_0006_0000
    assert _set(world, child, _P.GUEST_OS_ID, 0) == HvStatus.OPERATION_DENIED


def test_a_processors_apic_id_is_its_index() -> None:
    world = World()
    child = world.child(privileges=ALL_PRIVILEGES, pages=100)
    world.do(child, _C.CREATE_VP, vp=3)
    assert world.do(1, _C.GET_VP_INDEX_FROM_APIC_ID, partition=child, apic_ids=[3, 0]) == {"vps": [3, 0]}


def test_an_interrupt_goes_to_every_processor_of_the_mask_or_to_none() -> None:
    world = World()
    child = world.child(privileges=ALL_PRIVILEGES, pages=100)
    world.do(child, _C.CREATE_VP, vp=2)
    world.do(child, _C.SEND_SYNTHETIC_CLUSTER_IPI, vector=0x40, processors=0b101)
    assert (world.lines[child, 0], world.lines[child, 2]) == (1, 1)
    status = world.status(child, _C.SEND_SYNTHETIC_CLUSTER_IPI, vector=0x41, processors=0b111)
    assert status == HvStatus.INVALID_VP_INDEX
    assert world.machine.partitions[child].vps[0].requested == 1 << 0x40


def test_a_parent_signals_and_posts_without_a_port() -> None:
    world = World()
    child = world.child()
    world.enable_synic(child, SINT)
    event = {"partition": child, "vp": 0, "sint": SINT, "flag": 9}
    assert world.do(1, _C.SIGNAL_EVENT_DIRECT, **event) == {"newly_signaled": 1}
    assert world.do(1, _C.SIGNAL_EVENT_DIRECT, **event) == {"newly_signaled": 0}
    assert world.lines[child, 0] == 1
    sim, sief = world.vps[child, 0]
    assert sief[SINT * 256 + 1] == 1 << 1
    message = {"partition": child, "vp": 0, "sint": SINT, "type": 7}
    world.do(1, _C.POST_MESSAGE_DIRECT, **message, payload=b"one")
    assert world.status(1, _C.POST_MESSAGE_DIRECT, **message, payload=b"two") == HvStatus.INSUFFICIENT_BUFFERS
    assert take_message(sim, SINT) == (7, 0, b"one", False)
    world.do(1, _C.POST_MESSAGE_DIRECT, **message, payload=b"two")
    assert take_message(sim, SINT) == (7, 0, b"two", False)


def test_the_deprecated_calls_make_ports_and_connections_like_any() -> None:
    world = World()
    child = world.child()
    world.enable_synic(child, SINT)
    world.do(
        1,
        _C.CREATE_PORT_DEPRECATED,
        partition=child,
        port=3,
        connection_partition=1,
        type=int(PortType.MESSAGE),
        sint=SINT,
        vp=0,
    )
    world.do(1, _C.CONNECT_PORT_DEPRECATED, connection=4, port_partition=child, port=3)
    world.do(1, _C.POST_MESSAGE, connection=4, type=1, payload=b"hello")
    assert take_message(world.vps[child, 0][0], SINT) == (1, 3, b"hello", False)
