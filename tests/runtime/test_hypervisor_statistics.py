"""Statistics pages: what stands in them, when it is written, and what they cost."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.abi import ALL_PRIVILEGES, HvStatus, HypercallCode
from runtime.statistics import (
    COUNTERS,
    STATS_INTERVAL_MS,
    Statistics,
    StatsObject,
    TornPage,
    close_page,
    read_page,
    write_page,
)
from tests.runtime.hypervisor_world import World

_C = HypercallCode


def _mapped(world: World, caller: int, kind: StatsObject, **args: int) -> int:
    """The page's number in the world."""
    reply = world.call(caller, int(_C.MAP_STATS_PAGE), {"type": int(kind), **args})
    assert reply.status == HvStatus.SUCCESS
    (handle,) = reply.handles
    page: int = handle.page  # type: ignore[union-attr]
    return page


def _read(world: World, page: int, kind: StatsObject) -> Statistics:
    return read_page(world.statistics[page], kind)


@given(st.sampled_from(StatsObject), st.data())
def test_a_page_holds_its_counters_and_its_time(kind: StatsObject, data: st.DataObject) -> None:
    page = bytearray(4096)
    for _ in range(3):
        values = data.draw(
            st.lists(st.integers(0, 2**64 - 1), min_size=len(COUNTERS[kind]), max_size=len(COUNTERS[kind]))
        )
        write_page(page, 77, values)
        assert read_page(page, kind) == Statistics(True, 77, dict(zip(COUNTERS[kind], values, strict=True)))
    close_page(page, 99)
    assert read_page(page, kind) == Statistics(False, 99, dict(zip(COUNTERS[kind], values, strict=True)))


def test_a_page_that_is_being_written_is_not_read() -> None:
    page = bytearray(4096)
    struct.pack_into("<Q", page, 0, 7)
    with pytest.raises(TornPage):
        read_page(page, StatsObject.VP)


def test_a_page_of_each_kind_says_what_is_there() -> None:
    world = World()
    child = world.child(pages=100, privileges=ALL_PRIVILEGES)
    world.start(child)
    world.do(child, _C.NOTIFY_LONG_SPIN_WAIT, spins=5)
    pages = {
        StatsObject.HYPERVISOR: {},
        StatsObject.LOGICAL_PROCESSOR: {"index": 1},
        StatsObject.PARTITION: {"partition": child},
        StatsObject.VP: {"partition": child, "index": 0},
    }
    read = {
        kind: _read(world, _mapped(world, 1, kind, **args), kind).counters for kind, args in pages.items()
    }
    whole = read[StatsObject.HYPERVISOR]
    assert (whole["partitions"], whole["virtual_processors"], whole["logical_processors"]) == (2, 2, 2)
    assert whole["memory_pages"] == world.machine.memory_pages
    of_child = read[StatsObject.PARTITION]
    pool = world.machine.partitions[child].pool
    assert (of_child["pages_available"], of_child["pages_in_use"]) == (pool.available, pool.in_use)
    assert (of_child["hypercalls"], of_child["hypercalls_refused"]) == (1, 0)
    assert read[StatsObject.VP] == {"running": 1, "messages_waiting": 0, "long_spin_waits": 1}


def test_a_page_is_kept_current_while_anybody_has_one() -> None:
    world = World()
    child = world.child(pages=100, privileges=ALL_PRIVILEGES)
    page = _mapped(world, 1, StatsObject.PARTITION, partition=child)
    assert _mapped(world, 1, StatsObject.PARTITION, partition=child) == page  # again, and for nothing
    assert world.machine.partitions[1].stats_pages
    first = _read(world, page, StatsObject.PARTITION)
    world.do(child, _C.CREATE_VP, vp=1)
    assert _read(world, page, StatsObject.PARTITION) == first
    world.refresh_statistics()
    second = _read(world, page, StatsObject.PARTITION)
    assert second.counters["virtual_processors"] == 2
    assert second.time_100ns == first.time_100ns + STATS_INTERVAL_MS * 10_000
    world.do(1, _C.UNMAP_STATS_PAGE, partition=child, type=int(StatsObject.PARTITION))
    world.refresh_statistics()
    assert world.statistics_timer_ns is None  # nobody looks: nothing is written


def test_the_end_of_an_object_is_the_last_that_its_page_says() -> None:
    world = World()
    child = world.child(pages=100, privileges=ALL_PRIVILEGES)
    world.do(1, _C.CREATE_VP, partition=child, vp=1)
    pages = [
        (StatsObject.PARTITION, _mapped(world, 1, StatsObject.PARTITION, partition=child)),
        (StatsObject.VP, _mapped(world, 1, StatsObject.VP, partition=child, index=1)),
    ]
    views = [(kind, world.statistics[page]) for kind, page in pages]
    balance = world.do(1, _C.GET_MEMORY_BALANCE)["in_use"]
    world.do(1, _C.DELETE_VP, partition=child, vp=1)
    assert [read_page(view, kind).live for kind, view in views] == [True, False]
    assert world.do(1, _C.GET_MEMORY_BALANCE)["in_use"] == balance - 1
    world.do(1, _C.FINALIZE_PARTITION, partition=child)
    world.do(1, _C.DELETE_PARTITION, partition=child)
    assert [read_page(view, kind).live for kind, view in views] == [False, False]
    assert not world.statistics


def test_a_mapper_that_dies_gives_its_pages_back() -> None:
    world = World()
    child = world.child(pages=100, privileges=ALL_PRIVILEGES)
    _mapped(world, child, StatsObject.HYPERVISOR)
    world.do(1, _C.FINALIZE_PARTITION, partition=child)
    assert not world.statistics
    world.refresh_statistics()
    assert world.statistics_timer_ns is None


def test_a_processor_tells_what_it_ran() -> None:
    world = World()
    world.now_ns = 10**9
    time = world.do(1, _C.GET_LOGICAL_PROCESSOR_RUN_TIME, lp=0)
    assert time == {"global_time": 10**7, "local_run_time": 10**7 // 2}
