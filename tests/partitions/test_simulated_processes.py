"""Virtual time, and the processes that get their turns from it."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from partitions.simulated.clock import VirtualClock
from partitions.simulated.process import Died, Process, sleep


def _process(clock: VirtualClock, ends: list[str]) -> Process:
    return Process(clock, "p", lambda process, reason: ends.append(reason))


@given(st.lists(st.integers(0, 20), max_size=40), st.integers(0, 3))
def test_what_is_due_comes_in_order_and_no_time_passes_unseen(delays: list[int], seed: int) -> None:
    clock, came = VirtualClock(seed), list[int]()
    for delay in delays:
        clock.after(delay, lambda: came.append(clock.now_ns))
    assert not clock.run(15)
    assert came == sorted(delay for delay in delays if delay <= 15)
    assert clock.now_ns == 15
    clock.run(100)
    assert came == sorted(delays)


@given(st.integers(0, 5))
def test_ties_are_the_seeds_and_nobody_elses(seed: int) -> None:
    def order() -> list[int]:
        clock, came = VirtualClock(seed), list[int]()
        for number in range(12):
            clock.after(5, came.append, number)
        clock.run(5)
        return came

    assert order() == order()


def test_a_stopped_process_does_later_what_a_dead_one_never_does() -> None:
    clock, ends, did = VirtualClock(1), list[str](), list[int]()
    process = _process(clock, ends)
    process.after(10, did.append, 1)
    process.stop()
    clock.run(20)
    assert did == []
    process.go_on()
    clock.run(30)
    assert did == [1]
    process.after(10, did.append, 2)
    process.kill(Random(1))
    clock.run(50)
    assert did == [1]
    assert ends == ["signal SIGKILL"]


def test_a_turn_that_dies_is_the_end_and_is_told_once() -> None:
    clock, ends = VirtualClock(1), list[str]()
    process = _process(clock, ends)

    def turn() -> None:
        raise Died

    process.after(1, turn)
    process.after(2, turn)
    clock.run(10)
    process.kill(Random(1))
    assert ends == ["signal SIGKILL"]


def test_a_coroutine_sleeps_on_the_virtual_clock() -> None:
    clock, came = VirtualClock(1), list[int]()
    process = _process(clock, [])

    async def nap(seconds: float) -> None:
        await sleep(seconds)
        came.append(clock.now_ns)
        await sleep(0)
        came.append(clock.now_ns)

    process.start_soon(nap, 2.5)
    clock.run(10_000_000_000)
    assert came == [2_500_000_000, 2_500_000_000]
