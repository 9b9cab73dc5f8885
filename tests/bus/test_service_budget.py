"""What a server spends on a client with a cap: as much as that, and never much more; what is asked beyond it waits."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.native import RingClosed, ServiceBudget
from tests.bus.ring_pair import ring_pair
from tests.patience import WAIT_S, until

BURST_NS = 25_000_000  # bus/native/service_budget.h, SERVICE_BURST_NS
DEBT_NS_MAX = 10_000_000_000  # the same, SERVICE_DEBT_NS_MAX: more than one turn of these makes
ONE = 65_536
START_NS = 10**12
turns = st.lists(st.tuples(st.integers(0, 50_000_000), st.integers(0, 5_000_000)), max_size=80)


@settings(max_examples=60, deadline=None)
@given(share=st.integers(ONE // 100, ONE), turns=turns)
def test_who_rests_as_it_is_told_never_has_more_than_its_share_and_one_turn(
    share: int, turns: list[tuple[int, int]]
) -> None:
    """Any turns, each after a pause of its own: in every stretch that ends with a turn."""
    budget, now_ns = ServiceBudget(), START_NS
    budget.limit(share, now_ns)
    begun: list[tuple[int, int]] = []  # when, and how much there had been by then
    served_ns = 0
    for pause_ns, turn_ns in turns:
        now_ns += pause_ns
        begun.append((now_ns, served_ns))
        served_ns += turn_ns
        debt_ns = budget.charge(turn_ns, now_ns)
        assert debt_ns == budget.debt_ns(now_ns) < DEBT_NS_MAX
        for since_ns, before_ns in begun:
            allowed_ns = (now_ns + debt_ns - since_ns + BURST_NS) * share / ONE
            assert served_ns - before_ns <= allowed_ns + len(begun)  # each turn is rounded
        now_ns += debt_ns


@settings(max_examples=30, deadline=None)
@given(share=st.integers(ONE // 100, ONE), turn_ns=st.integers(10_000, 2_000_000))
def test_who_never_stops_asking_gets_its_whole_share(share: int, turn_ns: int) -> None:
    budget, now_ns = ServiceBudget(), START_NS
    budget.limit(share, now_ns)
    for _ in range(200):
        now_ns += turn_ns  # the turn itself takes time, too
        now_ns += budget.charge(turn_ns, now_ns)
    assert 200 * turn_ns >= (now_ns - START_NS) * share / ONE - turn_ns


def test_without_a_limit_nobody_owes_anything() -> None:
    budget = ServiceBudget()
    assert budget.charge(10**12, START_NS) == 0 == budget.debt_ns(START_NS)
    budget.limit(ONE // 2, START_NS)
    assert budget.debt_ns(START_NS) == 0  # what was spent before is nobody's debt
    assert budget.statistics()["served_ns"] == 10**12


def test_another_share_makes_a_debt_as_long_as_it_would_have_been() -> None:
    budget = ServiceBudget()
    budget.limit(ONE // 10, START_NS)
    before_ns = budget.charge(100_000_000, START_NS)
    budget.limit(ONE // 5, START_NS)
    assert budget.debt_ns(START_NS) == pytest.approx(before_ns / 2, rel=1e-3)
    budget.limit(0, START_NS)
    assert budget.debt_ns(START_NS) == 0


def _burn(cpu_ns: int) -> None:
    ends_ns = time.thread_time_ns() + cpu_ns
    while time.thread_time_ns() < ends_ns:
        pass


def test_a_channel_in_debt_rests_and_loses_nothing_and_others_do_not_wait_for_it() -> None:
    """Its server pays by processor time; the packets stay where they are meanwhile."""
    with ring_pair(pages=4) as pair:
        budget = ServiceBudget(ONE // 20)
        pair.host.charge_to(budget)
        sent, seen, begun_ns = 0, list[int](), time.monotonic_ns()
        # A host that is busy elsewhere for as long as a debt lasts leaves nothing of it to rest for.
        while sent < 20 or not budget.statistics()["rests"]:
            for _ in range(5):
                pair.guest.send(bytes(8), sent)
                sent += 1
            seen += [packet[2] for packet in pair.host.receive_batch(5, -1)]
            pair.host.release()
            _burn(2_000_000)
        elapsed_ns = time.monotonic_ns() - begun_ns
        assert seen == list(range(sent))
        # All turns but the last were paid for, at a twentieth: but for the burst, they took as long as that.
        assert elapsed_ns >= (sent // 5 - 1) * 2_000_000 * 20 - BURST_NS


def test_a_channel_that_rests_can_be_closed_at_once() -> None:
    with ring_pair(pages=4) as pair:
        budget = ServiceBudget(1)  # a burst of nothing, and then for ever
        pair.host.charge_to(budget)
        pair.guest.send(bytes(8), 1)
        ended = threading.Event()

        def serve() -> None:
            pair.host.receive_batch(1, -1)
            pair.host.release()
            _burn(1_000_000)
            with pytest.raises(RingClosed):
                pair.host.receive_batch(1, -1)
            ended.set()

        thread = threading.Thread(target=serve)
        thread.start()
        until(lambda: pair.host.is_resting)
        pair.host.close()
        thread.join(WAIT_S)
        assert ended.is_set()
        assert not pair.host.is_resting


def test_only_a_budget_can_be_charged() -> None:
    with ring_pair(pages=1) as pair:
        with pytest.raises(TypeError, match="ServiceBudget"):
            pair.host.charge_to(3)  # type: ignore[arg-type]
        pair.host.close()
        with pytest.raises(RingClosed):
            pair.host.charge_to(ServiceBudget())
