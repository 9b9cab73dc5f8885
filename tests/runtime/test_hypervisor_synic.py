"""Ports, connections, messages and event flags, and the processors that they lead to."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtime.abi import (
    ALL_PRIVILEGES,
    CONNECTION_PAGES,
    MESSAGE_BUFFERS_PER_PORT,
    PORT_PAGES,
    SINT_MASKED,
    SINT_POLLING,
    VP_ANY,
    HvStatus,
    HypercallCode,
    PortType,
    RegisterName,
    Route,
    sint_register,
)
from runtime.hypervisor.replies import DoorbellHandle, KickHandle
from tests.runtime.hypervisor_world import World
from tests.runtime.plain_synic import take_message

_C = HypercallCode
_SINT = 2
_MESSAGE, _EVENT = int(PortType.MESSAGE), int(PortType.EVENT)


def _port(world: World, owner: int, other: int, port: int = 7, **more: Any) -> HvStatus:
    args = {"type": _MESSAGE, "sint": _SINT, "vp": 0} | more
    return world.status(1, _C.CREATE_PORT, partition=owner, port=port, connection_partition=other, **args)


def _connect(
    world: World, owner: int, other: int, port: int = 7, connection: int = 4, **more: Any
) -> HvStatus:
    args = {"partition": other, "connection": connection, "port_partition": owner, "port": port} | more
    return world.status(1, _C.CONNECT_PORT, **args)


def _linked(port_type: PortType, route: Route = Route.BROKER, vp: int = 0) -> tuple[World, int]:
    """A running child (2) with SynIC on, and connection 4 of the root to the child's port 7."""
    world = World()
    child = world.child(pages=200, privileges=ALL_PRIVILEGES)
    world.start(child)
    world.enable_synic(child, _SINT)
    flags = {"base_flag": 5, "flag_count": 2} if port_type is PortType.EVENT else {}
    assert _port(world, child, 1, type=int(port_type), vp=vp, **flags) == HvStatus.SUCCESS
    assert _connect(world, child, 1, route=int(route)) == HvStatus.SUCCESS
    return world, child


def _post(world: World, payload: bytes, message_type: int = 1) -> HvStatus:
    return world.status(1, _C.POST_MESSAGE, connection=4, type=message_type, payload=payload)


def _eom(world: World, child: int) -> None:
    world.do(child, _C.SET_VP_REGISTERS, vp=0, registers=[[int(RegisterName.EOM), 0]])


# -- messages ------------------------------------------------------------------------------------------------


_POST, _TAKE, _TAKE_ONLY = "post", "take", "take without end-of-message"


@given(
    st.lists(
        st.tuples(st.sampled_from([_POST, _TAKE, _TAKE_ONLY]), st.sampled_from([1, 2, 20])), max_size=20
    ).map(lambda runs: [step for step, count in runs for _ in range(count)])
)
@example([_POST] * 18 + [_TAKE_ONLY, _POST, _POST, _TAKE_ONLY, _POST])
def test_messages_arrive_whole_in_order_and_each_exactly_once(steps: list[str]) -> None:
    """Any interleaving of posts and guest reads, against a list. A full port refuses and loses nothing."""
    world, child = _linked(PortType.MESSAGE)
    sim = world.vps[child, 0][0]
    accepted: list[bytes] = []
    received: list[bytes] = []
    owed = False
    for number, step in enumerate(steps):
        if step == _POST:
            payload = number.to_bytes(2, "little") * (number % 100)
            status = _post(world, payload)
            if status == HvStatus.SUCCESS:
                accepted.append(payload)
            else:
                assert status == HvStatus.INSUFFICIENT_BUFFERS
                # all buffers wait, and the slot is occupied as well
                assert len(accepted) - len(received) == MESSAGE_BUFFERS_PER_PORT + 1
        elif (message := take_message(sim, _SINT)) is not None:
            message_type, sender, payload, more = message
            assert (message_type, sender) == (1, 7)
            received.append(payload)
            owed |= more
            if owed and step == _TAKE:
                _eom(world, child)
                owed = False
        elif owed and step == _TAKE:
            _eom(world, child)
            owed = False
    while True:
        _eom(world, child)
        if (message := take_message(sim, _SINT)) is None:
            break
        received.append(message[2])
    assert received == accepted


def test_a_line_is_raised_for_each_delivery_unless_the_sint_is_masked_or_polled() -> None:
    world, child = _linked(PortType.MESSAGE)
    sim = world.vps[child, 0][0]
    _post(world, b"one")
    assert world.lines[child, 0] == 1
    _post(world, b"two")  # queued behind the first
    assert world.lines[child, 0] == 1
    take_message(sim, _SINT)
    _eom(world, child)
    assert world.lines[child, 0] == 2
    take_message(sim, _SINT)
    for flag in (SINT_MASKED, SINT_POLLING | 16):
        world.do(child, _C.SET_VP_REGISTERS, vp=0, registers=[[sint_register(_SINT), flag]])
        _post(world, b"quiet")
        assert take_message(sim, _SINT) is not None  # there for who polls
        assert world.lines[child, 0] == 2


@pytest.mark.parametrize(
    ("message_type", "connection", "status"),
    [
        (0, 4, HvStatus.INVALID_PARAMETER),
        (0x8000_0000, 4, HvStatus.INVALID_PARAMETER),
        (0x7FFF_FFFF, 4, HvStatus.SUCCESS),
        (1, 5, HvStatus.INVALID_CONNECTION_ID),
    ],
)
def test_an_impossible_message_is_refused(message_type: int, connection: int, status: HvStatus) -> None:
    world, _ = _linked(PortType.MESSAGE)
    args: dict[str, Any] = {"connection": connection, "type": message_type, "payload": b"x"}
    assert world.status(1, _C.POST_MESSAGE, **args) == status


@pytest.mark.parametrize("register", [RegisterName.SCONTROL, RegisterName.SIMP])
def test_a_guest_with_its_synic_off_gets_no_message(register: RegisterName) -> None:
    world, child = _linked(PortType.MESSAGE)
    world.do(child, _C.SET_VP_REGISTERS, vp=0, registers=[[int(register), 0]])
    assert _post(world, b"x") == HvStatus.INVALID_SYNIC_STATE


def test_a_message_for_a_vp_that_is_not_there_is_refused() -> None:
    world, _ = _linked(PortType.MESSAGE, vp=3)
    assert _post(world, b"x") == HvStatus.INVALID_VP_INDEX


def test_a_port_for_any_vp_uses_the_least_busy_one() -> None:
    world, child = _linked(PortType.MESSAGE, vp=VP_ANY)
    world.do(1, _C.CREATE_VP, partition=child, vp=1)
    world.enable_synic(child, _SINT, vp=1)
    for number in range(6):
        assert _post(world, bytes([number])) == HvStatus.SUCCESS
    waiting = [len(vp.queues[_SINT]) for vp in world.machine.partitions[child].vps.values()]
    assert waiting == [2, 2]
    assert world.status(1, _C.DELETE_VP, partition=child, vp=1) == HvStatus.OBJECT_IN_USE


def test_deleting_a_port_drops_its_messages_and_no_other_ports() -> None:
    world, child = _linked(PortType.MESSAGE)
    assert _port(world, child, 1, port=8) == HvStatus.SUCCESS
    assert _connect(world, child, 1, port=8, connection=5) == HvStatus.SUCCESS
    for connection in (4, 5, 4, 5):
        args: dict[str, Any] = {"connection": connection, "type": 1, "payload": bytes([connection])}
        world.do(1, _C.POST_MESSAGE, **args)
    world.do(1, _C.DELETE_PORT, partition=child, port=7)
    assert _post(world, b"x") == HvStatus.INVALID_PORT_ID
    sim, seen = world.vps[child, 0][0], []
    while (message := take_message(sim, _SINT)) is not None:
        seen.append(message[2])
        _eom(world, child)
    assert seen == [b"\x04", b"\x05", b"\x05"]  # the first was delivered before its port went


def test_a_connection_that_goes_leaves_its_messages_queued_and_its_port_free() -> None:
    world, child = _linked(PortType.MESSAGE)
    for _ in range(3):
        _post(world, b"x")
    world.do(1, _C.DISCONNECT_PORT, connection=4)
    assert world.machine.partitions[child].ports[7].buffers_used == 2
    assert _post(world, b"x") == HvStatus.INVALID_CONNECTION_ID
    assert _connect(world, child, 1, connection=99) == HvStatus.SUCCESS


# -- ports and connections -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"port": 1 << 24}, HvStatus.INVALID_PORT_ID),
        ({"port": 7}, HvStatus.INVALID_PORT_ID),
        ({"sint": 0}, HvStatus.INVALID_PARAMETER),
        ({"sint": 16}, HvStatus.INVALID_PARAMETER),
        ({"type": 0}, HvStatus.INVALID_PARAMETER),
        ({"type": 3}, HvStatus.INVALID_PARAMETER),
        ({"flag_count": 1}, HvStatus.INVALID_PARAMETER),
        ({"type": _EVENT}, HvStatus.INVALID_PARAMETER),
        ({"type": _EVENT, "base_flag": 2047, "flag_count": 1}, HvStatus.INVALID_PARAMETER),
        ({"type": _EVENT, "base_flag": 2046, "flag_count": 1}, HvStatus.SUCCESS),
        ({"type": _EVENT, "flag_count": 1, "vp": VP_ANY}, HvStatus.INVALID_VP_INDEX),
        ({"vp": 64}, HvStatus.INVALID_VP_INDEX),
        ({"vp": VP_ANY}, HvStatus.SUCCESS),
        ({"connection_partition": 2}, HvStatus.INVALID_PARTITION_ID),
        ({"connection_partition": 77}, HvStatus.INVALID_PARTITION_ID),
    ],
)
def test_an_impossible_port_is_refused(more: dict[str, int], status: HvStatus) -> None:
    world, child = _linked(PortType.MESSAGE)
    args = {"port": 1, "connection_partition": 1, "type": _MESSAGE, "sint": 1, "vp": 0} | more
    assert world.status(1, _C.CREATE_PORT, partition=child, **args) == status


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"connection": 1 << 24}, HvStatus.INVALID_CONNECTION_ID),
        ({"connection": 4}, HvStatus.INVALID_CONNECTION_ID),
        ({"port": 7}, HvStatus.INVALID_PORT_ID),  # connected already
        ({"port": 9}, HvStatus.INVALID_PORT_ID),
        ({"port_partition": 77}, HvStatus.INVALID_PARTITION_ID),
        ({"route": 2}, HvStatus.INVALID_PARAMETER),
        ({}, HvStatus.SUCCESS),
    ],
)
def test_an_impossible_connection_is_refused(more: dict[str, int], status: HvStatus) -> None:
    world, child = _linked(PortType.MESSAGE)
    assert _port(world, child, 1, port=8) == HvStatus.SUCCESS
    args = {"connection": 6, "port_partition": child, "port": 8} | more
    assert world.status(1, _C.CONNECT_PORT, **args) == status


def test_only_the_partition_that_the_port_names_connects_to_it() -> None:
    world, child = _linked(PortType.MESSAGE)
    other = world.child(pages=100, privileges=ALL_PRIVILEGES)
    world.start(other)
    assert _port(world, child, 1, port=8) == HvStatus.SUCCESS
    args = {"connection": 1, "port_partition": child, "port": 8}
    assert world.status(other, _C.CONNECT_PORT, **args) == HvStatus.INVALID_PARTITION_ID


def test_a_dead_childs_ports_and_connections_are_cut_on_both_sides() -> None:
    world, child = _linked(PortType.MESSAGE)
    assert _port(world, 1, child, port=30) == HvStatus.SUCCESS
    assert _connect(world, 1, child, port=30, connection=1) == HvStatus.SUCCESS
    in_use = world.machine.partitions[1].pool.in_use
    world.ended(child)
    assert _post(world, b"x") == HvStatus.INVALID_PORT_ID
    assert world.machine.partitions[1].ports[30].connection is None
    world.do(1, _C.DISCONNECT_PORT, connection=4)
    world.do(1, _C.DELETE_PORT, port=30)
    assert world.machine.partitions[1].pool.in_use == in_use - PORT_PAGES - CONNECTION_PAGES


# -- events --------------------------------------------------------------------------------------------------


def _signal(world: World, flag: int = 0) -> HvStatus:
    return world.status(1, _C.SIGNAL_EVENT, connection=4, flag=flag)


def test_a_flag_raises_the_line_once_until_the_guest_clears_it() -> None:
    world, child = _linked(PortType.EVENT)
    sief = world.vps[child, 0][1]
    for _ in range(3):
        assert _signal(world, 1) == HvStatus.SUCCESS
    bit = _SINT * 2048 + 5 + 1
    assert sief[bit // 8] == 1 << bit % 8
    assert world.lines[child, 0] == 1
    sief[bit // 8] = 0
    _signal(world, 1)
    assert world.lines[child, 0] == 2


def test_a_port_that_was_claimed_has_a_line_of_its_own() -> None:
    world, child = _linked(PortType.EVENT)
    _signal(world)
    reply = world.call(child, int(_C.CLAIM_DOORBELL), {"port": 7})
    assert reply.handles == (DoorbellHandle(child, 7),)
    assert world.doorbells[child, 7] == 1  # for the flag that was set before
    _signal(world, 1)
    assert world.doorbells[child, 7] == 2
    assert world.lines[child, 0] == 1


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ([RegisterName.SCONTROL, 0], HvStatus.INVALID_SYNIC_STATE),
        ([RegisterName.SIEFP, 0], HvStatus.INVALID_SYNIC_STATE),
        ([RegisterName.SINT0 + _SINT, SINT_MASKED], HvStatus.INVALID_SYNIC_STATE),
        ([RegisterName.SIMP, 0], HvStatus.SUCCESS),
    ],
)
def test_a_guest_with_its_event_page_off_gets_no_event(change: list[int], status: HvStatus) -> None:
    world, child = _linked(PortType.EVENT)
    world.do(child, _C.SET_VP_REGISTERS, vp=0, registers=[[int(word) for word in change]])
    assert _signal(world) == status


def test_an_event_beyond_the_ports_flags_or_to_a_message_port_is_refused() -> None:
    world, _ = _linked(PortType.EVENT)
    assert _signal(world, 2) == HvStatus.INVALID_PARAMETER
    assert _post(world, b"x") == HvStatus.INVALID_PORT_ID
    world, _ = _linked(PortType.MESSAGE)
    assert _signal(world) == HvStatus.INVALID_PORT_ID
    assert world.status(1, _C.CLAIM_DOORBELL, connection=4) == HvStatus.INVALID_PORT_ID


def test_a_direct_route_hands_out_the_targets_own_doorbell() -> None:
    world, child = _linked(PortType.EVENT, Route.DIRECT)
    theirs = world.call(1, int(_C.CLAIM_DOORBELL), {"connection": 4})
    ours = world.call(child, int(_C.CLAIM_DOORBELL), {"port": 7})
    assert theirs.handles == ours.handles == (DoorbellHandle(child, 7),)
    assert theirs.values == ours.values == {"route": Route.DIRECT}


def test_a_route_through_the_broker_sets_the_ports_flag() -> None:
    world, child = _linked(PortType.EVENT)
    reply = world.call(1, int(_C.CLAIM_DOORBELL), {"connection": 4, "flag": 1})
    (route,) = world.routes.values()
    assert reply.handles == (KickHandle(route.route),)
    assert (route.partition, route.port, route.vp, route.flag) == (child, 7, 0, _SINT * 2048 + 6)
    again = world.call(1, int(_C.CLAIM_DOORBELL), {"connection": 4, "flag": 1})
    assert again.handles == reply.handles
    assert world.status(1, _C.CLAIM_DOORBELL, connection=4, flag=0) == HvStatus.OBJECT_IN_USE
    assert world.status(1, _C.DELETE_VP, partition=child, vp=0) == HvStatus.INVALID_VP_STATE


@pytest.mark.parametrize("ending", ["delete port", "disconnect", "owner dies"])
def test_a_route_ends_with_either_end(ending: str) -> None:
    world, child = _linked(PortType.EVENT)
    world.do(1, _C.CLAIM_DOORBELL, connection=4)
    if ending == "delete port":
        world.do(1, _C.DELETE_PORT, partition=child, port=7)
        assert world.status(1, _C.CLAIM_DOORBELL, connection=4) == HvStatus.INVALID_PORT_ID
    elif ending == "disconnect":
        world.do(1, _C.DISCONNECT_PORT, connection=4)
    else:
        world.ended(child)
    assert not world.routes


@pytest.mark.parametrize(
    ("args", "status"),
    [
        ({}, HvStatus.INVALID_PARAMETER),
        ({"port": 7, "connection": 4}, HvStatus.INVALID_PARAMETER),
        ({"connection": 5}, HvStatus.INVALID_CONNECTION_ID),
        ({"connection": 4, "flag": 2}, HvStatus.INVALID_PARAMETER),
        ({"port": 7}, HvStatus.INVALID_PORT_ID),  # the child's, not the caller's
    ],
)
def test_an_impossible_claim_is_refused(args: dict[str, int], status: HvStatus) -> None:
    world, _ = _linked(PortType.EVENT)
    assert world.status(1, _C.CLAIM_DOORBELL, **args) == status


# -- the processors that ports lead to ---------------------------------------------------------------------


def test_a_vp_is_created_once_and_deleted_only_while_nothing_uses_it() -> None:
    world, child = _linked(PortType.MESSAGE)
    create, delete = _C.CREATE_VP, _C.DELETE_VP
    assert world.status(1, create, partition=child, vp=0) == HvStatus.OBJECT_IN_USE
    assert world.status(1, create, partition=child, vp=64) == HvStatus.INVALID_VP_INDEX
    assert world.status(1, delete, partition=child, vp=5) == HvStatus.INVALID_VP_INDEX
    assert world.status(1, delete, partition=child, vp=0) == HvStatus.INVALID_VP_STATE
    world.do(1, create, partition=child, vp=1)
    world.do(1, _C.START_VIRTUAL_PROCESSOR, partition=child, vp=1)
    again = {"partition": child, "vp": 1}
    assert world.status(1, _C.START_VIRTUAL_PROCESSOR, **again) == HvStatus.INVALID_VP_STATE
    world.do(1, delete, partition=child, vp=1)
    reply = world.call(1, int(create), {"vp": 1})
    assert len(reply.handles) == 1  # one's own VP comes with its pages and line


def test_a_vp_needs_a_program_or_a_running_partition_to_start() -> None:
    world = World()
    child = world.do(1, _C.CREATE_PARTITION)["partition"]
    world.do(1, _C.DEPOSIT_MEMORY, partition=child, pages=20)
    world.do(1, _C.INITIALIZE_PARTITION, partition=child)
    for vp in (0, 1):
        world.do(1, _C.CREATE_VP, partition=child, vp=vp)
    start = _C.START_VIRTUAL_PROCESSOR
    assert world.status(1, start, partition=child, vp=0) == HvStatus.OPERATION_DENIED
    assert world.status(1, start, partition=child, vp=1) == HvStatus.INVALID_VP_STATE
    assert world.status(1, start, partition=child, vp=2) == HvStatus.INVALID_VP_INDEX
