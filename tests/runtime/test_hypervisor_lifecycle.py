"""Birth, life and death of partitions, and that no page is ever lost on the way."""

from typing import Any

import pytest

from runtime.abi import (
    ALL_PRIVILEGES,
    CREATE_PARTITION_PAGES,
    INITIALIZE_PARTITION_PAGES,
    PARTITION_DEPTH_MAX,
    PARTITIONS_MAX,
    VP_PAGES,
    ExitStatus,
    HvStatus,
    HypercallCode,
    MapFlags,
    PartitionProperty,
    PartitionState,
    PortType,
)
from runtime.hypervisor.dispatch import Hypervisor
from runtime.hypervisor.invariants import InvariantBroken, check_invariants
from runtime.hypervisor.replies import FilesHandle, VpHandle
from tests.runtime.hypervisor_world import World
from tests.runtime.plain_synic import PlainSynic

_C = HypercallCode
_P = PartitionProperty


def _state(world: World, partition: int) -> PartitionState:
    value = world.do(1, _C.GET_PARTITION_PROPERTY, partition=partition, property=int(_P.STATE))["value"]
    return PartitionState(value)


def _balance(world: World, partition: int) -> tuple[int, int]:
    values = world.do(1, _C.GET_MEMORY_BALANCE, partition=partition)
    return values["available"], values["in_use"]


def test_the_root_is_partition_one_with_all_memory_and_every_privilege() -> None:
    world = World(memory_pages=100)
    assert world.do(1, _C.GET_PARTITION_ID) == {"partition": 1}
    assert _balance(world, 1) == (
        100 - VP_PAGES - INITIALIZE_PARTITION_PAGES,
        VP_PAGES + INITIALIZE_PARTITION_PAGES,
    )
    value = world.do(1, _C.GET_PARTITION_PROPERTY, property=int(_P.PRIVILEGE_FLAGS))["value"]
    assert value == ALL_PRIVILEGES
    birth = world.call(1, int(_C.GET_BIRTH), {})
    assert birth.handles == (VpHandle(1, 0),)


@pytest.mark.parametrize(
    ("name", "pages"), [("root", 7), ("", 100), ("a b", 100), ("../x", 100), ("x" * 65, 100)]
)
def test_an_impossible_root_is_refused(name: str, pages: int) -> None:
    world = World()
    hypervisor = Hypervisor(world, PlainSynic())
    with pytest.raises(ValueError, match=r"root"):
        hypervisor.adopt_root(name, pages, {}, 1)
    assert not hypervisor.machine.partitions
    with pytest.raises(ValueError, match="already"):
        world.hypervisor.adopt_root("second", 100, {}, 1)


def test_every_charged_page_comes_back_when_a_child_is_gone() -> None:
    world = World()
    before = _balance(world, 1)
    child = world.child(pages=64)
    world.start(child)
    flags = int(MapFlags.READ | MapFlags.WRITE | MapFlags.ZEROED)
    world.do(1, _C.MAP_GPA_PAGES, partition=child, gpfn=5, pages=7, flags=flags)
    assert _balance(world, child) == (
        64 - INITIALIZE_PARTITION_PAGES - VP_PAGES - 7,
        INITIALIZE_PARTITION_PAGES + VP_PAGES + 7,
    )
    assert _balance(world, 1) == (
        before[0] - CREATE_PARTITION_PAGES - 64,
        before[1] + CREATE_PARTITION_PAGES,
    )
    world.ended(child, 3)
    assert _state(world, child) is PartitionState.FINALIZED
    assert _balance(world, child) == (0, 0)
    assert _balance(world, 1) == (before[0] - CREATE_PARTITION_PAGES, before[1] + CREATE_PARTITION_PAGES)
    value = world.do(1, _C.GET_PARTITION_PROPERTY, partition=child, property=int(_P.EXIT_STATUS))["value"]
    assert ExitStatus.from_wire(value) == ExitStatus(3, None)
    world.do(1, _C.DELETE_PARTITION, partition=child)
    assert _balance(world, 1) == before
    assert list(world.machine.partitions) == [1]


@pytest.mark.parametrize("status", [ExitStatus(0, None), ExitStatus(255, None), ExitStatus(None, 9)])
def test_an_exit_status_survives_the_wire(status: ExitStatus) -> None:
    assert ExitStatus.from_wire(status.to_wire()) == status


def test_finalizing_waits_for_the_process_and_then_takes_the_whole_subtree() -> None:
    world = World()
    child = world.child(pages=512, privileges=ALL_PRIVILEGES)
    world.start(child)
    inner = world.child(child, 200, ALL_PRIVILEGES)
    world.start(inner, child)
    innermost = world.child(inner, 50)
    world.start(innermost, inner)
    before = _balance(world, child)
    assert world.do(1, _C.FINALIZE_PARTITION, partition=child) == {"state": PartitionState.FINALIZING}
    assert world.doomed == {child, inner, innermost}
    assert _balance(world, child) == before  # its processes still hold the memory
    world.ended(child)
    assert _state(world, child) is PartitionState.FINALIZING
    world.ended(innermost)
    assert innermost not in world.machine.partitions
    assert _state(world, child) is PartitionState.FINALIZING
    world.ended(inner)
    assert _state(world, child) is PartitionState.FINALIZED
    assert world.machine.partitions.keys() == {1, child}
    assert _balance(world, child) == (0, 0)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (1, 0, 2), (0, 2, 1), (2, 0, 1)])
def test_a_subtree_dies_whole_in_whatever_order_its_processes_are_reaped(order: tuple[int, ...]) -> None:
    world = World()
    family = [world.child(pages=512, privileges=ALL_PRIVILEGES)]
    world.start(family[0])
    for pages in (200, 50):
        family.append(world.child(family[-1], pages, ALL_PRIVILEGES))
        world.start(family[-1], family[-2])
    bystander = world.child()
    world.start(bystander)
    world.ended(family[0], 1)  # the eldest dies by itself; the rest is killed
    for index in order:
        if family[index] in world.doomed:
            world.ended(family[index])
    assert world.machine.partitions.keys() == {1, family[0], bystander}
    assert bystander in world.running


def test_a_child_that_cannot_be_spawned_is_a_child_that_died() -> None:
    world = World()
    child = world.child()
    world.do(1, _C.START_VIRTUAL_PROCESSOR, partition=child, vp=0)
    world.ended(child, 127)
    assert _state(world, child) is PartitionState.FINALIZED
    assert world.announced[-1].kind == "partition.exited"


def test_the_parent_is_told_of_every_change_of_its_children() -> None:
    world = World()
    world.do(1, _C.WATCH_CHILDREN)
    world.do(1, _C.WATCH_CHILDREN)  # the same eventfd again
    child = world.child()
    seen = world.watches[1]
    assert seen > 0
    world.start(child)
    assert world.watches[1] > seen
    seen = world.watches[1]
    world.ended(child)
    assert world.watches[1] > seen


def test_the_platform_hears_of_each_life_in_order() -> None:
    world = World()
    child = world.child(name="guest")
    world.start(child)
    world.ended(child, 4)
    world.do(1, _C.DELETE_PARTITION, partition=child)
    assert [(event.kind, event.fields["id"]) for event in world.announced] == [
        ("partition.created", child),
        ("partition.started", child),
        ("partition.exited", child),
        ("partition.deleted", child),
    ]
    assert world.announced[1].fields == {"id": child, "name": "guest", "pid": 1000 + child, "at_ns": 0}
    assert world.announced[2].fields["code"] == 4


def test_the_root_takes_the_machine_down_with_it() -> None:
    world = World()
    world.ended(1)
    assert world.halted is not None


def test_an_uninitialized_partition_is_deleted_only_with_an_empty_pool() -> None:
    world = World()
    child = world.do(1, _C.CREATE_PARTITION)["partition"]
    world.do(1, _C.DEPOSIT_MEMORY, partition=child, pages=5)
    assert world.status(1, _C.DELETE_PARTITION, partition=child) == HvStatus.OPERATION_DENIED
    world.do(1, _C.WITHDRAW_MEMORY, partition=child, pages=5)
    world.do(1, _C.DELETE_PARTITION, partition=child)


def test_an_active_partition_is_not_deleted() -> None:
    world = World()
    assert world.status(1, _C.DELETE_PARTITION, partition=world.child()) == HvStatus.INVALID_PARTITION_STATE


@pytest.mark.parametrize(
    ("pages", "status"),
    [
        (0, HvStatus.INVALID_PARAMETER),
        (10**6, HvStatus.INSUFFICIENT_MEMORY),
        (2**64 - 1, HvStatus.INSUFFICIENT_MEMORY),
    ],
)
def test_nobody_deposits_or_withdraws_what_is_not_there(pages: int, status: HvStatus) -> None:
    world = World()
    child = world.child()
    for code in (_C.DEPOSIT_MEMORY, _C.WITHDRAW_MEMORY):
        assert world.status(1, code, partition=child, pages=pages) == status


def test_objects_are_refused_without_deposited_pages() -> None:
    world = World()
    child = world.do(1, _C.CREATE_PARTITION)["partition"]
    pages = INITIALIZE_PARTITION_PAGES
    world.do(1, _C.DEPOSIT_MEMORY, partition=child, pages=pages - 1)
    assert world.status(1, _C.INITIALIZE_PARTITION, partition=child) == HvStatus.INSUFFICIENT_MEMORY
    world.do(1, _C.DEPOSIT_MEMORY, partition=child, pages=1)
    world.do(1, _C.INITIALIZE_PARTITION, partition=child)
    assert world.status(1, _C.CREATE_VP, partition=child, vp=0) == HvStatus.INSUFFICIENT_MEMORY
    port = {"partition": child, "port": 1, "connection_partition": 1, "sint": 2, "vp": 0}
    message = int(PortType.MESSAGE)
    assert world.status(1, _C.CREATE_PORT, **port, type=message) == HvStatus.INSUFFICIENT_MEMORY
    flags = int(MapFlags.READ | MapFlags.ZEROED)
    for target in (child,):
        status = world.status(1, _C.MAP_GPA_PAGES, partition=target, gpfn=0, pages=1, flags=flags)
        assert status == HvStatus.INSUFFICIENT_MEMORY


def test_the_tree_has_a_depth_and_the_machine_a_size() -> None:
    world = World(memory_pages=100_000)
    parent = 1
    for depth in range(PARTITION_DEPTH_MAX):
        parent = world.child(parent, 60_000 - 5_000 * depth, ALL_PRIVILEGES)
    assert world.status(parent, _C.CREATE_PARTITION) == HvStatus.PARTITION_TOO_DEEP
    while len(world.machine.partitions) < PARTITIONS_MAX:
        _, effects = world.hypervisor.handle(1, int(_C.CREATE_PARTITION), {})
        world.carry_out(effects)
    assert world.status(1, _C.CREATE_PARTITION) == HvStatus.NO_RESOURCES


def test_children_are_listed_in_order_and_only_ones_own_branch() -> None:
    world = World()
    first, second = world.child(pages=100, privileges=ALL_PRIVILEGES), world.child()
    inner = world.child(first, 20)
    listed, previous = [], 0
    while previous := world.do(1, _C.GET_NEXT_CHILD_PARTITION, previous=previous)["partition"]:
        listed.append(previous)
    assert listed == [first, second]
    assert world.do(1, _C.GET_NEXT_CHILD_PARTITION, partition=first)["partition"] == inner
    assert world.status(first, _C.GET_NEXT_CHILD_PARTITION, partition=second) == HvStatus.ACCESS_DENIED


def test_a_program_starts_once_and_needs_a_name_of_its_own_among_its_siblings() -> None:
    world = World()
    child = world.child(name="guest")
    other = world.do(1, _C.CREATE_PARTITION)["partition"]
    program = {"partition": other, "property": int(_P.PROGRAM)}
    same = {"module": "a.b", "name": "guest"}
    set_ex = _C.SET_PARTITION_PROPERTY_EX
    assert world.status(1, set_ex, **program, value=same) == HvStatus.OBJECT_IN_USE
    world.start(child)
    again = {"partition": child, "vp": 0}
    assert world.status(1, _C.START_VIRTUAL_PROCESSOR, **again) == HvStatus.INVALID_VP_STATE
    assert world.status(1, set_ex, **(program | {"partition": child}), value=same) == (
        HvStatus.INVALID_PARTITION_STATE
    )
    world.ended(child)
    world.do(1, set_ex, **program, value=same)  # the dead one's name is free


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"module": "a"},
        {"module": "a", "name": "n", "extra": 1},
        {"module": "a", "name": 5},
        {"module": "a b", "name": "n"},
        {"module": "a..b", "name": "n"},
        {"module": "a.b\n", "name": "n"},
        {"module": "a", "name": "n\n"},
        {"module": "a", "name": "x/y"},
        {"module": "a", "name": "-x"},
        {"module": "a", "name": "n", "args": [1]},
        {"module": "a", "name": "n", "args": {"k": b"x" * 20_000}},
        {"module": "a", "name": "n", "args": {"k": object()}},
        {"module": "m" * 257, "name": "n"},
        {"module": "a", "name": "n", "args": {"k": eval("[" * 29 + "]" * 29)}},
    ],
)
def test_an_impossible_program_is_refused(value: dict[str, object]) -> None:
    world = World()
    child = world.child()
    args: dict[str, Any] = {"partition": child, "property": int(_P.PROGRAM), "value": value}
    assert world.status(1, _C.SET_PARTITION_PROPERTY_EX, **args) == HvStatus.INVALID_PARAMETER


def test_files_are_kept_for_the_birth_and_handed_over_once() -> None:
    world = World()
    child = world.child()
    value = {"module": "guests.any", "name": "g", "args": {"n": [1, {"deep": True}]}}
    args = {"partition": child, "property": int(_P.PROGRAM), "value": value}
    world.do(1, _C.SET_PARTITION_PROPERTY_EX, files=3, **args)
    world.do(1, _C.SET_PARTITION_PROPERTY_EX, files=2, **args)  # the first three are closed
    assert world.files == {child: 2}
    assert world.status(1, _C.SET_PARTITION_PROPERTY_EX, files=17, **args) == HvStatus.INVALID_PARAMETER
    get = {"partition": child, "property": int(_P.PROGRAM)}
    assert world.do(1, _C.GET_PARTITION_PROPERTY_EX, **get)["value"] == value | {"files": 2}
    world.start(child)
    birth = world.call(child, int(_C.GET_BIRTH), {})
    assert birth.handles == (VpHandle(child, 0), FilesHandle(child))
    assert birth.values["args"] == value["args"]
    assert birth.values["files"] == 2
    assert world.call(child, int(_C.GET_BIRTH), {}).values["files"] == 0


def test_files_nobody_fetched_are_closed_with_the_partition() -> None:
    world = World()
    child = world.child()
    value = {"module": "guests.any", "name": "g"}
    args = {"partition": child, "property": int(_P.PROGRAM), "value": value}
    world.do(1, _C.SET_PARTITION_PROPERTY_EX, files=3, **args)
    world.do(1, _C.FINALIZE_PARTITION, partition=child)
    assert not world.files


@pytest.mark.parametrize(
    ("code", "value", "status"),
    [
        (_P.CPU_RESERVE, 0x10000, HvStatus.SUCCESS),
        (_P.CPU_RESERVE, 0x10001, HvStatus.PROPERTY_VALUE_OUT_OF_RANGE),
        (_P.CPU_CAP, 0x10001, HvStatus.PROPERTY_VALUE_OUT_OF_RANGE),
        (_P.CPU_CAP, 0xFFF, HvStatus.PROPERTY_VALUE_OUT_OF_RANGE),  # below the reserve set first
        (_P.CPU_WEIGHT, 0, HvStatus.PROPERTY_VALUE_OUT_OF_RANGE),
        (_P.CPU_WEIGHT, 10_001, HvStatus.PROPERTY_VALUE_OUT_OF_RANGE),
        (_P.CPU_WEIGHT, 10_000, HvStatus.SUCCESS),
        (_P.STATE, 1, HvStatus.OPERATION_DENIED),
        (_P.PROGRAM, 1, HvStatus.UNKNOWN_PROPERTY),
        (0x20005, 1, HvStatus.UNKNOWN_PROPERTY),
    ],
)
def test_properties_have_ranges(code: int, value: int, status: HvStatus) -> None:
    world = World()
    child = world.child()
    reserve = {"partition": child, "property": int(_P.CPU_RESERVE), "value": 0x1000}
    world.do(1, _C.SET_PARTITION_PROPERTY, **reserve)
    args = {"partition": child, "property": int(code), "value": value}
    assert world.status(1, _C.SET_PARTITION_PROPERTY, **args) == status
    if status == HvStatus.SUCCESS:
        del args["value"]
        assert world.do(1, _C.GET_PARTITION_PROPERTY, **args)["value"] == value


def test_an_exit_status_is_no_data_while_the_process_lives() -> None:
    world = World()
    get = {"partition": world.child(), "property": int(_P.EXIT_STATUS)}
    assert world.status(1, _C.GET_PARTITION_PROPERTY, **get) == HvStatus.NO_DATA


def test_names_of_a_nested_tree_are_paths() -> None:
    world = World()
    outer = world.child(pages=200, privileges=ALL_PRIVILEGES, name="outer")
    inner = world.child(outer, 20, name="inner")
    found = world.machine.by_path("outer/inner")
    assert found is not None
    assert found.id == inner
    assert world.machine.by_path("inner") is None


def test_a_lost_page_is_noticed() -> None:
    """The checker itself: take one page away and it must say so."""
    world = World()
    world.machine.partitions[1].pool.available -= 1
    with pytest.raises(InvariantBroken):
        check_invariants(world.machine)
