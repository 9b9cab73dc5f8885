"""The verdict on the claim: on figures that were made up, so that it is known what must come out."""

import math
import random

import pytest

from runtime.measure.bench_claim import CLAIM, makeups, verdict_text
from runtime.measure.claim_decision import (
    ORDER_OF_MAGNITUDE,
    Answer,
    Cell,
    Key,
    Overall,
    Peers,
    compare,
    makeup,
    overall,
)
from runtime.measure.claim_ways import GUEST_WAYS, LINK, LINK_BY_HYPERVISOR, PAYLOADS, SIGNAL_BYTES, SWITCH
from runtime.measure.paired_ratio import CONFIDENCE, ROUNDS_MIN, difference_of, median_of, ratio_of

IPC = "ipc"


def rounds(rng: random.Random, median: float, count: int = 12, noise: float = 0.05) -> list[float]:
    return [median * math.exp(rng.gauss(0, noise)) for _ in range(count)]


def cells(factors: list[float], *, noise: float = 0.05, count: int = 12, seed: int = 1) -> list[Cell]:
    """One way between guests, at one payload each, that is so many times slower."""
    rng = random.Random(seed)
    figures = {}
    for index, factor in enumerate(factors):
        figures[Key(LINK, Peers.RUNNING, 64 + index)] = rounds(rng, 1000 * factor, count, noise)
        figures[Key(IPC, Peers.RUNNING, 64 + index)] = rounds(rng, 1000, count, noise)
    return compare(figures, [LINK], [IPC])


@pytest.mark.parametrize(
    ("factors", "wanted"),
    [
        ([50, 200, 1000], Overall.TRUE),
        ([0.5, 1.2, 6], Overall.FALSE),
        ([1.2, 400], Overall.DEPENDS),
    ],
)
def test_the_verdict_is_what_the_figures_were_made_to_say(factors: list[float], wanted: Overall) -> None:
    for seed in range(10):
        assert overall(cells(factors, seed=seed, noise=0.2)) is wanted


@pytest.mark.parametrize("beside", [[], [500.0], [2.0]])
def test_an_interval_around_ten_decides_nothing(beside: list[float]) -> None:
    figures = {
        Key(LINK, Peers.RUNNING, 64): [600.0, 1300.0] * 6,
        Key(IPC, Peers.RUNNING, 64): [100.0] * 12,
    }
    found = [*compare(figures, [LINK], [IPC]), *(cell for factor in beside for cell in cells([factor]))]
    assert found[0].answer is Answer.UNDECIDED
    assert overall(found) is Overall.UNDECIDED


def test_too_few_rounds_decide_nothing() -> None:
    for count in range(1, ROUNDS_MIN):
        (cell,) = cells([1000], count=count)
        assert cell.answer is Answer.UNDECIDED
        assert math.isinf(cell.factor.high)
    with pytest.raises(ValueError, match="no cells"):
        overall([])
    with pytest.raises(ValueError, match="no values"):
        median_of([])


def test_a_factor_is_that_of_each_rounds_own_two_figures() -> None:
    """A machine that slows down by and by does not change it."""
    slower = [1.5**number for number in range(12)]
    figures = {
        Key(LINK, Peers.RUNNING, 64): [300 * each for each in slower],
        Key(IPC, Peers.RUNNING, 64): [100 * each for each in slower],
    }
    (cell,) = compare(figures, [LINK], [IPC])
    assert (cell.factor.low, cell.factor.value, cell.factor.high) == pytest.approx((3, 3, 3))


def test_only_like_is_compared_with_like() -> None:
    values = [1.0] * 12
    figures = {
        Key(LINK, Peers.RUNNING, 64): values,
        Key(IPC, Peers.RUNNING, 4096): values,
        Key(IPC, Peers.WOKEN_TWO_CPUS, 64): values,
    }
    assert compare(figures, [LINK], [IPC]) == []
    assert len(compare({**figures, Key(IPC, Peers.RUNNING, 64): values}, [LINK], [IPC])) == 1


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = random.Random(7)
    held = sum(
        ratio_of(rounds(rng, 700, noise=0.3), rounds(rng, 100, noise=0.3)).contains(7) for _ in range(60)
    )
    assert held >= 0.85 * 60
    narrow, wide = (
        ratio_of(rounds(rng, 700, noise=each), rounds(rng, 100, noise=each)) for each in (0.01, 0.5)
    )
    assert wide.high - wide.low > narrow.high - narrow.low
    assert difference_of([5.0] * 9, [3.0] * 9).value == 2


def made_up(data_ns: float, wake_ns: float, hop_ns: float) -> dict[Key, list[float]]:
    """Round trips between guests that are made of just these, and a little software."""
    rng, figures = random.Random(3), {}
    for size in (SIGNAL_BYTES, *PAYLOADS):
        bare = 800 + (data_ns if size != SIGNAL_BYTES else 0)
        figures[Key(LINK, Peers.RUNNING, size)] = rounds(rng, bare, noise=0.01)
        for way, hop in ((LINK, 0.0), (LINK_BY_HYPERVISOR, hop_ns), (SWITCH, hop_ns)):
            figures[Key(way, Peers.WOKEN_TWO_CPUS, size)] = rounds(rng, bare + wake_ns + hop, noise=0.01)
    return figures


@pytest.mark.parametrize(
    ("data_ns", "wake_ns", "hop_ns", "wanted"),
    [
        (50_000, 3_000, 1_000, "data"),
        (300, 40_000, 10_000, "signalling"),
        (300, 3_000, 90_000, "the hop"),
        (10, 20, 30, "software"),
    ],
)
def test_what_dominates_is_found(data_ns: float, wake_ns: float, hop_ns: float, wanted: str) -> None:
    figures = made_up(data_ns, wake_ns, hop_ns)
    made = makeup(figures, Key(SWITCH, Peers.WOKEN_TWO_CPUS, 4096), LINK, LINK, SIGNAL_BYTES)
    assert made.largest[0].name.startswith(wanted)
    assert sum(part.ns.value for part in made.parts) == pytest.approx(made.total_ns, rel=0.05)


def test_the_text_says_the_verdict_the_factors_and_what_dominates() -> None:
    figures = made_up(300, 40_000, 10_000)
    figures |= {
        Key(IPC, key.peers, key.payload_bytes): [100.0] * 12 for key in list(figures) if key.way == LINK
    }
    found = compare(figures, GUEST_WAYS, [IPC])
    text = "\n".join(verdict_text(found, makeups(figures)))
    assert CLAIM in text
    assert f"all {len(found)} comparisons reach {ORDER_OF_MAGNITUDE:g} times" in text or "IT DEPENDS" in text
    assert "signalling: waking the peers" in text
    assert all(way in text for way in GUEST_WAYS)


@pytest.mark.parametrize("wanted", Overall)
def test_a_verdict_counts_what_stands_in_the_table(wanted: Overall) -> None:
    factors = {
        Overall.TRUE: [20.0, 30.0],
        Overall.FALSE: [1.0, 2.0],
        Overall.DEPENDS: [1.0, 30.0],
        Overall.UNDECIDED: [10.0, 1.0],
    }[wanted]
    found = cells(factors)
    text = "\n".join(verdict_text(found, []))
    yes, no = (sum(cell.answer is answer for cell in found) for answer in (Answer.YES, Answer.NO))
    says = {
        Overall.TRUE: "TRUE on this machine, of what it can compare: all 2 comparisons reach",
        Overall.FALSE: "FALSE on this machine, of what it can compare: none of 2 comparisons reaches",
        Overall.DEPENDS: f"IT DEPENDS on this machine, of what it can compare: {yes} of 2 comparisons reach",
        Overall.UNDECIDED: f"the intervals of {2 - yes - no} of 2 comparisons include",
    }
    assert overall(found) is wanted
    assert says[wanted] in text
    assert "not measured: through the root's switch, running" in text  # a table without it says so


def test_an_interval_is_as_wide_as_the_chance_asks_for() -> None:
    """Of n values, each below the median with one half: the chance that the median is outside, counted."""
    for count in range(ROUNDS_MIN, 40):
        values = [float(number) for number in range(count)]
        found = median_of(values)
        for left_out, fits in ((int(found.low), True), (int(found.low) + 1, False)):
            outside = 2 * sum(math.comb(count, below) for below in range(left_out + 1)) / 2**count
            assert (outside <= 1 - CONFIDENCE) == fits
        assert found.high == count - 1 - found.low
