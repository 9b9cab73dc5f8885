"""A partition that outlives its process: all it has stays, and its parent may give it another one."""

from runtime.abi import HvStatus, HypercallCode, PartitionProperty, PartitionState
from runtime.hypervisor.heartbeat import TAKE_OVER_MS_MAX
from tests.runtime.hypervisor_world import World

_C = HypercallCode


def _outliving(world: World) -> int:
    """A child that runs, with pages of its own."""
    child = world.child()
    code = int(PartitionProperty.OUTLIVES_PROCESS)
    world.do(1, _C.SET_PARTITION_PROPERTY, partition=child, property=code, value=1)
    world.do(1, _C.MAP_GPA_PAGES, partition=child, gpfn=1, pages=2, flags=0x2_0003)
    world.start(child)
    return child


def _state(world: World, child: int) -> PartitionState:
    code = int(PartitionProperty.STATE)
    return PartitionState(world.do(1, _C.GET_PARTITION_PROPERTY, partition=child, property=code)["value"])


def test_it_stays_as_it_is_when_its_process_ends_and_its_parent_is_told() -> None:
    world = World()
    world.do(1, _C.WATCH_CHILDREN)
    child = _outliving(world)
    partition = world.machine.partitions[child]
    entries, raised = dict(partition.gpa.entries), world.watches[1]
    world.ended(child, 3)
    assert _state(world, child) is PartitionState.ACTIVE
    assert partition.gpa.entries == entries
    assert world.watches[1] > raised
    exit_status = {"partition": child, "property": int(PartitionProperty.EXIT_STATUS)}
    assert world.do(1, _C.GET_PARTITION_PROPERTY, **exit_status) == {"value": 3}
    world.check()


def test_its_next_process_claims_what_it_had_and_has_a_bound_for_its_start() -> None:
    world = World()
    child = _outliving(world)
    for code in (3, 4):
        world.ended(child, code)
        world.do(1, _C.START_VIRTUAL_PROCESSOR, partition=child, vp=0)
        exit_status = {"partition": child, "property": int(PartitionProperty.EXIT_STATUS)}
        assert world.status(1, _C.GET_PARTITION_PROPERTY, **exit_status) is HvStatus.NO_DATA, "the old one's"
        world.started(child)
        assert len(world.call(child, int(_C.CLAIM_GPA_PAGES), {"gpfn": 1, "pages": 2}).handles) == 1
    world.advance(TAKE_OVER_MS_MAX + 100)
    assert child in world.doomed


def test_one_that_runs_cannot_be_started_and_one_that_does_not_outlive_is_gone() -> None:
    world = World()
    child = _outliving(world)
    status = world.status(1, _C.START_VIRTUAL_PROCESSOR, partition=child, vp=0)
    assert status is HvStatus.INVALID_VP_STATE
    mortal = world.child()
    world.start(mortal)
    world.ended(mortal)
    assert _state(world, mortal) is PartitionState.FINALIZED


def test_finalizing_it_is_its_end_whether_it_runs_or_not() -> None:
    world = World()
    for runs in (True, False):
        child = _outliving(world)
        if not runs:
            world.ended(child, 1)
        world.do(1, _C.FINALIZE_PARTITION, partition=child)
        if runs:
            world.ended(child, 1)
        assert _state(world, child) is PartitionState.FINALIZED
        world.check()
