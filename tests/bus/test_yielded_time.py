"""Who serves a partition with a cap gives way to what it has elsewhere, and never altogether."""

from hypothesis import given, settings
from hypothesis import strategies as st

from bus.native import ServiceBudget
from bus.yielded_time import QUIET_INTERVAL_MS, USE_INTERVAL_MS, WHOLE_SHARE, YIELDED_PERCENT, yield_to

MS = 1_000_000
looks = st.lists(st.tuples(st.integers(-(10**9), 10**9), st.integers(0, 10**9)), max_size=40)


def charged_ns(budget: ServiceBudget) -> int:
    return int(budget.statistics()["served_ns"])


@settings(max_examples=60, deadline=None)
@given(share=st.integers(WHOLE_SHARE // 100, 2 * WHOLE_SHARE), looks=looks)
def test_whatever_it_has_elsewhere_a_part_of_its_share_is_left(
    share: int, looks: list[tuple[int, int]]
) -> None:
    """Also if what is told is nonsense."""
    budget, elapsed_ns, yielded_ns = ServiceBudget(share), 0, 0
    for used_ns, since_ns in looks:
        elapsed_ns += since_ns
        yielded = yield_to(budget, used_ns, since_ns)
        assert 0 <= yielded <= max(used_ns, 0)
        yielded_ns += yielded
    assert charged_ns(budget) == yielded_ns
    assert yielded_ns <= share * elapsed_ns / WHOLE_SHARE * YIELDED_PERCENT / 100


def test_what_it_has_elsewhere_is_taken_off_to_the_nanosecond_while_it_is_less_than_that() -> None:
    budget = ServiceBudget(WHOLE_SHARE // 10)
    assert yield_to(budget, 1_234_567, USE_INTERVAL_MS * MS) == 1_234_567
    assert charged_ns(budget) == 1_234_567


def test_one_without_a_cap_gives_nothing_up_and_an_old_figure_is_no_debt_for_seconds() -> None:
    free, capped = ServiceBudget(), ServiceBudget(WHOLE_SHARE // 10)
    assert yield_to(free, 10**9, 10**9) == 0
    assert yield_to(capped, 10**12, 10**12) <= QUIET_INTERVAL_MS * MS // 10
