"""What `partvisor bench recovery` makes of times: gaps, percentiles, and phases that add up."""

import random

import pytest

from runtime.measure.outages import (
    PHASES,
    REMAINDER,
    Replacement,
    distribution_ms,
    longest_gap,
    percentile,
    summarize,
)

REPLACEMENT = Replacement(
    killed_ns=1_000_000,
    exited_ns=3_000_000,
    started_ns=3_500_000,
    born_ns=4_000_000,
    restored_ns=6_000_000,
    replayed_ns=9_000_000,
    serving_ns=10_000_000,
    completed_ns=7_000_000,
    outage_ns=6_250_000,
    quiet_ns=500_000,
)


def test_phases_add_up_to_the_time_until_the_first_completion() -> None:
    phases = REPLACEMENT.phases_ns
    assert tuple(phases) == (*PHASES, *REMAINDER)
    assert sum(phases[name] for name in PHASES) == REPLACEMENT.completed_ns - REPLACEMENT.killed_ns
    assert sum(phases[name] for name in REMAINDER) == REPLACEMENT.serving_ns - REPLACEMENT.restored_ns


@pytest.mark.parametrize("seed", range(50))
def test_the_longest_gap_is_one_that_touches_the_stretch_and_none_of_those_is_longer(seed: int) -> None:
    rng = random.Random(seed)
    times = sorted(rng.sample(range(10_000), 40))
    begins, ends = sorted(rng.sample(range(times[0], times[-1] + 1), 2))
    begin, end = longest_gap(times, begins, ends)
    assert end >= begins
    assert begin <= ends
    assert times.index(end) == times.index(begin) + 1
    moments = range(begins, ends + 1)
    touching = {max(time for time in times if time <= moment) for moment in moments if moment < times[-1]}
    assert all(times[times.index(one) + 1] - one <= end - begin for one in touching)


@pytest.mark.parametrize("times", [[], [5, 10], [15, 40], [10, 12]])
def test_times_that_do_not_reach_around_the_stretch_say_nothing_of_it(times: list[int]) -> None:
    with pytest.raises(ValueError, match="no times around"):
        longest_gap(times, 10 if times[:1] != [10] else 9, 20)


def test_a_percentile_is_one_of_the_values_with_so_many_not_above_it() -> None:
    values = list(range(1, 101))
    random.Random(1).shuffle(values)
    assert [percentile(values, percent) for percent in (1, 50, 90, 99, 100)] == [1, 50, 90, 99, 100]
    assert [percentile([7], percent) for percent in (1, 50, 100)] == [7, 7, 7]
    assert percentile([1, 2, 3], 50) == 2
    assert distribution_ms([1_000_000, 3_000_000]) == {"p50": 1.0, "p90": 3.0, "p99": 3.0, "max": 3.0}


def test_a_summary_has_every_phase_and_counts_what_it_was_made_of() -> None:
    summary = summarize([REPLACEMENT, REPLACEMENT])
    assert summary["kills"] == 2
    assert summary["outage_ms"]["p50"] == 6.25
    assert summary["first_completion_ms"]["max"] == 6.0
    assert set(summary["split_ms"]) == {*PHASES, *REMAINDER}
