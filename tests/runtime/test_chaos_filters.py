"""What armed faults make of things that pass one by one: nothing is invented, and nothing but a dropped one is lost."""

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.chaos.faults.filters import HELD_MAX, Filter, Harm, flip_a_bit
from runtime.chaos.faults.knobs import Knobs, Trigger
from runtime.chaos.faults.orders import Counts, Order

ALWAYS: Final = Knobs()
_MS: Final = 1_000_000
_HARMS: Final = st.sampled_from([Harm.DELAY, Harm.REORDER, Harm.ASIDE, Harm.DUPLICATE, Harm.DROP])


def _order(number: int, knobs: Knobs = ALWAYS, delay_ms: int = 10, seed: int = 0) -> Order:
    return Order(number, "any", "any", {"delay_ms": delay_ms}, knobs, seed)


def _filter(*harms: Harm, knobs: Knobs = ALWAYS, delay_ms: int = 10, seed: int = 0) -> Filter[str, int]:
    made: Filter[str, int] = Filter(lambda thing, trigger: -thing)
    for number, harm in enumerate(harms, 1):
        made.arm(_order(number, knobs, delay_ms, seed + number), harm, lambda key, thing: True)
    return made


def test_with_nothing_armed_everything_passes_as_it_is() -> None:
    empty = _filter()
    assert [empty.passing("a", thing, 0) for thing in range(3)] == [[0], [1], [2]]
    assert empty.is_idle
    assert empty.earliest_ns is None


_STEPS: Final = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(min_value=0, max_value=20 * _MS)), max_size=60
)


@given(harms=st.lists(_HARMS, max_size=4), steps=_STEPS, percent=st.integers(0, 100), seed=st.integers(0, 99))
def test_nothing_is_invented_and_what_is_not_dropped_comes(
    harms: list[Harm], steps: list[tuple[str, int]], percent: int, seed: int
) -> None:
    """Things are numbered; each comes as often as no fault, or a duplication, says, and of its own queue."""
    filter_ = _filter(*harms, knobs=Knobs(probability=percent), seed=seed)
    now, out = 0, list[tuple[str, int]]()
    for thing, (key, wait_ns) in enumerate(steps):
        now += wait_ns
        out += filter_.due(now)
        out += [(key, one) for one in filter_.passing(key, thing, now)]
        assert filter_.earliest_ns is None or filter_.earliest_ns > now
    filter_.disarm(None)
    out += filter_.due(now)
    assert filter_.is_idle
    times = {thing: [key for key, one in out if one == thing] for thing in range(len(steps))}
    doubles = sum(harm is Harm.DUPLICATE for harm in harms)
    for thing, (key, _) in enumerate(steps):
        assert set(times[thing]) <= {key}
        assert len(times[thing]) <= 2**doubles
        assert times[thing] or Harm.DROP in harms
    assert len(out) == sum(map(len, times.values()))


@given(steps=_STEPS, percent=st.integers(0, 100), seed=st.integers(0, 99))
def test_a_slow_line_keeps_its_order(steps: list[tuple[str, int]], percent: int, seed: int) -> None:
    filter_ = _filter(Harm.DELAY, knobs=Knobs(probability=percent), seed=seed)
    now, out = 0, list[tuple[str, int]]()
    for thing, (key, wait_ns) in enumerate(steps):
        now += wait_ns
        out += filter_.due(now)
        out += [(key, one) for one in filter_.passing(key, thing, now)]
    out += filter_.due(now + 10 * _MS)
    assert filter_.earliest_ns is None
    for key in "ab":
        came = [thing for one, thing in out if one == key]
        assert came == [thing for thing, (one, _) in enumerate(steps) if one == key]


def test_a_reordered_thing_is_overtaken_by_one_and_no_more() -> None:
    filter_ = _filter(Harm.REORDER, knobs=Knobs(interval=3))
    out = [one for thing in range(9) for one in filter_.passing("a", thing, 0)]
    assert out == [0, 1, 3, 2, 4, 6, 5, 7]
    assert filter_.due(10 * _MS) == [("a", 8)]


def test_a_thing_that_goes_aside_holds_nobody_up() -> None:
    filter_ = _filter(Harm.ASIDE, knobs=Knobs(times=1))
    assert filter_.passing("a", 1, 0) == []
    assert filter_.passing("a", 2, 0) == [2]
    assert filter_.due(9 * _MS) == []
    assert filter_.due(10 * _MS) == [("a", 1)]


def test_healing_one_fault_lets_go_of_what_it_held_and_of_nothing_else() -> None:
    filter_: Filter[str, int] = Filter(lambda thing, trigger: thing)
    filter_.arm(_order(1), Harm.ASIDE, lambda key, thing: key == "a")
    filter_.arm(_order(2), Harm.ASIDE, lambda key, thing: key == "b")
    assert filter_.passing("a", 1, 5) == filter_.passing("b", 2, 5) == []
    filter_.disarm(1)
    assert filter_.due(5) == [("a", 1)]
    assert filter_.counts() == {2: Counts(1, 1)}
    assert not filter_.is_idle


def test_what_is_held_is_bounded_and_the_oldest_goes_first() -> None:
    filter_ = _filter(Harm.DELAY)
    out = [one for thing in range(HELD_MAX + 3) for one in filter_.passing("a", thing, 0)]
    assert out == [0, 1, 2]
    assert filter_.forget(lambda key: key == "a") == HELD_MAX
    assert filter_.earliest_ns is None


def test_a_corrupt_thing_is_the_corrupters() -> None:
    assert _filter(Harm.CORRUPT, Harm.DUPLICATE).passing("a", 7, 0) == [-7, -7]


@given(data=st.binary(max_size=300), seed=st.integers(0, 2**63 - 1))
def test_one_bit_is_flipped_if_there_is_any(data: bytes, seed: int) -> None:
    flipped = flip_a_bit(data, Trigger(Knobs(), seed))
    assert len(flipped) == len(data)
    assert sum((a ^ b).bit_count() for a, b in zip(data, flipped, strict=True)) == bool(data)


@pytest.mark.parametrize("harm", list(Harm))
def test_what_does_not_match_passes(harm: Harm) -> None:
    filter_: Filter[str, int] = Filter(lambda thing, trigger: 0)
    filter_.arm(_order(1), harm, lambda key, thing: False)
    assert filter_.passing("a", 1, 0) == [1]
    assert filter_.counts() == {1: Counts(0, 0)}
