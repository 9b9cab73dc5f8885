"""Who is served by a thread that all share: everybody in turn, and nobody beyond its cap. Without a thread."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from bus.native import ServiceBudget
from partitions.drivers.messages import SHARE_STEP, SHARES_MAX, share_steps
from partitions.emulated.paced_turns import PacedTurns
from partitions.stack.service_budgets import ServiceBudgets, share_of
from runtime.abi import WHOLE_PROCESSOR, HvStatus, HypercallCode, HypercallError, PartitionProperty

ONE = 65_536
GREEDY, MODEST = 7, 9
SPAN_NS = 10**8  # of a thread's time


def serve(budgets: dict[int, ServiceBudget], costs: dict[int, int], pause_ns: dict[int, int]) -> Counter[int]:
    """Some time of one thread. Each client asks again so long after it was answered. Time that each had."""
    turns: PacedTurns[int] = PacedTurns(budgets.get)
    now_ns, had, asks = 10**12, Counter[int](), dict.fromkeys(costs, 10**12)
    ends_ns = now_ns + SPAN_NS
    while now_ns < ends_ns:
        for client, at_ns in list(asks.items()):
            if at_ns <= now_ns:
                turns.put(client, 0)
                del asks[client]
        if (turn := turns.next(now_ns)) is not None:
            client, _ = turn
            now_ns += costs[client]
            had[client] += costs[client]
            if client in budgets:
                budgets[client].charge(costs[client], now_ns)
            asks[client] = now_ns + pause_ns[client]
        else:
            later = [at_ns - now_ns for at_ns in asks.values()]
            if (wait_ns := turns.wait_ns(now_ns)) is not None:
                later.append(wait_ns)
            now_ns += max(min(later), 1)
    return had


@settings(max_examples=20, deadline=None)
@given(
    cap=st.integers(ONE // 50, ONE // 5),
    greedy_ns=st.integers(20_000, 4_000_000),
    modest_ns=st.integers(20_000, 200_000),
)
def test_a_greedy_client_with_a_cap_leaves_the_others_all_but_its_cap(
    cap: int, greedy_ns: int, modest_ns: int
) -> None:
    budget = ServiceBudget()
    budget.limit(cap, 10**12)
    had = serve({GREEDY: budget}, {GREEDY: greedy_ns, MODEST: modest_ns}, {GREEDY: 0, MODEST: 0})
    assert had[GREEDY] <= cap / ONE * (SPAN_NS + 25_000_000) + greedy_ns
    assert had[MODEST] >= SPAN_NS - cap / ONE * (SPAN_NS + 25_000_000) - 2 * greedy_ns - modest_ns


@settings(max_examples=20, deadline=None)
@given(costs=st.lists(st.integers(20_000, 200_000), min_size=2, max_size=5))
def test_without_caps_each_has_a_turn_before_anybody_has_a_second(costs: list[int]) -> None:
    clients = dict(enumerate(costs))
    had = serve({}, clients, dict.fromkeys(clients, 0))
    taken = [had[client] // cost for client, cost in clients.items()]
    assert max(taken) - min(taken) <= 1


def test_a_client_that_is_gone_is_waited_for_no_more() -> None:
    budget = ServiceBudget(ONE // 10)
    budget.charge(10**9)
    turns: PacedTurns[str] = PacedTurns({GREEDY: budget}.get)
    turns.put(GREEDY, "one")
    assert turns.next(10**9) is None or budget.debt_ns() == 0
    turns.forget(GREEDY)
    assert turns.wait_ns(0) is None
    turns.put(MODEST, "first")
    turns.put(MODEST, "second")
    assert [turns.next(0), turns.next(0), turns.next(0)] == [(MODEST, "first"), (MODEST, "second"), None]


def test_a_stack_keeps_to_the_caps_of_its_children_as_they_change() -> None:
    caps = {2: WHOLE_PROCESSOR, 3: 6_554}

    def read(child: int, code: PartitionProperty) -> int:
        assert code is PartitionProperty.CPU_CAP
        if child not in caps:
            raise HypercallError(HypercallCode.GET_PARTITION_PROPERTY, HvStatus.INVALID_PARTITION_ID)
        return caps[child]

    budgets = ServiceBudgets(read)
    for child, vps in ((2, 1), (3, 2), (4, 1)):
        budgets.add(child, vps)
    assert [budgets.of(child).share for child in (2, 3, 4, 5)] == [0, 2 * 6_554, 0, 0]
    kept = budgets.of(2)
    caps.update({2: 655, 3: WHOLE_PROCESSOR})
    budgets.look()
    assert (kept.share, budgets.of(2), budgets.of(3).share) == (655, kept, 0)
    assert share_of(0, 1) == 1  # as slow as can be said, and not without a limit
    budgets.remove(2)
    assert budgets.of(2) is not kept


def test_what_children_have_elsewhere_is_taken_off_and_told_to_who_else_serves_them() -> None:
    caps = {2: ONE // 10, 3: ONE // 10, 4: WHOLE_PROCESSOR}
    budgets, told = ServiceBudgets(lambda child, code: caps[child]), list[tuple[int, int]]()
    for child in caps:
        budgets.add(child, 1)
    budgets.listeners[7] = lambda child, ns: told.append((child, ns))
    assert budgets.is_limited
    assert not budgets.had_elsewhere({2: 10**6, 3: 5, 4: 5, 9: 5}, 50_000_000)  # nobody knows since when
    assert budgets.had_elsewhere({2: 10**6 + 999, 3: 5, 4: 10**9, 9: 10**9}, 50_000_000)
    assert told == []  # it is not worth a message yet
    assert [budgets.of(child).statistics()["served_ns"] for child in caps] == [999, 0, 0]
    assert budgets.had_elsewhere({2: 2 * 10**6, 3: 5}, 50_000_000)
    assert told == [(2, 10**6)]
    assert not budgets.had_elsewhere({3: 5}, 50_000_000)
    caps.update(dict.fromkeys(caps, WHOLE_PROCESSOR))
    budgets.look()
    assert not budgets.is_limited


@given(share=st.integers(0, 4 * ONE))
def test_a_driver_is_told_of_no_less_than_the_share_and_hardly_more(share: int) -> None:
    steps = share_steps(share)
    assert 0 <= steps <= SHARES_MAX
    if steps:
        assert share <= steps * SHARE_STEP < share + SHARE_STEP
    else:
        assert share == 0 or share > SHARES_MAX * SHARE_STEP
