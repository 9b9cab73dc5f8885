"""A thread that pays for its client: never more than the client's share, and it ends at once when it is told to."""

import threading
import time

from bus.native import ServiceBudget
from partitions.stack.paying_thread import REST_NS_MAX, PayingThread

ONE = 65_536  # a whole processor
BURST_NS = 25_000_000  # bus/native/service_budget.h, SERVICE_BURST_NS
TURN_NS = 1_000_000
JOIN_S = 30.0


def turn() -> None:
    ends_ns = time.thread_time_ns() + TURN_NS
    while time.thread_time_ns() < ends_ns:
        pass


def test_it_has_no_more_than_its_clients_share() -> None:
    budget, turns = ServiceBudget(ONE // 5), 20
    paying = PayingThread(budget, threading.Event().wait)
    paying.pace()  # from here on
    begun_ns = time.monotonic_ns()
    for _ in range(turns):
        turn()
        paying.pace()
    assert budget.statistics()["served_ns"] >= turns * TURN_NS
    assert time.monotonic_ns() - begun_ns >= 5 * turns * TURN_NS - BURST_NS


def test_in_debt_it_rests_until_there_is_none() -> None:
    budget, rests = ServiceBudget(ONE // 5), list[float]()

    def rest(seconds: float) -> bool:
        rests.append(seconds)
        if len(rests) == 3:
            budget.limit(0)
        return False

    budget.charge(10**9 * 100)
    PayingThread(budget, rest).pace()
    assert rests == [REST_NS_MAX / 1e9] * 3


def test_without_a_cap_nothing_is_counted_and_nothing_of_it_is_a_debt_later() -> None:
    budget = ServiceBudget()
    paying = PayingThread(budget, threading.Event().wait)
    paying.pace()
    turn()
    paying.pace()
    assert budget.statistics()["served_ns"] == 0
    budget.limit(ONE // 5)
    paying.pace()
    assert budget.statistics()["served_ns"] == 0


def test_a_debt_of_seconds_keeps_nobody_from_ending_it() -> None:
    budget, ended = ServiceBudget(1), threading.Event()
    budget.charge(10**9)
    paying = PayingThread(budget, ended.wait)
    thread = threading.Thread(target=paying.pace)
    thread.start()
    ended.set()
    thread.join(JOIN_S)
    assert not thread.is_alive()
