"""One synthetic timer, the queue of all, and the pace of a partition: on virtual time, against plain models."""

from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runtime.abi import (
    TIMER_AUTO_ENABLE,
    TIMER_DIRECT,
    TIMER_ENABLE,
    TIMER_LAZY,
    TIMER_PERIOD_MIN_100NS,
    TIMER_PERIODIC,
    TIMER_SINT_SHIFT,
    TIMER_VECTOR_SHIFT,
)
from runtime.hypervisor.synthetic_timers import (
    CATCH_UP_DIVISOR,
    CATCH_UP_PERIODS_MAX,
    Pace,
    SyntheticTimer,
    TimerQueue,
)

_SINT: Final = 3 << TIMER_SINT_SHIFT
_DIRECT: Final = TIMER_DIRECT | 40 << TIMER_VECTOR_SHIFT
_TARGETS: Final = st.sampled_from([_SINT, _DIRECT])
_TIMES: Final = st.integers(0, 10**9)
_PERIODS: Final = st.one_of(st.integers(1, 3 * TIMER_PERIOD_MIN_100NS), st.integers(1, 10**8))


def _timer(config: int, count: int, now: int) -> SyntheticTimer:
    timer = SyntheticTimer()
    timer.write_config(config | TIMER_ENABLE, now)
    timer.write_count(count, now)
    return timer


def _fires(timer: SyntheticTimer) -> int | None:
    """Asked anew each time."""
    return timer.fires_at


# -- registers -------------------------------------------------------------------------------------------------


@given(_TARGETS, _TIMES, st.integers(1, 2**64 - 1))
def test_a_one_shot_expires_once_at_its_moment_or_at_once_if_that_is_past(
    target: int, now: int, count: int
) -> None:
    timer = _timer(target, count, now)
    assert _fires(timer) == count
    at = max(now, count)
    assert timer.expire(at) == count
    assert not timer.config & TIMER_ENABLE
    assert timer.due is None
    assert timer.count == count


@given(_TIMES, st.integers(0, 2**64 - 1))
def test_a_timer_with_neither_a_sint_nor_a_vector_cannot_be_enabled(now: int, count: int) -> None:
    timer = SyntheticTimer()
    timer.write_count(count, now)
    for config in (TIMER_ENABLE, TIMER_AUTO_ENABLE, TIMER_ENABLE | TIMER_PERIODIC):
        timer.write_config(config, now)
        timer.write_count(count, now)
        assert not timer.config & TIMER_ENABLE
        assert _fires(timer) is None


@given(_TARGETS, _TIMES, st.integers(1, 2**64 - 1))
def test_auto_enable_makes_a_count_start_the_timer_and_zero_stops_it(
    target: int, now: int, count: int
) -> None:
    timer = SyntheticTimer()
    timer.write_config(target, now)
    timer.write_count(count, now)
    assert _fires(timer) is None  # nobody enabled it
    timer.write_config(target | TIMER_AUTO_ENABLE, now)
    assert _fires(timer) is None
    timer.write_count(count, now)
    assert timer.config & TIMER_ENABLE
    assert _fires(timer) == count
    timer.write_count(0, now)
    assert not timer.config & TIMER_ENABLE
    assert _fires(timer) is None


@given(_TARGETS, _TIMES)
def test_an_enabled_timer_without_a_count_waits_for_one(target: int, now: int) -> None:
    timer = SyntheticTimer()
    timer.write_config(target | TIMER_ENABLE, now)
    assert _fires(timer) is None
    assert timer.config & TIMER_ENABLE
    timer.write_count(now + 5, now)
    assert timer.fires_at == now + 5


# -- periods ---------------------------------------------------------------------------------------------------


@given(
    _TARGETS,
    st.booleans(),
    _TIMES,
    _PERIODS,
    st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 3 * 10**8)), max_size=40),
)
def test_periods_are_never_early_never_doubled_and_on_the_grid(
    target: int, lazy: bool, start: int, count: int, delays: list[tuple[int, int]]
) -> None:
    """However late the broker is, and however late the VP takes the message."""
    timer = _timer(target | TIMER_PERIODIC | (TIMER_LAZY if lazy else 0), count, start)
    period = max(count, TIMER_PERIOD_MIN_100NS)
    seen: list[int] = []
    now = start
    for late, slow in delays:
        due = timer.fires_at
        assert due is not None
        assert due >= start + period
        now = max(now, due) + late % (10 * period)
        expired = timer.expire(now)
        seen.append(expired)
        assert expired <= now
        if timer.waits:
            assert _fires(timer) is None
            now += slow % (10 * period)
            timer.delivered()
    assert seen == sorted(set(seen))
    assert all((moment - start) % period == 0 for moment in seen)


@given(_PERIODS, st.integers(0, 50), st.booleans())
def test_missed_periods_are_made_up_for_in_shorter_ones_or_dropped(
    count: int, missed: int, lazy: bool
) -> None:
    """A timer that is late once and on time afterwards is back on its grid after a bounded number of expiries."""
    period = max(count, TIMER_PERIOD_MIN_100NS)
    timer = _timer(_DIRECT | TIMER_PERIODIC | (TIMER_LAZY if lazy else 0), count, 0)
    now = period + missed * period + period // 3
    assert timer.expire(now) == period
    made_up = 0
    while True:
        due = timer.fires_at
        assert due is not None
        assert due > now
        if due == timer.scheduled:
            break
        assert due - now == max(period // CATCH_UP_DIVISOR, TIMER_PERIOD_MIN_100NS)
        now = due
        timer.expire(now)
        made_up += 1
        assert made_up <= CATCH_UP_DIVISOR * (CATCH_UP_PERIODS_MAX + 1) or period < 2 * TIMER_PERIOD_MIN_100NS
        if period < 2 * TIMER_PERIOD_MIN_100NS and made_up > 100:
            break  # its shortest period is hardly shorter than its own: it stays behind
    if lazy:
        assert made_up == 0
    elif period >= 2 * TIMER_PERIOD_MIN_100NS:
        assert bool(made_up) == bool(missed)


@given(st.integers(0, TIMER_PERIOD_MIN_100NS), st.integers(1, 300))
def test_no_period_is_shorter_than_the_shortest(count: int, expiries: int) -> None:
    timer = _timer(_DIRECT | TIMER_PERIODIC, max(count, 1), 0)
    now = 0
    for _ in range(expiries):
        due = timer.fires_at
        assert due is not None
        assert due - now >= TIMER_PERIOD_MIN_100NS
        now = due
        timer.expire(now)


@given(st.booleans(), _PERIODS, st.integers(0, 10**9))
def test_while_its_message_waits_a_timer_does_not_expire_whatever_is_written_to_it(
    periodic: bool, count: int, again: int
) -> None:
    timer = _timer(_SINT | (TIMER_PERIODIC if periodic else 0), count, 0)
    assert timer.fires_at is not None
    now = timer.fires_at
    timer.expire(now)
    assert timer.waits
    timer.write_config(_SINT | TIMER_ENABLE, now)
    timer.write_count(again, now)
    assert _fires(timer) is None
    timer.delivered()
    assert _fires(timer) == (again or None)


# -- the queue -------------------------------------------------------------------------------------------------


class QueueMachine(RuleBasedStateMachine):
    """The queue against a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = TimerQueue()
        self.model: dict[tuple[int, int, int], tuple[int, int]] = {}
        self.serial = 0

    @rule(key=st.tuples(st.integers(1, 3), st.integers(0, 1), st.integers(0, 3)), due=st.integers(0, 100))
    def set(self, key: tuple[int, int, int], due: int) -> None:
        self.serial += 1
        self.queue.set(key, due)
        self.model[key] = due, self.serial

    @rule(key=st.tuples(st.integers(1, 3), st.integers(0, 1), st.integers(0, 3)))
    def unset(self, key: tuple[int, int, int]) -> None:
        self.queue.set(key, None)
        self.model.pop(key, None)

    @precondition(lambda self: self.model)
    @rule(now=st.integers(0, 100))
    def pop(self, now: int) -> None:
        key, (due, _) = min(self.model.items(), key=lambda item: item[1])
        if due > now:
            assert self.queue.pop_due(now) is None
        else:
            assert self.queue.pop_due(now) == key
            del self.model[key]

    @invariant()
    def the_earliest_is_known(self) -> None:
        assert self.queue.earliest_ns() == min((due for due, _ in self.model.values()), default=None)
        assert len(self.queue) == len(self.model)


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_somebody_who_sets_a_timer_for_ever_fills_no_memory() -> None:
    queue = TimerQueue()
    for other in range(10):
        queue.set((1, 0, other), 5)
    for due in range(5_000):
        queue.set((9, 9, 9), due)
        assert queue.size <= 300
    assert queue.earliest_ns() == 5


# -- the pace --------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 1_000), min_size=1, max_size=60))
def test_a_pace_bounds_expiries_in_every_window_and_delays_nobody_who_keeps_it(gaps: list[int]) -> None:
    """Leaky bucket: in any window of w spacings at most burst + w happen."""
    spacing, burst, grid = 200, 4, 600
    pace, now, happened = Pace(spacing, burst, grid), 0, list[int]()
    for gap in gaps:
        now += gap
        when = pace.take(now)
        assert when >= now
        if gap >= spacing and (not happened or max(happened) <= now - gap):
            assert when == now
        happened.append(when)
    happened.sort()  # one that comes in time may overtake one that was put off
    for first in range(len(happened)):
        for last in range(first, len(happened)):
            window = happened[last] - happened[first]
            assert last - first + 1 <= burst + (window + grid) // spacing + 1
