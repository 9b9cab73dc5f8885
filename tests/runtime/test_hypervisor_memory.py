"""GPA spaces: who may map what, and who pays."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.abi import (
    ALL_PRIVILEGES,
    GPFN_MAX,
    GUEST_PRIVILEGES,
    MAPPING_PAGES,
    SLOT_PAGES_MAX,
    SLOTS_PER_PARTITION_MAX,
    HvStatus,
    HypercallCode,
    MapFlags,
)
from runtime.hypervisor.gpa_space import Entry, GpaSpace
from runtime.hypervisor.replies import Refused, SlotHandle
from tests.runtime.hypervisor_world import World

_C = HypercallCode
_R, _W, _Z = MapFlags.READ, MapFlags.WRITE, MapFlags.ZEROED
_NEW = int(_R | _W | _Z)


def _family() -> tuple[World, int, int]:
    world = World()
    first = world.child(privileges=GUEST_PRIVILEGES, pages=100)
    second = world.child(privileges=GUEST_PRIVILEGES, pages=100)
    for child in (first, second):
        world.start(child)
    return world, first, second


def _map(world: World, caller: int, **args: Any) -> HvStatus:
    return world.status(caller, _C.MAP_GPA_PAGES, **args)


def test_new_pages_come_from_the_targets_own_pool_and_as_one_descriptor() -> None:
    world, child, _ = _family()
    available = world.machine.partitions[child].pool.available
    reply = world.call(child, int(_C.MAP_GPA_PAGES), {"gpfn": 16, "pages": 8, "flags": _NEW})
    assert reply.values == {"slots": [{"gpfn": 16, "source_gpfn": 16, "pages": 8, "flags": int(_R | _W)}]}
    (handle,) = reply.handles
    assert handle == SlotHandle(next(iter(world.slots)), writable=True)
    assert world.machine.partitions[child].pool.available == available - 8


def test_a_descriptor_goes_to_the_space_it_is_mapped_into_and_to_nobody_else() -> None:
    world, child, _ = _family()
    args = {"partition": child, "gpfn": 0, "pages": 2, "flags": _NEW}
    assert world.call(1, int(_C.MAP_GPA_PAGES), args).handles == ()
    claimed = world.call(child, int(_C.CLAIM_GPA_PAGES), {"gpfn": 1, "pages": 1})
    assert claimed.values["slots"] == [{"gpfn": 0, "source_gpfn": 0, "pages": 2, "flags": int(_R | _W)}]
    assert len(claimed.handles) == 1
    assert world.status(child, _C.CLAIM_GPA_PAGES, gpfn=2, pages=1) == HvStatus.NOT_FOUND


@pytest.mark.parametrize(
    ("gpfn", "pages", "flags", "status"),
    [
        (0, 0, _NEW, HvStatus.INVALID_PARAMETER),
        (0, SLOT_PAGES_MAX + 1, _NEW, HvStatus.INVALID_PARAMETER),
        (GPFN_MAX, 2, _NEW, HvStatus.INVALID_PARAMETER),
        (GPFN_MAX, 1, _NEW, HvStatus.SUCCESS),
        (2**64 - 1, 1, _NEW, HvStatus.INVALID_PARAMETER),
        (0, 1, int(_R | _W), HvStatus.INVALID_PARAMETER),  # neither new nor from anyone
        (0, 1, int(_W | _Z), HvStatus.INVALID_PARAMETER),
        (0, 1, _NEW | 0x4, HvStatus.INVALID_PARAMETER),
        (0, 1, _NEW | 0x10000, HvStatus.INVALID_PARAMETER),
        (100, 4, _NEW, HvStatus.OBJECT_IN_USE),
        (99, 2, _NEW, HvStatus.OBJECT_IN_USE),
        (104, 1, _NEW, HvStatus.SUCCESS),
        (96, 4, _NEW, HvStatus.SUCCESS),
        (0, 1000, _NEW, HvStatus.OBJECT_IN_USE),
        (200, 1000, _NEW, HvStatus.INSUFFICIENT_MEMORY),
    ],
)
def test_an_impossible_range_is_refused(gpfn: int, pages: int, flags: int, status: HvStatus) -> None:
    world, child, _ = _family()
    world.do(child, _C.MAP_GPA_PAGES, gpfn=100, pages=4, flags=_NEW)
    assert _map(world, child, gpfn=gpfn, pages=pages, flags=flags) == status


def test_an_ancestor_maps_whole_slots_at_the_same_distances() -> None:
    world, child, _ = _family()
    for gpfn, pages in ((10, 2), (12, 3), (20, 1)):
        world.do(child, _C.MAP_GPA_PAGES, gpfn=gpfn, pages=pages, flags=_NEW)
    args = {"source_partition": child, "source_gpfn": 11, "pages": 3, "gpfn": 1011, "flags": int(_R)}
    reply = world.call(1, int(_C.MAP_GPA_PAGES), args)
    assert reply.values["slots"] == [
        {"gpfn": 1010, "source_gpfn": 10, "pages": 2, "flags": int(_R)},
        {"gpfn": 1012, "source_gpfn": 12, "pages": 3, "flags": int(_R)},
    ]
    assert [handle.writable for handle in reply.handles if isinstance(handle, SlotHandle)] == [False, False]


@pytest.mark.parametrize(
    ("source_gpfn", "pages", "gpfn", "flags", "status"),
    [
        (10, 4, 1000, int(_R), HvStatus.INVALID_PARAMETER),  # a hole behind the first slot
        (9, 2, 1000, int(_R), HvStatus.INVALID_PARAMETER),
        (30, 1, 1000, int(_R), HvStatus.INVALID_PARAMETER),
        (10, 2, 1000, int(_R | _Z), HvStatus.INVALID_PARAMETER),
        (20, 1, 1000, int(_R | _W), HvStatus.INVALID_PARAMETER),  # read only at its owner
        (20, 1, 1000, int(_R), HvStatus.SUCCESS),
        (11, 1, 0, int(_R), HvStatus.INVALID_PARAMETER),  # the slot would begin below zero
        (10, 2, GPFN_MAX, int(_R), HvStatus.INVALID_PARAMETER),
    ],
)
def test_a_range_that_is_not_there_is_not_mapped(
    source_gpfn: int, pages: int, gpfn: int, flags: int, status: HvStatus
) -> None:
    world, child, _ = _family()
    world.do(child, _C.MAP_GPA_PAGES, gpfn=10, pages=2, flags=_NEW)
    world.do(child, _C.MAP_GPA_PAGES, gpfn=20, pages=1, flags=int(_R | _Z))
    args = {"source_partition": child, "source_gpfn": source_gpfn, "pages": pages}
    assert _map(world, 1, **args, gpfn=gpfn, flags=flags) == status


def test_nobody_maps_the_pages_of_a_partition_that_is_not_below_it() -> None:
    world, first, second = _family()
    for owner in (1, second):
        world.do(owner, _C.MAP_GPA_PAGES, gpfn=10, pages=2, flags=_NEW)
        args = {"source_partition": owner, "source_gpfn": 10, "pages": 1, "gpfn": 0, "flags": int(_R)}
        assert _map(world, first, **args) == HvStatus.ACCESS_DENIED


def test_a_parent_hands_one_childs_pages_to_another_child() -> None:
    """A driver partition: the parent has authority over both, the driver claims the descriptor itself."""
    world, guest, driver = _family()
    world.do(guest, _C.MAP_GPA_PAGES, gpfn=10, pages=2, flags=_NEW)
    args = {"source_partition": guest, "source_gpfn": 10, "pages": 2, "gpfn": 50, "flags": int(_R | _W)}
    assert world.call(1, int(_C.MAP_GPA_PAGES), args | {"partition": driver}).handles == ()
    assert len(world.call(driver, int(_C.CLAIM_GPA_PAGES), {"gpfn": 50, "pages": 2}).handles) == 1
    world.ended(driver)
    assert not world.machine.slots[next(iter(world.slots))].mappers


def test_pages_pass_up_a_nested_tree_and_stay_charged_to_who_made_them() -> None:
    world = World()
    child = world.child(privileges=ALL_PRIVILEGES, pages=200)
    world.start(child)
    inner = world.child(child, 50, GUEST_PRIVILEGES)
    world.start(inner, child)
    world.do(inner, _C.MAP_GPA_PAGES, gpfn=1, pages=3, flags=_NEW)
    flags = int(_R | _W)
    up = {"source_partition": inner, "source_gpfn": 1, "pages": 3, "gpfn": 500, "flags": flags}
    world.do(child, _C.MAP_GPA_PAGES, **up)
    up = {"source_partition": child, "source_gpfn": 500, "pages": 3, "gpfn": 900, "flags": flags}
    world.do(1, _C.MAP_GPA_PAGES, **up)
    assert len(world.slots) == 1
    world.do(child, _C.UNMAP_GPA_PAGES, gpfn=500, pages=3)  # the root's mapping does not hang on it
    in_use = {"gpfn": 1, "pages": 3}
    assert world.status(inner, _C.UNMAP_GPA_PAGES, **in_use) == HvStatus.OBJECT_IN_USE
    world.do(1, _C.UNMAP_GPA_PAGES, gpfn=900, pages=3)
    world.do(inner, _C.UNMAP_GPA_PAGES, **in_use)
    assert not world.slots


def test_an_owner_gives_a_slot_back_only_when_nobody_else_maps_it() -> None:
    world, child, _ = _family()
    world.do(child, _C.MAP_GPA_PAGES, gpfn=10, pages=2, flags=_NEW)
    args = {"source_partition": child, "source_gpfn": 10, "pages": 2, "gpfn": 50, "flags": int(_R)}
    before = world.machine.partitions[1].pool.available
    world.do(1, _C.MAP_GPA_PAGES, **args)
    assert world.machine.partitions[1].pool.available == before - MAPPING_PAGES
    assert world.status(child, _C.UNMAP_GPA_PAGES, gpfn=10, pages=2) == HvStatus.OBJECT_IN_USE
    assert world.do(1, _C.UNMAP_GPA_PAGES, gpfn=0, pages=100) == {"slots": 1}
    assert world.machine.partitions[1].pool.available == before
    assert world.do(child, _C.UNMAP_GPA_PAGES, gpfn=10, pages=2) == {"slots": 1}
    assert world.do(child, _C.UNMAP_GPA_PAGES, gpfn=10, pages=2) == {"slots": 0}


@pytest.mark.parametrize(("gpfn", "pages"), [(10, 1), (11, 1), (9, 2), (11, 50)])
def test_a_slot_is_not_cut(gpfn: int, pages: int) -> None:
    world, child, _ = _family()
    world.do(child, _C.MAP_GPA_PAGES, gpfn=10, pages=2, flags=_NEW)
    assert world.status(child, _C.UNMAP_GPA_PAGES, gpfn=gpfn, pages=pages) == HvStatus.INVALID_PARAMETER


def test_a_dead_owners_slots_vanish_from_every_space_and_mappers_get_their_page_back() -> None:
    world, child, driver = _family()
    world.do(child, _C.MAP_GPA_PAGES, gpfn=10, pages=2, flags=_NEW)
    args = {"source_partition": child, "source_gpfn": 10, "pages": 2, "gpfn": 50, "flags": int(_R)}
    world.do(1, _C.MAP_GPA_PAGES, **args)
    world.do(1, _C.MAP_GPA_PAGES, **args, partition=driver)
    before = world.machine.partitions[driver].pool.available
    world.ended(child)
    assert not world.slots
    assert not world.machine.partitions[1].gpa.entries
    assert world.machine.partitions[driver].pool.available == before + MAPPING_PAGES


def test_a_table_of_slots_is_bounded() -> None:
    world = World(memory_pages=10_000)
    for gpfn in range(SLOTS_PER_PARTITION_MAX):
        args = {"gpfn": gpfn, "pages": 1, "flags": _NEW}
        reply, effects = world.hypervisor.handle(1, int(_C.MAP_GPA_PAGES), args)
        assert reply.status == HvStatus.SUCCESS
        world.carry_out(effects)
    assert _map(world, 1, gpfn=10_000, pages=1, flags=_NEW) == HvStatus.NO_RESOURCES
    assert world.status(1, _C.CLAIM_GPA_PAGES, gpfn=0, pages=17) == HvStatus.INVALID_PARAMETER


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=12), st.data())
def test_a_space_finds_what_a_page_by_page_map_finds(
    ranges: list[tuple[int, int]], data: st.DataObject
) -> None:
    space, model = GpaSpace(), dict[int, int]()  # page: slot
    for slot, (gpfn, pages) in enumerate(ranges):
        taken = any(page in model for page in range(gpfn, gpfn + pages))
        assert bool(space.touching(gpfn, pages)) == taken
        if not taken:
            space.add(Entry(gpfn, pages, slot, _R, own=True))
            model.update(dict.fromkeys(range(gpfn, gpfn + pages), slot))
    gpfn, pages = data.draw(st.integers(0, 70)), data.draw(st.integers(1, 20))
    wanted = [model.get(page) for page in range(gpfn, gpfn + pages)]
    expected = list(dict.fromkeys(slot for slot in wanted if slot is not None))
    assert [entry.slot for entry in space.touching(gpfn, pages)] == expected
    if None in wanted:
        with pytest.raises(Refused):
            space.covering(gpfn, pages)
    else:
        assert [entry.slot for entry in space.covering(gpfn, pages)] == expected
