"""Partitions that are paused, on a clock that the test turns: their promises wait, their time stands still."""

from runtime.abi import HypercallCode, PartitionProperty
from runtime.hypervisor import pausing
from runtime.hypervisor.effects import SuspendPartition
from tests.runtime.hypervisor_world import World

_C = HypercallCode


def _time(world: World, partition: int) -> int:
    answer = world.do(
        1, _C.GET_PARTITION_PROPERTY, partition=partition, property=int(PartitionProperty.REFERENCE_TIME)
    )
    return int(answer["value"])


def _pause(world: World, partitions: list[int], paused: bool) -> list[tuple[int, bool]]:
    effects = world.hypervisor.pause(partitions, paused, world.now_ns)
    world.carry_out(effects)
    return [(one.partition, one.suspended) for one in effects if isinstance(one, SuspendPartition)]


def test_a_paused_partition_keeps_its_promise_and_its_time() -> None:
    world = World()
    child, other = world.child(), world.child()
    for each in (child, other):
        world.start(each)
        world.do(each, _C.HEARTBEAT, within_ms=50)
    assert _pause(world, [child], True) == [(child, True)]
    assert _pause(world, [child], True) == []  # it is already
    before = _time(world, child)
    world.advance(1000)
    assert world.doomed == {other}  # which did not call, and was not paused
    assert _time(world, child) == before
    assert _pause(world, [child], False) == [(child, False)]
    world.advance(10)
    assert _time(world, child) - before == 10 * 10_000  # and goes on from there
    assert world.doomed == {other}
    world.advance(60)
    assert world.doomed == {child, other}  # its promise holds again


def test_time_that_stood_still_before_stands_still_afterwards() -> None:
    world = World()
    child = world.child()
    world.start(child)
    world.do(
        1, _C.SET_PARTITION_PROPERTY, partition=child, property=int(PartitionProperty.TIME_FREEZE), value=1
    )
    before = _time(world, child)
    _pause(world, [child], True)
    _pause(world, [child], False)
    world.advance(100)
    assert _time(world, child) == before


def test_a_tree_is_a_partition_and_all_below_it() -> None:
    world = World()
    child, other = world.child(), world.child()
    partitions = world.machine.partitions
    assert [one.id for one in pausing.tree(world.machine, partitions[1])] == [1, child, other]
    assert [one.id for one in pausing.tree(world.machine, partitions[child])] == [child]
