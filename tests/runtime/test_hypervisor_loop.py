"""The broker's loop: timers that go off once, in order, and alarms of which a key has at most one."""

import os
import time

from runtime.hypervisor.loop import TIMERS_REPLACED_MAX, Loop


def _run(loop: Loop, until_ms: int) -> None:
    deadline_ns = time.monotonic_ns() + until_ms * 1_000_000
    while time.monotonic_ns() < deadline_ns:
        loop.run_once(1)


def test_timers_go_off_once_each_in_the_order_of_their_time() -> None:
    loop, seen = Loop(), list[int]()
    for number in (3, 1, 2, 0):
        loop.after(5 * number, lambda number=number: seen.append(number))  # type: ignore[misc]
    while len(seen) < 4:
        loop.run_once(1)
    _run(loop, 10)
    assert seen == [0, 1, 2, 3]


def test_of_all_alarms_of_a_key_the_last_one_alone_goes_off() -> None:
    loop, seen = Loop(), list[str]()
    loop.alarm(1, 0, lambda: seen.append("replaced"))
    loop.alarm(1, 20, lambda: seen.append("replaced, and later"))
    loop.alarm(1, 5, lambda: seen.append("last"))
    loop.alarm(2, 5, lambda: seen.append("another key"))
    _run(loop, 30)
    assert sorted(seen) == ["another key", "last"]


def test_an_alarm_may_set_itself_again() -> None:
    loop, seen = Loop(), list[int]()

    def again() -> None:
        seen.append(len(seen))
        if len(seen) < 3:
            loop.alarm(7, 0, again)

    loop.alarm(7, 0, again)
    while len(seen) < 3:
        loop.run_once(1)
    _run(loop, 5)
    assert seen == [0, 1, 2]


def test_somebody_who_changes_his_mind_for_ever_fills_no_memory() -> None:
    """An hour ahead each time, so that none comes meanwhile."""
    loop = Loop()
    for _ in range(20 * TIMERS_REPLACED_MAX):
        loop.alarm(1, 3_600_000, lambda: None)
        assert len(loop._timers) <= TIMERS_REPLACED_MAX + 1


def test_a_timer_goes_off_by_itself_and_never_early() -> None:
    """Nobody looks in between: the loop sleeps until its timerfd wakes it, once. Not whole milliseconds: a timeout in
    milliseconds, rounded down, would wake it before there is anything to do, and so more than once."""
    loop, late_ns = Loop(), list[int]()
    for delay_ns in (300_000, 1_700_000, 2_300_000):
        when_ns = time.monotonic_ns() + delay_ns
        loop.alarm_at("key", when_ns, lambda when_ns=when_ns: late_ns.append(time.monotonic_ns() - when_ns))  # type: ignore[misc]
        count = len(late_ns)
        turns = loop.turns
        while len(late_ns) == count:
            loop.run_once()
        assert late_ns[-1] >= 0
        assert loop.turns == turns + 1


def test_an_alarm_that_was_cancelled_does_not_go_off() -> None:
    loop, seen = Loop(), list[str]()
    loop.alarm("a", 1, lambda: seen.append("a"))
    loop.alarm("b", 2, lambda: seen.append("b"))
    loop.cancel("a")
    loop.cancel("never set")
    _run(loop, 10)
    assert seen == ["b"]


def test_a_timer_that_sets_timers_for_now_does_not_keep_descriptors_waiting() -> None:
    loop, seen = Loop(), list[str]()
    bell = os.eventfd(1)

    def again() -> None:
        seen.append("timer")
        loop.after(0, again)

    loop.after(0, again)
    loop.watch(bell, lambda events: seen.append("descriptor"))
    for _ in range(5):
        loop.run_once(0)
    loop.drop(bell)
    os.close(bell)
    assert seen.count("descriptor") == 5
