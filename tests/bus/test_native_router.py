"""The interrupt router: a kick sets a flag and, on 0 -> 1, rings a doorbell; no process can make it stand still."""

import gc
import mmap
import os
import random
import signal
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from bus.native import PAGE_BYTES, Router, eventfd_signal, flag_take
from tests.bus.ring_pair import rung

FLAG = 2 * 2048 + 77
PATIENCE_S = 30.0


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def router() -> Iterator[Router]:
    made = Router()
    yield made
    made.close()


@pytest.fixture
def line() -> Iterator[Callable[[], int]]:
    made: list[int] = []

    def new() -> int:
        made.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        return made[-1]

    yield new
    for fd in made:
        os.close(fd)


def test_a_kick_sets_the_flag_and_rings_once_until_it_is_taken(
    router: Router, line: Callable[[], int]
) -> None:
    kick, doorbell, sief = line(), line(), mmap.mmap(-1, PAGE_BYTES)
    router.add(5, kick, sief, FLAG, doorbell)
    for round_number in range(1, 50):
        assert eventfd_signal(kick)
        eventually(lambda: router.statistics(5)["delivered"] == round_number)  # noqa: B023
        assert rung(doorbell) == 1
        sent = router.statistics(5)["sent"]
        assert eventfd_signal(kick)  # the flag is still set: nothing new to tell
        eventually(lambda: router.statistics(5)["sent"] == sent + 1)  # noqa: B023
        assert rung(doorbell) == 0
        assert flag_take(sief, FLAG)
    counted = router.statistics(5)
    assert counted["sent"] == counted["merged"] + counted["delivered"]
    assert counted["blocked"] == 0


def test_routes_do_not_disturb_each_other(router: Router, line: Callable[[], int]) -> None:
    sief = mmap.mmap(-1, PAGE_BYTES)
    lines = [(line(), line()) for _ in range(40)]
    for i, (kick, doorbell) in enumerate(lines):
        router.add(i, kick, sief, i, doorbell)
    for i in range(0, 40, 3):
        assert eventfd_signal(lines[i][0])
    for i in range(0, 40, 3):
        eventually(lambda: router.statistics(i)["delivered"] == 1)  # noqa: B023
    for i, (_, doorbell) in enumerate(lines):
        assert rung(doorbell) == (i % 3 == 0)
        assert flag_take(sief, i) == (i % 3 == 0)


def test_a_removed_route_is_not_touched_again(router: Router, line: Callable[[], int]) -> None:
    kick, doorbell, sief = line(), line(), mmap.mmap(-1, PAGE_BYTES)
    for _ in range(200):
        router.add(1, kick, sief, FLAG, doorbell)
        eventfd_signal(kick)
        router.remove(1)
        flag_take(sief, FLAG)
        rung(doorbell)
        eventfd_signal(kick)
        assert not flag_take(sief, FLAG)
        assert rung(doorbell) == 0
    sief.close()  # nobody holds it any more
    with pytest.raises(LookupError):
        router.remove(1)
    with pytest.raises(LookupError):
        router.statistics(1)


def test_ids_are_unique_and_bad_arguments_change_nothing(router: Router, line: Callable[[], int]) -> None:
    kick, doorbell, sief = line(), line(), mmap.mmap(-1, PAGE_BYTES)
    router.add(1, kick, sief, FLAG, doorbell)
    with pytest.raises(ValueError, match="exists"):
        router.add(1, line(), sief, FLAG, doorbell)
    with pytest.raises(ValueError, match="flag"):
        router.add(2, kick, sief, 16 * 2048, doorbell)
    with pytest.raises(ValueError, match="file descriptor"):
        router.add(2, -1, sief, FLAG, doorbell)
    with pytest.raises(OSError, match="Bad file descriptor"):
        router.add(2, 10_000, sief, FLAG, doorbell)
    with open(__file__, "rb") as file, pytest.raises(OSError, match="not permitted"):  # it cannot be watched
        router.add(2, file.fileno(), sief, FLAG, doorbell)
    with pytest.raises(LookupError):
        router.statistics(2)
    assert eventfd_signal(kick)
    eventually(lambda: router.statistics(1)["delivered"] == 1)


def test_hostile_holders_of_a_route_delay_nobody(router: Router, line: Callable[[], int]) -> None:
    """They fill the doorbell and make it blocking, fill the kick, or empty it as fast as they can."""
    sief = mmap.mmap(-1, PAGE_BYTES)
    full_kick, full_bell, good_kick, good_bell = line(), line(), line(), line()
    router.add(1, full_kick, sief, 1, full_bell)
    router.add(2, good_kick, sief, 2, good_bell)
    os.set_blocking(full_bell, True)
    os.eventfd_write(full_bell, 2**64 - 2)
    os.eventfd_write(full_kick, 2**64 - 2)
    eventually(lambda: router.statistics(1)["blocked"] == 1)
    assert not eventfd_signal(full_bell)
    assert not eventfd_signal(full_kick)
    for round_number in range(1, 20):
        assert eventfd_signal(good_kick)
        eventually(lambda: router.statistics(2)["delivered"] == round_number)  # noqa: B023
        assert flag_take(sief, 2)
    os.set_blocking(full_bell, False)


def test_a_doorbell_filled_between_look_and_ring_does_not_stop_the_ringer(line: Callable[[], int]) -> None:
    """It is filled 300 times while we ring, at any instant, and stays full until we have gone on ringing."""
    doorbell, calls, rng = line(), mmap.mmap(-1, PAGE_BYTES), random.Random(1)
    os.set_blocking(doorbell, True)
    child = os.fork()
    if child == 0:
        os._exit(fill_again_and_again(doorbell, calls))
    finished = status = rings = 0
    while not finished:
        eventfd_signal(doorbell)
        rings += 1
        struct.pack_into("<Q", calls, 0, rings)
        for _ in range(rng.randrange(200)):  # not all the time: the child needs a moment at which it is empty
            pass
        if rings % 100 == 0:
            finished, status = os.waitpid(child, os.WNOHANG)
    assert os.waitstatus_to_exitcode(status) == 0


def fill_again_and_again(doorbell: int, calls: mmap.mmap) -> int:
    """1: the ringer stopped when the doorbell was full."""

    def too_late(*_: object) -> None:
        raise InterruptedError

    signal.signal(signal.SIGALRM, too_late)
    filled = 0
    while filled < 300:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.002)
            os.eventfd_read(doorbell)  # comes back when it was rung
            os.eventfd_write(doorbell, 2**64 - 2)  # blocks if it was rung again: once more
            signal.setitimer(signal.ITIMER_REAL, 0)
        except InterruptedError:
            continue
        filled += 1
        seen = struct.unpack_from("<Q", calls)[0]
        deadline = time.monotonic() + PATIENCE_S
        while struct.unpack_from("<Q", calls)[0] < seen + 3:
            if time.monotonic() > deadline:
                os.eventfd_read(doorbell)
                return 1
    os.eventfd_read(doorbell)
    return 0


def test_a_closed_router_says_so_and_lets_go(line: Callable[[], int]) -> None:
    sief = mmap.mmap(-1, PAGE_BYTES)
    router = Router()
    router.add(1, line(), sief, FLAG, line())
    with pytest.raises(BufferError):
        sief.close()
    router.close()
    router.close()
    sief.close()
    with pytest.raises(ValueError, match="closed"):
        router.add(2, line(), mmap.mmap(-1, PAGE_BYTES), FLAG, line())
    with pytest.raises(ValueError, match="closed"):
        router.statistics(1)


def test_a_forked_child_can_throw_its_copy_away(line: Callable[[], int]) -> None:
    router = Router()
    router.add(1, line(), mmap.mmap(-1, PAGE_BYTES), FLAG, line())
    child = os.fork()
    if child == 0:
        router.close()
        del router
        gc.collect()
        ok = eventfd_signal(line())  # the kernel refuses the parent's context: there is another way
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    router.close()


def test_a_route_that_moved_sets_its_flag_in_the_other_page_and_counts_on() -> None:
    router, kick, doorbell = Router(), os.eventfd(0), os.eventfd(0)
    pages = [mmap.mmap(-1, 4096), mmap.mmap(-1, 4096)]
    router.add(1, kick, pages[0], 70, doorbell)
    eventfd_signal(kick)
    os.eventfd_read(doorbell)
    router.move(1, pages[1], 71)
    eventfd_signal(kick)
    os.eventfd_read(doorbell)
    assert [flag_take(page, flag) for page in pages for flag in (70, 71)] == [True, False, False, True]
    assert router.statistics(1)["sent"] == router.statistics(1)["delivered"] == 2
    with pytest.raises(LookupError):
        router.move(2, pages[1], 71)
    with pytest.raises(ValueError, match="flag"):
        router.move(1, pages[1], 16 * 2048)
    router.remove(1)
    pages[0].close()  # nothing holds it any more
    router.close()
    pages[1].close()
    os.close(kick)
    os.close(doorbell)


def test_a_quiet_route_sets_its_flag_and_rings_nothing() -> None:
    router, kick, doorbell = Router(), os.eventfd(0), os.eventfd(0, os.EFD_NONBLOCK)
    page = mmap.mmap(-1, 4096)
    router.add(1, kick, page, 70, doorbell)
    router.quiet(1, True)
    for sent in (1, 2):
        eventfd_signal(kick)
        deadline = time.monotonic() + 20
        while router.statistics(1)["sent"] < sent:
            assert time.monotonic() < deadline
    with pytest.raises(BlockingIOError):
        os.eventfd_read(doorbell)
    assert flag_take(page, 70)
    counts = router.statistics(1)
    assert counts == {"sent": 2, "merged": 0, "suppressed": 2, "delivered": 0, "blocked": 0}
    router.quiet(1, False)
    eventfd_signal(kick)
    while router.statistics(1)["delivered"] < 1:
        assert time.monotonic() < deadline
    assert os.eventfd_read(doorbell) == 1
    with pytest.raises(LookupError):
        router.quiet(2, True)
    router.close()
    page.close()
    os.close(kick)
    os.close(doorbell)


def test_a_route_rings_where_it_was_told_to_last(router: Router, line: Callable[[], int]) -> None:
    """And keeps no descriptor of where it rang before."""
    kick, first, second, sief = line(), line(), line(), mmap.mmap(-1, PAGE_BYTES)
    router.add(5, kick, sief, FLAG, first)
    assert eventfd_signal(second)  # its first use opens what it rings with
    assert rung(second) == 1
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for doorbell, other in ((second, first), (first, second), (first, second)):
        router.ring_at(5, doorbell)
        before = router.statistics(5)["delivered"]
        assert eventfd_signal(kick)
        eventually(lambda: router.statistics(5)["delivered"] == before + 1)  # noqa: B023
        assert (rung(doorbell), rung(other)) == (1, 0)
        assert flag_take(sief, FLAG)
    assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208
    with pytest.raises(LookupError):
        router.ring_at(6, first)
    with pytest.raises(OSError, match="Bad file descriptor"):
        router.ring_at(5, 1 << 20)
