"""Dividing an amount by weight between bounds: against the definition, by a level that anybody can check."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.hypervisor.scheduling_shares import Claim, divide

_AMOUNTS = st.floats(0, 1e7)


@st.composite
def claims(draw: st.DrawFn) -> Claim:
    least = draw(st.sampled_from([0.0, 0.0, 1.0, 1e3, 1e6]))
    return Claim(draw(st.integers(1, 10_000)), least, least + draw(st.sampled_from([0.0, 1e2, 1e5, 1e7])))


@given(_AMOUNTS, st.lists(claims(), max_size=8))
def test_everything_is_given_out_that_somebody_can_use_and_nothing_twice(
    amount: float, given_claims: list[Claim]
) -> None:
    wanted = min(amount, sum(claim.most for claim in given_claims))
    assert sum(divide(amount, given_claims)) == pytest.approx(wanted, rel=1e-9, abs=1e-3)


@given(_AMOUNTS, st.lists(claims(), max_size=8))
def test_nobody_gets_more_than_it_can_use_or_less_than_it_was_promised(
    amount: float, given_claims: list[Claim]
) -> None:
    promised = sum(claim.least for claim in given_claims)
    part = min(amount / promised, 1.0) if promised else 1.0  # of a promise, where not all can be kept
    for claim, share in zip(given_claims, divide(amount, given_claims), strict=True):
        assert share <= claim.most * (1 + 1e-9) + 1e-6
        assert share >= claim.least * part * (1 - 1e-9) - 1e-3


@given(_AMOUNTS, st.lists(claims(), min_size=2, max_size=8))
def test_whoever_is_at_no_bound_gets_by_weight_and_bounds_only_help_or_hinder_from_their_side(
    amount: float, given_claims: list[Claim]
) -> None:
    if sum(claim.least for claim in given_claims) >= amount:
        return
    shares = divide(amount, given_claims)
    for one, mine in zip(given_claims, shares, strict=True):
        for other, others in zip(given_claims, shares, strict=True):
            slack = 1e-6 * amount
            if (
                mine < one.most - slack and others > other.least + slack
            ):  # then nobody may be better off per weight
                assert others / other.weight <= mine / one.weight * (1 + 1e-6) + slack


def test_among_the_unbound_it_is_plain_proportion() -> None:
    assert divide(700, [Claim(1, 0, 1e9), Claim(2, 0, 1e9), Claim(4, 0, 1e9)]) == [100, 200, 400]
