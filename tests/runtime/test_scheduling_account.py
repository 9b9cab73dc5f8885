"""The scheduler's books: what is due is what was delivered; what could not be had is made up for."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.hypervisor import heartbeat
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.scheduling import SLICE_NS
from runtime.hypervisor.scheduling_account import Account, Member, Sample
from runtime.hypervisor.scheduling_placement import Placement
from tests.runtime.scheduling_world import asleep, busy, member, part_of_the_time, trees, world

_FEW = settings(max_examples=8, deadline=None)


@_FEW
@given(trees(), st.integers(0, 99), st.data())
def test_what_is_due_is_what_was_delivered_and_lags_cancel_out(
    members: list[Member], seed: int, data: st.DataObject
) -> None:
    """Also when partitions fall asleep or wake; who sleeps has nothing to come."""
    one = world(*members, seed=seed)
    for _ in range(4):
        one.run(200)
        one.work = {each.id: data.draw(st.sampled_from([busy, asleep])) for each in members}
        accounts = one.policy.accounts.values()
        awake = [each for each in accounts if each.member.has_work and not each.is_idle]
        assert abs(sum(each.lag_ns for each in awake)) < 1000
        assert all(each.lag_ns <= 0 for each in accounts if each.is_idle)
        assert abs(sum(each.due_ns for each in accounts) - sum(each.used_ns for each in accounts)) < 1e6


def test_what_is_due_also_adds_up_where_a_cap_leaves_time_that_nobody_else_wants() -> None:
    one = world(member(0, cap=20), member(1, cap=30))
    one.run(2000)
    for each in one.policy.accounts.values():
        assert abs(each.due_ns - each.used_ns) <= 4 * SLICE_NS


def test_a_reserve_that_the_host_interrupts_is_made_up_for() -> None:
    """It takes the processor away for 30 ms of 60. Half is left, and 40% was promised."""
    one = world(member(0, 1, reserve=40), member(1, 10_000))
    one.host_takes = lambda processor, ms: float(ms % 60 < 30)
    one.run(300)
    assert one.run(3000)[0] >= 0.36 * 3_000_000_000


def test_whoever_can_go_elsewhere_makes_room_for_who_cannot() -> None:
    """Also where two have to move for a third."""
    placement = Placement([0, 1, 2], SLICE_NS)
    for id, processors in enumerate([(0, 1), (1, 2), (0,)]):
        account = Account(member(id, on=processors))
        account.adopt(account.member)
        account.watch(Sample(SLICE_NS, 0), SLICE_NS, SLICE_NS)
        assert placement.place(account)
    assert placement.result() == {0: (2,), 1: (0,), 2: (1,)}


def test_a_cap_is_reached_on_a_host_that_interrupts() -> None:
    """It takes the processor away for 20 ms of 60; the other one's weight leaves enough for the cap."""
    one = world(member(0, 400, cap=20), member(1, 300))
    one.host_takes = lambda processor, ms: float(ms % 60 < 20)
    one.run(300)
    assert abs(one.run(3000)[0] - 600_000_000) <= 3 * SLICE_NS


def test_two_who_hardly_sleep_do_not_run_side_by_side_against_their_weights() -> None:
    """1:4 is not to be had, as both sleep at the same time; but neither is it 1:1."""
    one = world(member(0, 100), member(1, 400))
    one.work = dict.fromkeys((0, 1), part_of_the_time(7, 3))
    one.run(300)
    used = one.run(3000)
    assert used[1] > 1.4 * used[0]


def test_a_promise_moves_by_the_time_in_which_it_could_not_be_kept() -> None:
    guest = Partition(2, 1, 1, 0)
    guest.heartbeat_due_ns = 20
    heartbeat.hold(guest, 10)
    heartbeat.let(guest, 200)
    assert (guest.heartbeat_due_ns, guest.held_since_ns) == (210, None)
