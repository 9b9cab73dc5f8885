"""Promises to call again in time, on a clock that the test turns: who keeps one lives, who breaks one is killed."""

from hypothesis import given
from hypothesis import strategies as st

from runtime.abi import HEARTBEAT_MS_MAX, HvStatus, HypercallCode
from runtime.hypervisor.heartbeat import TAKE_OVER_MS_MAX
from runtime.hypervisor.machine import RootFailurePolicy
from tests.runtime.hypervisor_world import World

_C = HypercallCode
_TICK_MS = 1  # timers are whole milliseconds, so a kill may come this much late


def _guest() -> tuple[World, int]:
    world = World()
    child = world.child()
    world.start(child)
    return world, child


def _promise(world: World, partition: int, within_ms: int) -> None:
    world.do(partition, _C.HEARTBEAT, within_ms=within_ms)


def test_who_never_promised_anything_may_be_silent_for_ever() -> None:
    world, _ = _guest()
    world.advance(10 * HEARTBEAT_MS_MAX)
    assert not world.doomed


def test_a_broken_promise_is_death_and_the_reason_says_so() -> None:
    world, child = _guest()
    _promise(world, child, 100)
    world.advance(99.9)
    assert not world.doomed
    world.advance(0.1 + _TICK_MS)
    assert world.doomed == {child}
    world.ended(child, 0)
    assert world.announced[-1].fields["reason"] == "hung: no heartbeat for 100 ms"


def test_a_promise_that_is_kept_costs_a_timer_now_and_then_and_no_life() -> None:
    """A thousand heartbeats, four to a promise: far fewer timers than heartbeats."""
    world, child = _guest()
    for _ in range(1000):
        _promise(world, child, 100)
        world.advance(25)
    assert not world.doomed
    assert world.timers_set <= 1000 * 25 / 75 + 2


def test_a_promise_that_is_taken_back_binds_nobody() -> None:
    world, child = _guest()
    _promise(world, child, 50)
    _promise(world, child, 0)
    world.advance(10_000)
    assert not world.doomed
    _promise(world, child, 50)  # and it can be made again
    world.advance(50 + _TICK_MS)
    assert world.doomed == {child}


def test_a_shorter_promise_counts_at_once_and_a_longer_one_too() -> None:
    world, child = _guest()
    _promise(world, child, HEARTBEAT_MS_MAX)
    _promise(world, child, 10)
    _promise(world, child, 1000)
    world.advance(1000 - _TICK_MS)
    assert not world.doomed
    _promise(world, child, 10)
    world.advance(10 + _TICK_MS)
    assert world.doomed == {child}


def test_a_promise_has_a_limit() -> None:
    world, child = _guest()
    too_long = {"within_ms": HEARTBEAT_MS_MAX + 1}
    assert world.status(child, _C.HEARTBEAT, **too_long) == HvStatus.INVALID_PARAMETER


def test_one_partitions_silence_is_nobody_elses_death() -> None:
    world, silent = _guest()
    other = world.child()
    world.start(other)
    _promise(world, silent, 100)
    for _ in range(10):
        _promise(world, other, 100)
        world.advance(50)
    assert world.doomed == {silent}


def test_a_promise_made_before_we_know_of_the_process_counts() -> None:
    """Its first calls may come before the zygote's word that it was forked."""
    world = World()
    child = world.child()
    world.do(1, _C.START_VIRTUAL_PROCESSOR, partition=child, vp=0)
    _promise(world, child, 100)
    world.advance(50)
    world.started(child)
    world.advance(50 + _TICK_MS)
    assert world.doomed == {child}


def test_a_promise_ends_with_its_process_and_the_next_root_gets_time_to_take_over() -> None:
    world = World(on_root_failure=RootFailurePolicy.STANDBY)
    _promise(world, 1, 100)
    world.advance(90)
    world.ended(1)
    world.advance(50)  # the timer of the first one's promise comes while nobody is there
    world.started(1)
    world.advance(TAKE_OVER_MS_MAX - _TICK_MS)
    assert not world.doomed
    world.advance(2 * _TICK_MS)
    assert world.doomed == {1}


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("promise"), st.sampled_from([0, 1, 7, 50, 51, 300, 2000])),
        st.tuples(st.just("pass"), st.integers(0, 400)),
    ),
    max_size=60,
)


@given(_STEPS)
def test_a_kill_comes_after_a_promise_is_broken_and_never_before(steps: list[tuple[str, int]]) -> None:
    """Any history of promises and silences, against one line of arithmetic; and never more than one timer."""
    world, child = _guest()
    due_ms: int | None = None
    now_ms = 0
    for what, value in steps:
        if what == "promise":
            _promise(world, child, value)
            due_ms = now_ms + value if value else None
        else:
            world.advance(value)
            now_ms += value
        if due_ms is None or now_ms < due_ms:
            assert not world.doomed
        elif now_ms >= due_ms + _TICK_MS:
            assert world.doomed == {child}
        assert len(world.timers_ns) <= 1
        if world.doomed:
            return
