"""The noise test: it finds what is there, and rarely what is not. Made-up rounds, fixed seeds."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.native import Histogram
from runtime.measure.noise_test import Difference, Sample, against_one, difference, shown
from runtime.measure.student import critical_t, two_sided_p
from tests.runtime.result_making import latencies

TRIES = 60
LEVEL = 0.05
# Of 60 tries at 5 %, more than 7 happen once in 90 runs of an honest test; the seeds are fixed, so here never.
FALSE_MAX = 7


@pytest.mark.parametrize(
    ("confidence", "freedom", "value"),  # any table of Student's t
    [
        (0.95, 1, 12.706),
        (0.95, 4, 2.776),
        (0.99, 4, 4.604),
        (0.95, 10, 2.228),
        (0.95, 30, 2.042),
        (0.999, 9, 4.781),
    ],
)
def test_critical_values_are_those_of_the_tables(confidence: float, freedom: float, value: float) -> None:
    assert critical_t(confidence, freedom) == pytest.approx(value, abs=6e-4)


@given(st.floats(0, 50), st.floats(0.5, 500))
def test_probabilities_fall_and_critical_values_undo_them(t: float, freedom: float) -> None:
    p = two_sided_p(t, freedom)
    assert 0 <= p <= 1
    assert two_sided_p(-t, freedom) == p
    assert two_sided_p(t + 0.1, freedom) <= p
    if 1e-9 < p < 0.999:
        assert critical_t(1 - p, freedom) == pytest.approx(t, rel=1e-4, abs=1e-6)


def many_rounds(rng: random.Random, count: int, middle_ns: float, between: float) -> list[Histogram]:
    return [latencies(rng, middle_ns * math.exp(rng.gauss(0, between)), 200) for _ in range(count)]


def compared(seed: int, count: int, effect: float, between: float = 0.05) -> dict[float, Difference]:
    rng = random.Random(seed)
    first, second = (Sample(many_rounds(rng, count, middle, between)) for middle in (1000.0, 1000.0 * effect))
    return {percent: difference(first, second, percent, str(seed)) for percent in (50.0, 90.0)}


@pytest.mark.parametrize("count", [5, 9])
def test_without_a_difference_few_are_shown_and_intervals_hold_the_truth(count: int) -> None:
    found = [compared(seed, count, 1.0) for seed in range(TRIES)]
    for percent in (50.0, 90.0):
        assert sum(each[percent].p_value <= LEVEL for each in found) <= FALSE_MAX
        assert sum(not each[percent].low <= 1 <= each[percent].high for each in found) <= FALSE_MAX


def test_a_known_effect_is_found_and_measured() -> None:
    """15 % with rounds that differ by 5 %: ten of them are enough, nearly always."""
    found = [compared(seed, 10, 1.15)[50.0] for seed in range(30)]
    assert sum(each.p_value <= LEVEL for each in found) >= 28
    assert sum(each.low <= 1.15 <= each.high for each in found) >= 26
    assert math.exp(sum(math.log(each.ratio) for each in found) / 30) == pytest.approx(1.15, abs=0.02)


def test_many_values_in_few_rounds_do_not_make_noise_sure() -> None:
    """Each round has its own middle: taking values for independent would show a difference nearly always."""
    rng = random.Random(3)
    shown_p = []
    for seed in range(20):
        first, second = (
            Sample([latencies(rng, 1000 * math.exp(rng.gauss(0, 0.1)), 3000) for _ in range(5)]) for _ in "ab"
        )
        shown_p.append(difference(first, second, 50, str(seed)).p_value)
    assert sum(p <= LEVEL for p in shown_p) <= 4


def test_the_same_seed_gives_the_same_answer_and_the_other_way_round_the_inverse() -> None:
    assert compared(1, 5, 1.1) == compared(1, 5, 1.1)
    rng = random.Random(1)
    first, second = Sample(many_rounds(rng, 8, 1000, 0.05)), Sample(many_rounds(rng, 8, 1300, 0.05))
    there, back = difference(first, second, 50, "x"), difference(second, first, 50, "x")
    assert there.ratio == pytest.approx(1 / back.ratio)
    assert there.low == pytest.approx(1 / back.high, rel=0.05)


def test_pairs_see_through_what_befell_both() -> None:
    """Rounds that differ by a factor of two for both rows, whose ratio is 1.1 in each."""
    rng = random.Random(4)
    middles = [1000 * math.exp(rng.gauss(0, 0.7)) for _ in range(10)]
    first = Sample([latencies(rng, middle, 400) for middle in middles])
    second = Sample([latencies(rng, middle * 1.1, 400) for middle in middles])
    paired = difference(first, second, 50, "x", paired=True)
    alone = difference(first, second, 50, "x")
    assert alone.p_value > 0.5
    assert paired.high / paired.low < alone.high / alone.low / 2


def test_a_ratio_to_the_limit_sees_through_a_limit_that_moved() -> None:
    rng = random.Random(5)
    limits = [120.0] * 4 + [320.0] * 4
    sample = Sample([latencies(rng, 2 * limit, 400) for limit in limits], limits)
    found = against_one(sample, 50, "x")
    assert found.low <= 2 <= found.high
    assert found.high / found.low < 1.1


def test_a_margin_hides_what_is_sure_but_small() -> None:
    rng = random.Random(6)
    first, second = Sample(many_rounds(rng, 10, 1000, 0.001)), Sample(many_rounds(rng, 10, 1015, 0.001))
    assert difference(first, second, 50, "x").p_value < 0.05
    assert difference(first, second, 50, "x", margin=0.05).p_value == 1.0


@given(st.lists(st.integers(0, 10**6), min_size=30, max_size=300), st.integers(1, 4), st.floats(1, 99))
def test_percentiles_of_a_sample_are_the_histograms(values: list[int], parts: int, percent: float) -> None:
    """Whatever way the values are dealt to rounds; within a bucket."""
    histograms = [Histogram() for _ in range(parts)]
    whole = Histogram()
    for at, value in enumerate(values):
        histograms[at % parts].record(value)
        whole.record(value)
    found = Sample(histograms).percentile(percent)
    assert whole.percentile(percent) * 127 / 129 - 1 <= found <= whole.percentile(percent) * (1 + 1e-9) + 1


def test_a_percentile_with_nothing_beyond_is_not_known() -> None:
    sample = Sample([latencies(random.Random(1), 1000, 500)])
    assert sample.knows(50)
    assert sample.knows(98)
    assert not sample.knows(99)
    assert not sample.knows(1)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_shown_ones_are_the_smallest_and_within_the_rate(p_values: list[float]) -> None:
    picked = shown(p_values, 0.05)
    chosen = [p for p, is_shown in zip(p_values, picked, strict=True) if is_shown]
    left = [p for p, is_shown in zip(p_values, picked, strict=True) if not is_shown]
    if chosen:
        assert max(chosen) <= 0.05 * len(chosen) / len(p_values)
        assert not left or max(chosen) <= min(left)
    assert all(is_shown for p, is_shown in zip(p_values, picked, strict=True) if p <= 0.05 / len(p_values))


def test_of_many_rows_without_a_difference_hardly_any_is_shown() -> None:
    """Twenty tables of fifty: without the correction about fifty of these thousand would be."""
    rng = random.Random(8)
    assert sum(any(shown([rng.random() for _ in range(50)])) for _ in range(20)) <= 3
