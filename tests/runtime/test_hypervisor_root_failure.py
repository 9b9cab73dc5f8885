"""What becomes of the machine when its root's process ends: each policy, and what the next root finds."""

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.abi import (
    ALL_PRIVILEGES,
    EXIT_RETIRED,
    HvStatus,
    HypercallCode,
    MapFlags,
    PortType,
    Route,
)
from runtime.hypervisor.machine import ROOT_FAILURES_MAX, ROOT_FAILURES_WITHIN_MS, RootFailurePolicy
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.program import Process
from runtime.hypervisor.replies import FilesHandle
from tests.runtime.hypervisor_world import World
from tests.runtime.plain_synic import take_message

_C = HypercallCode
_SINT = 2
_REPLACING = [RootFailurePolicy.RESTART, RootFailurePolicy.STANDBY]


def _world(policy: RootFailurePolicy = RootFailurePolicy.STANDBY, files: int = 0) -> World:
    """With a root that is up."""
    world = World(on_root_failure=policy, successor_files=files)
    world.do(1, _C.HEARTBEAT, within_ms=0)
    return world


def _replace(world: World, code: int = 1) -> None:
    world.ended(1, code)
    world.started(1)


# -- policies ------------------------------------------------------------------------------------------------


def test_without_a_policy_the_machine_goes_down_with_its_root() -> None:
    world = _world(RootFailurePolicy.HALT)
    world.ended(1)
    assert world.halted == "the root partition died (ended)"
    assert not world.starting


@pytest.mark.parametrize("policy", _REPLACING)
def test_a_root_that_never_came_up_is_not_replaced(policy: RootFailurePolicy) -> None:
    """It has saved nothing, so a successor would find nothing."""
    world = World(on_root_failure=policy)
    world.ended(1)
    assert world.halted == "the root partition died while it booted (ended)"


@pytest.mark.parametrize("policy", _REPLACING)
def test_a_root_that_was_up_is_replaced_and_each_has_a_number(policy: RootFailurePolicy) -> None:
    world = _world(policy)
    for generation in (2, 3, 4):
        world.advance(ROOT_FAILURES_WITHIN_MS)
        _replace(world)
        started = world.announced[-1]
        assert (started.kind, started.fields["id"], started.fields["generation"]) == (
            "partition.started",
            1,
            generation,
        )
    assert world.halted is None


def test_a_successor_that_dies_before_its_first_heartbeat_is_replaced_too() -> None:
    """What its predecessor saved is still there."""
    world = _world()
    _replace(world)
    _replace(world)
    assert (world.halted, world.machine.root_generation) == (None, 3)


def test_a_machine_that_is_being_stopped_ends_with_its_root() -> None:
    world = _world()
    world.hypervisor.stop()
    world.ended(1)
    assert world.halted is not None


def test_a_root_that_cannot_be_spawned_has_failed_once_more() -> None:
    world = _world()
    for _ in range(ROOT_FAILURES_MAX):
        world.ended(1, 127)
        assert world.starting == {1: "root"}
    world.ended(1, 127)
    assert world.halted is not None
    assert world.halted.startswith(f"the root failed {ROOT_FAILURES_MAX + 1} times in ")


def test_retiring_as_asked_is_no_failure() -> None:
    world = _world()
    _replace(world)  # from here on it is our child, and its exit code is known
    for _ in range(3 * ROOT_FAILURES_MAX):
        _replace(world, EXIT_RETIRED)
    assert world.halted is None


@pytest.mark.parametrize("takes_back", [True, False])
def test_the_first_root_retires_without_an_exit_code_that_we_could_see(takes_back: bool) -> None:
    """It is the platform's child: that it took its promise back tells a planned end from another."""
    world = _world()
    world.do(1, _C.HEARTBEAT, within_ms=1_000)
    if takes_back:
        world.do(1, _C.HEARTBEAT, within_ms=0)
    world.ended(1)
    assert len(world.machine.root_failures_ns) == (0 if takes_back else 1)
    world.started(1)
    world.ended(1, 1)
    assert len(world.machine.root_failures_ns) == (1 if takes_back else 2), "it counts for that one alone"


@given(st.lists(st.tuples(st.integers(0, ROOT_FAILURES_WITHIN_MS), st.booleans()), max_size=60))
def test_the_machine_halts_at_one_failure_too_many_in_the_window_and_at_no_other(
    history: list[tuple[int, bool]],
) -> None:
    """Any history of (ms since the last one, planned or not), against counting."""
    world = _world()
    _replace(world)
    failures_ms, now_ms = [0], 0
    for pause_ms, planned in history:
        now_ms += pause_ms
        world.now_ns = now_ms * 1_000_000
        world.timers_ns[1] = max(world.timers_ns[1], world.now_ns)  # its silence is another test's
        world.ended(1, EXIT_RETIRED if planned else 1)
        if not planned:
            failures_ms.append(now_ms)
        recent = [when for when in failures_ms if when > now_ms - ROOT_FAILURES_WITHIN_MS]
        assert (world.halted is not None) == (not planned and len(recent) > ROOT_FAILURES_MAX)
        if world.halted is not None:
            return
        world.started(1)


# -- what a successor finds ----------------------------------------------------------------------------------


def _without_process(partition: Partition) -> Partition:
    """Everything of the root that must be the next one's too."""
    return replace(
        partition,
        process=Process.NONE,
        pid=None,
        exit_status=None,
        failure=None,
        files=0,
        heartbeat_due_ns=None,
        heartbeat_within_ms=0,
        heartbeat_timer_ns=None,
    )


def _whole_state(world: World) -> tuple[object, ...]:
    partitions = dict(world.machine.partitions)
    partitions[1] = _without_process(partitions[1])
    held = (world.slots, world.vps, world.live_doorbells, world.routes, world.watches, world.lines)
    return copy.deepcopy((partitions, world.machine.slots, held))


def _furnished_world() -> tuple[World, int]:
    """A root with everything that a root can have, and a guest at the other end of it."""
    world = _world()
    guest = world.child(pages=200, privileges=ALL_PRIVILEGES)
    world.start(guest)
    for partition in (1, guest):
        world.enable_synic(partition, _SINT)
    flags = int(MapFlags.READ | MapFlags.WRITE)
    world.do(1, _C.MAP_GPA_PAGES, gpfn=0x10, pages=3, flags=flags | int(MapFlags.ZEROED))
    world.do(guest, _C.MAP_GPA_PAGES, gpfn=0x10, pages=2, flags=flags | int(MapFlags.ZEROED))
    world.do(1, _C.MAP_GPA_PAGES, gpfn=0x90, pages=2, flags=flags, source_partition=guest, source_gpfn=0x10)
    message: dict[str, Any] = {"type": int(PortType.MESSAGE), "sint": _SINT, "vp": 0}
    event: dict[str, Any] = {"type": int(PortType.EVENT), "sint": _SINT, "vp": 0, "flag_count": 1}
    for owner, sender, port, kind in (
        (1, guest, 1, message),
        (guest, 1, 2, message),
        (1, guest, 3, event),
        (guest, 1, 4, event),
    ):
        world.do(1, _C.CREATE_PORT, partition=owner, connection_partition=sender, port=port, **kind)
        route = int(Route.BROKER)
        ends = {"partition": sender, "port_partition": owner}
        world.do(1, _C.CONNECT_PORT, connection=port, port=port, route=route, **ends)
    world.do(1, _C.CLAIM_DOORBELL, port=3)
    world.do(1, _C.CLAIM_DOORBELL, connection=4)
    world.do(guest, _C.CLAIM_DOORBELL, connection=3)
    world.do(1, _C.WATCH_CHILDREN)
    for number in range(5):  # one in the slot, four that wait
        world.do(guest, _C.POST_MESSAGE, connection=1, type=1, payload=bytes([number]))
    world.do(guest, _C.SIGNAL_EVENT, connection=3)
    return world, guest


def test_nothing_that_the_hypervisor_holds_changes_with_the_roots_process() -> None:
    """Ports, connections, routes, slots, children, registers, flags and waiting messages: all as they were."""
    world, guest = _furnished_world()
    before = _whole_state(world)
    world.ended(1)
    assert _whole_state(world) == before
    assert guest in world.running
    world.started(1)
    assert _whole_state(world) == before


def test_a_guest_can_post_and_signal_while_there_is_no_root() -> None:
    world, guest = _furnished_world()
    world.ended(1)
    world.do(guest, _C.POST_MESSAGE, connection=1, type=1, payload=b"meanwhile")
    world.do(guest, _C.SIGNAL_EVENT, connection=3)
    world.started(1)
    received = []
    while (message := take_message(world.vps[1, 0][0], _SINT)) is not None:
        received.append(message[2])
        if message[3]:
            world.do(1, _C.SET_VP_REGISTERS, vp=0, registers=[[0xA0014, 0]])
    assert received == [*(bytes([number]) for number in range(5)), b"meanwhile"]


def test_a_successor_claims_what_its_predecessor_had_and_gets_the_very_same() -> None:
    world, _ = _furnished_world()
    calls: list[tuple[HypercallCode, dict[str, Any]]] = [
        (_C.CLAIM_DOORBELL, {"port": 3}),
        (_C.CLAIM_DOORBELL, {"connection": 4}),
        (_C.CLAIM_GPA_PAGES, {"gpfn": 0x10, "pages": 3}),
        (_C.CLAIM_GPA_PAGES, {"gpfn": 0x90, "pages": 2}),
        (_C.WATCH_CHILDREN, {}),
        (_C.GET_BIRTH, {}),
    ]
    before = [world.call(1, int(code), args) for code, args in calls]
    _replace(world)
    assert [world.call(1, int(code), args) for code, args in calls] == before


def test_each_successor_is_born_with_the_files_and_gets_them_once() -> None:
    world = _world(files=1)
    assert not [handle for handle in world.call(1, int(_C.GET_BIRTH), {}).handles if handle == FilesHandle(1)]
    for _ in range(2):
        _replace(world)
        assert FilesHandle(1) in world.call(1, int(_C.GET_BIRTH), {}).handles
        assert FilesHandle(1) not in world.call(1, int(_C.GET_BIRTH), {}).handles
    for _ in range(2):  # whoever died without having asked leaves them for the next
        _replace(world)
    assert FilesHandle(1) in world.call(1, int(_C.GET_BIRTH), {}).handles


def test_a_child_that_dies_while_there_is_no_root_is_found_dead_by_the_next() -> None:
    world, guest = _furnished_world()
    raised = world.watches[1]
    world.ended(1)
    world.ended(guest, 3)
    world.started(1)
    assert world.watches[1] > raised
    exit_status = {"partition": guest, "property": 0x8F00_0002}
    assert world.do(1, _C.GET_PARTITION_PROPERTY, **exit_status) == {"value": 3}


# -- counting messages ---------------------------------------------------------------------------------------


def _posted(world: World, port: int) -> int:
    value = world.do(1, _C.GET_PORT_PROPERTY, port=port, property=0)["value"]
    assert type(value) is int
    return value


def test_a_port_counts_each_message_that_it_accepted_and_no_other() -> None:
    """Delivered, waiting or taken, before a root's death or after: accepted is accepted, refused is not."""
    world, guest = _furnished_world()
    accepted = 5
    assert _posted(world, 1) == accepted
    for number in range(60):
        status = world.status(guest, _C.POST_MESSAGE, connection=1, type=1, payload=b"")
        accepted += status == HvStatus.SUCCESS
        if number % 7 == 0:
            take_message(world.vps[1, 0][0], _SINT)
        if number == 30:
            _replace(world)
        assert _posted(world, 1) == accepted
    assert 5 < accepted < 65
    assert (
        world.status(guest, _C.POST_MESSAGE, connection=1, type=0, payload=b"") == HvStatus.INVALID_PARAMETER
    )
    assert _posted(world, 1) == accepted


def test_only_message_ports_count_and_only_messages() -> None:
    world, guest = _furnished_world()
    get = _C.GET_PORT_PROPERTY
    assert world.status(1, get, port=3, property=0) == HvStatus.UNKNOWN_PROPERTY
    assert world.status(1, get, port=1, property=2) == HvStatus.UNKNOWN_PROPERTY
    assert world.status(1, get, port=9, property=0) == HvStatus.INVALID_PORT_ID
    assert world.do(1, get, partition=guest, port=2, property=0) == {"value": 0}
