"""The scheduler's policy, on simulated processors: fairness, caps, reserves, the tree; nobody starves, nothing idles.

The bound that comes back everywhere: whoever is furthest behind runs next, so nobody is ever further behind than
the harmonic number of slices (it is the game of the fullest cup), nor further ahead than one slice. A host that takes
processors away, and CPU times that come late, add what is in flight: two slices, generously.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.hypervisor.scheduling import CATCH_UP_NS, IDLE_SLICE_NS, SLICE_NS, Policy
from runtime.hypervisor.scheduling_account import Member, Sample
from tests.runtime.scheduling_world import (
    WEIGHTS,
    asleep,
    behind_max_ns,
    busy,
    member,
    part_of_the_time,
    percent,
    shares_of,
    trees,
    world,
)

_FEW = settings(max_examples=8, deadline=None)


# -- fairness


@_FEW
@given(st.lists(WEIGHTS, min_size=1, max_size=6), st.integers(0, 99), st.sampled_from([0, 4]))
def test_everybody_gets_of_what_is_delivered_what_its_weight_says(
    weights: list[int], seed: int, lateness_ms: int
) -> None:
    one = world(
        *(member(id, weight) for id, weight in enumerate(weights)), seed=seed, lateness_ms=lateness_ms
    )
    one.run(200)  # until everybody is known to be busy
    for _ in range(3):  # and at any moment afterwards, not only in the end
        used = one.run(400)
        for id, weight in enumerate(weights):
            due = sum(used.values()) * weight / sum(weights)
            assert abs(used[id] - due) <= 2 * behind_max_ns(len(weights)), (weights, used)


@_FEW
@given(st.lists(WEIGHTS, min_size=2, max_size=6), st.integers(0, 99))
def test_nobody_starves(weights: list[int], seed: int) -> None:
    """Longest time without any progress: what it may be behind, at the rate that is its due."""
    one = world(*(member(id, weight) for id, weight in enumerate(weights)), seed=seed)
    one.run(3000)
    for id, weight in enumerate(weights):
        longest = since = 0
        for ms, used in enumerate(one.history):
            if ms and used[id] > one.history[ms - 1][id]:
                since = ms
            longest = max(longest, ms - since)
        rate = weight / sum(weights) / 2  # the host leaves more than a half
        assert longest <= behind_max_ns(len(weights)) / 1e6 / rate


@_FEW
@given(st.lists(WEIGHTS, min_size=2, max_size=5), st.data())
def test_a_changed_weight_counts_from_that_moment_on(weights: list[int], data: st.DataObject) -> None:
    one = world(*(member(id, weight) for id, weight in enumerate(weights)))
    one.run(500)
    changed = [data.draw(WEIGHTS) for _ in weights]
    for id, weight in enumerate(changed):
        one.change(member(id, weight))
    used = one.run(600)
    for id, weight in enumerate(changed):
        due = sum(used.values()) * weight / sum(changed)
        assert abs(used[id] - due) <= 2 * behind_max_ns(len(weights))


@_FEW
@given(st.integers(2, 4), st.integers(2, 6))
def test_on_several_processors_equals_get_equal_parts_though_they_do_not_fit_evenly(
    processors: int, partitions: int
) -> None:
    every = range(processors)
    one = world(*(member(id, on=every) for id in range(partitions)), processors=processors)
    one.run(200)
    used = one.run(2000)
    each_due = min(processors / partitions, 1) * 2_000_000_000
    assert all(abs(ns - each_due) <= 2 * behind_max_ns(partitions) for ns in used.values()), used


def test_a_weight_that_no_single_processor_can_honour_takes_nothing_from_others_later() -> None:
    every = (0, 1)
    one = world(member(0, 900, on=every), member(1, on=every), member(2, on=every), processors=2)
    one.run(200)
    used = one.run(2000)
    assert abs(used[0] - 2_000_000_000) <= 2 * SLICE_NS  # all of one processor, and no more
    assert abs(used[1] - used[2]) <= 2 * behind_max_ns(3)


def test_a_partition_of_two_vps_has_two_processors_worth_of_weight_at_most() -> None:
    """Its second thread must not crowd out the one whose turn it is."""
    every = (0, 1)
    one = world(member(0, on=every, vps=2), member(1, on=every), processors=2)
    one.run(200)
    used = one.run(2000)
    assert abs(used[0] - used[1]) <= 4 * behind_max_ns(2)
    assert one.idle_ns == 0


# -- caps and reserves


@_FEW
@given(
    st.integers(2, 90),
    st.integers(0, 99),
    st.lists(WEIGHTS, max_size=2),
    st.sampled_from([0, 4]),
    st.booleans(),
)
def test_no_window_of_time_sees_more_than_the_cap(
    cap: int, seed: int, others: list[int], lateness_ms: int, sleeps: bool
) -> None:
    """In any time t: cap * (t + what it may catch up with), and what was under way when it was used up."""
    members = [member(0, cap=cap), *(member(id, weight) for id, weight in enumerate(others, 1))]
    one = world(*members, seed=seed, lateness_ms=lateness_ms)
    one.work = {**one.work, 0: part_of_the_time(200, 300) if sleeps else busy}
    one.run(3000)
    under_way_ns = 2 * SLICE_NS + IDLE_SLICE_NS
    for length_ms in (10, 100, 500, 1000, 2500):
        allowed = cap / 100 * (length_ms * 1_000_000 + CATCH_UP_NS) + under_way_ns
        for start in range(0, len(one.history) - length_ms, 7):
            used = one.history[start + length_ms][0] - one.history[start][0]
            assert used <= allowed * 1.001


@_FEW
@given(st.integers(5, 95), st.sampled_from([0, 4]))
def test_a_cap_is_reached_where_nothing_else_is_in_the_way(cap: int, lateness_ms: int) -> None:
    one = world(member(0, cap=cap), lateness_ms=lateness_ms)
    one.run(500)
    used = one.run(4000)[0]
    assert abs(used - 4_000_000_000 * percent(cap) / 0x10000) <= 3 * SLICE_NS


def test_a_cap_of_nothing_is_nothing() -> None:
    one = world(member(0, cap=0), member(1))
    one.run(1000)
    assert one.used_ns[0] <= IDLE_SLICE_NS


@_FEW
@given(st.integers(5, 60), st.lists(st.integers(100, 10_000), min_size=1, max_size=4), st.integers(0, 99))
def test_a_reserve_is_met_whatever_the_others_weigh(reserve: int, others: list[int], seed: int) -> None:
    """Also where the host takes a part away, as long as what it leaves is enough."""
    members = [member(0, 1, reserve=reserve), *(member(id, weight) for id, weight in enumerate(others, 1))]
    one = world(*members, seed=seed)
    one.run(200)
    used = one.run(3000)
    assert used[0] >= 3_000_000_000 * reserve / 100 - CATCH_UP_NS - 2 * behind_max_ns(len(members))


# -- nothing is wasted


@_FEW
@given(st.lists(WEIGHTS, min_size=1, max_size=6), st.integers(1, 3), st.data())
def test_no_processor_idles_while_somebody_who_may_use_it_is_held(
    weights: list[int], processors: int, data: st.DataObject
) -> None:
    subsets = st.sets(st.integers(0, processors - 1), min_size=1)
    one = world(
        *(member(id, weight, on=data.draw(subsets)) for id, weight in enumerate(weights)),
        processors=processors,
    )
    one.run(1000)
    assert one.idle_ns == 0


def test_who_sleeps_is_never_held_and_costs_nobody_anything() -> None:
    one = world(member(0, 1000), member(1), member(2))
    one.work = {0: asleep, 1: busy, 2: busy}
    one.run(1000)
    assert one.idle_ns == 0
    assert all(0 not in decision.held for decision in one.decisions)
    assert abs(one.used_ns[1] - one.used_ns[2]) <= 2 * behind_max_ns(2)


def test_who_sleeps_most_of_the_time_within_its_share_is_let_when_it_wakes() -> None:
    one = world(member(0), member(1), member(2))
    one.work = {0: part_of_the_time(1, 19), 1: busy, 2: busy}  # 5%, where a third would be its due
    one.run(200)
    before = len(one.decisions)
    one.run(2000)
    held = sum(0 in decision.held for decision in one.decisions[before:])
    assert held <= len(one.decisions[before:]) / 20
    assert one.idle_ns <= 2_200_000_000 / 20


def test_a_burner_that_falls_asleep_makes_room_within_a_few_slices() -> None:
    one = world(member(0), member(1))
    one.run(500)
    one.work = {0: asleep, 1: busy}
    used = one.run(500)
    assert used[1] >= 500_000_000 - 4 * SLICE_NS


def test_who_slept_has_saved_up_nothing() -> None:
    one = world(member(0), member(1))
    one.work = {0: asleep, 1: busy}
    one.run(2000)
    one.work = {0: busy, 1: busy}
    used = one.run(300)
    assert used[1] >= 150_000_000 - 2 * behind_max_ns(2)


# -- the tree


def parts_of(members: list[Member]) -> dict[int, float]:
    """What each one's own work should have of the whole, by the definition."""
    parts: dict[int, float] = {}

    def share_out(parent: int | None, part: float) -> None:
        children = [each for each in members if each.parent == parent]
        owner = next((each for each in members if each.id == parent), None)
        own = owner.shares.weight if owner is not None and owner.has_work else 0
        total = own + sum(each.shares.weight for each in children)
        if owner is not None and own:
            parts[owner.id] = part * own / total
        for each in children:
            share_out(each.id, part * each.shares.weight / total)

    share_out(None, 1.0)
    return parts


@_FEW
@given(trees(), st.integers(0, 99))
def test_a_childs_part_comes_out_of_its_parents(members: list[Member], seed: int) -> None:
    one = world(*members, seed=seed)
    one.run(300)
    used = one.run(1500)
    for id, part in parts_of(members).items():
        assert abs(used[id] - part * sum(used.values())) <= 2 * behind_max_ns(len(members)), (members, used)


def test_a_parents_cap_is_for_all_below_it_together() -> None:
    one = world(member(0, cap=30), member(1, parent=0), member(2, parent=1), member(3))
    one.run(300)
    used = one.run(3000)
    assert abs(used[0] + used[1] + used[2] - 900_000_000) <= 3 * SLICE_NS


def test_a_childs_reserve_is_no_claim_on_anybody_but_its_parent() -> None:
    one = world(member(0, 100), member(1, 1, parent=0, reserve=80), member(2, 300))
    one.run(300)
    used = shares_of(one.run(2000))
    assert abs(used[0] + used[1] - 25) < 2
    assert used[1] > 20  # of its parent's quarter nearly everything


# -- the machine


@given(trees(), st.integers(0, 99))
@_FEW
def test_the_same_members_and_samples_lead_to_the_same_decisions(members: list[Member], seed: int) -> None:
    one, other = world(*members, seed=seed), world(*reversed(members), seed=seed)
    one.run(300)
    other.run(300)
    assert one.decisions == other.decisions


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10**9), st.integers(0, 10**9)), max_size=40))
@_FEW
def test_no_sample_however_odd_breaks_it(samples: list[tuple[int, int, int]]) -> None:
    """Times that jump, partitions that come and go."""

    policy = Policy([0, 1])
    for place, (id, used, waited) in enumerate(samples):
        policy.set_members([member(each, cap=50 + each, reserve=each) for each in range(id + place % 2)])
        decision = policy.step(used + 1, {id: Sample(used, waited)})
        assert decision.next_ns > 0
        assert decision.held <= policy.accounts.keys()
