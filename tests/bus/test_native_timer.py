"""The core's timer: readable from its moment on, never before, and taken once."""

import select

import pytest

from bus.native import Timer, monotonic_ns


def _is_readable(timer: Timer, timeout_ms: int = 0) -> bool:
    with select.epoll() as epoll:
        epoll.register(timer, select.EPOLLIN)
        return bool(epoll.poll(timeout_ms / 1000))


@pytest.mark.parametrize("delay_ns", [0, 1, 70_000, 1_300_000, 4_999_999])
def test_a_timer_is_readable_at_its_moment_and_not_before(delay_ns: int) -> None:
    timer = Timer()
    when_ns = monotonic_ns() + delay_ns
    timer.arm(when_ns)
    assert _is_readable(timer, 60_000)
    assert monotonic_ns() >= when_ns
    assert timer.take()
    assert not timer.take()
    assert not _is_readable(timer)
    timer.close()


def test_a_moment_that_is_past_comes_at_once_even_the_first_of_all() -> None:
    timer = Timer()
    for when_ns in (0, 1, monotonic_ns() - 1):
        timer.arm(when_ns)
        assert timer.take()


def test_the_last_moment_that_was_named_counts() -> None:
    timer = Timer()
    timer.arm(0)
    timer.arm(2**63 - 1)
    assert not timer.take()
    timer.arm(0)
    timer.disarm()
    assert not timer.take()
    timer.disarm()


def test_impossible_moments_and_closed_timers_are_refused() -> None:
    timer = Timer()
    with pytest.raises((OverflowError, ValueError)):
        timer.arm(-1)
    with pytest.raises((OverflowError, ValueError)):
        timer.arm(2**64)
    timer.arm(2**64 - 1)
    assert not timer.take()
    timer.close()
    timer.close()
    for use in (timer.take, timer.disarm, timer.fileno, lambda: timer.arm(1)):
        with pytest.raises(ValueError, match="closed"):
            use()
