"""A server dies and another attaches to its rings with the same journal: nothing is served twice, nothing is left out.

The dead one is a Channel that is dropped between two steps; where only C could be interrupted, a forked process with an
armed seam dies instead.
"""

import mmap
import os
import random
import re
import signal
from pathlib import Path

import pytest

from bus.native import PAGE_BYTES, Channel
from bus.seam import SEAM_BYTES, Seam, Step
from tests.bus.ring_pair import RingPair, ring_pair

JOURNAL_BYTES = 64


def ask(pair: RingPair, number: int, *, completion: bool = True) -> None:
    pair.guest.send(number.to_bytes(8, "little"), number, completion)


def answer(host: Channel) -> int | None:
    """Take one request and publish its answer, which is not yet released."""
    packets = host.receive_batch(1, 0)
    if not packets:
        return None
    _, flags, number, _, _ = packets[0]
    if flags:
        host.send_completion(b"", number)
    return number


def answers(pair: RingPair) -> list[int]:
    found = [packet[2] for packet in pair.guest.receive_batch(100, 0)]
    pair.guest.release()
    return found


def fill_one_lap(pair: RingPair, host: Channel) -> None:
    """So that behind the indexes stand old packets, whole ones, and no zeros."""
    for number in range(200):
        ask(pair, 1_000_000 + number)
        answer(host)
        host.release()
        answers(pair)


@pytest.mark.parametrize("seed", range(20))
def test_what_was_published_and_not_released_is_not_served_again_nor_anything_before_it(seed: int) -> None:
    rng = random.Random(seed)
    journal = memoryview(bytearray(JOURNAL_BYTES))
    with ring_pair() as pair:
        host = pair.next_host(journal)
        fill_one_lap(pair, host)
        asked: list[int] = []
        answered: list[int] = []
        for turn in range(300):
            if rng.random() < 0.5 and len(asked) - len(answered) < 20:
                asked.append(turn)
                ask(pair, turn)
            if rng.random() < 0.5:
                answer(host)
                if rng.random() < 0.5:
                    host.close()
                    host = pair.next_host(journal)  # died before it released
                else:
                    host.release()
            if rng.random() < 0.5:
                answered += answers(pair)
        while answer(host) is not None:
            host.release()
        answered += answers(pair)
        host.close()
    assert answered == asked


def test_the_index_does_not_go_back_to_the_last_request_that_was_answered() -> None:
    """What wants no completion is released without one; the guest writes over it at once."""
    journal = memoryview(bytearray(JOURNAL_BYTES))
    with ring_pair() as pair:
        host = pair.next_host(journal)
        ask(pair, 1)
        ask(pair, 2, completion=False)
        for number in (1, 2):
            assert answer(host) == number
            host.release()
        host.close()
        host = pair.next_host(journal)
        ask(pair, 3)
        assert answer(host) == 3
        host.close()


@pytest.mark.parametrize(
    ("step", "published"),
    [(Step.COMMIT, False), (Step.PUBLISH, True), (Step.SIGNAL, True), (Step.RELEASE, True)],
)
def test_a_process_dies_exactly_at_the_step_that_was_armed(step: Step, published: bool) -> None:
    """And whoever attaches after it serves what was not published, once."""
    shared = memoryview(mmap.mmap(-1, PAGE_BYTES))
    journal, seam = shared[:JOURNAL_BYTES], shared[JOURNAL_BYTES : JOURNAL_BYTES + SEAM_BYTES]
    with ring_pair() as pair:
        first = pair.next_host(journal)
        fill_one_lap(pair, first)
        assert pair.guest.arm()  # it sleeps, so that a signal is owed
        ask(pair, 7)
        Seam(seam).arm(step)
        child = os.fork()
        if child == 0:
            host = pair.next_host(journal, seam)
            answer(host)
            host.release()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        assert Seam(seam).take_struck() is step
        assert Seam(seam).take_struck() is None
        host = pair.next_host(journal, seam)
        host.kick()
        assert answers(pair) == ([7] if published else [])
        assert answer(host) == (None if published else 7)
        host.close()
        first.close()


@pytest.mark.parametrize("passes", [1, 3])
def test_a_seam_strikes_at_its_pass_and_as_many_processes_as_it_was_told(passes: int) -> None:
    memory = memoryview(mmap.mmap(-1, PAGE_BYTES))[:SEAM_BYTES]
    seam = Seam(memory)
    seam.arm(Step.SAVED, passes, deaths=2)
    ends: list[tuple[int, int]] = []
    for _ in range(3):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            for _ in range(5):
                seam.passing(Step.SAVE_STATE)
                seam.passing(Step.SAVED)
                os.write(writer, b".")
            os._exit(0)
        os.close(writer)
        _, status = os.waitpid(child, 0)
        with os.fdopen(reader, "rb") as pipe:
            ends.append((os.waitstatus_to_exitcode(status), len(pipe.read())))
    assert ends == [(-signal.SIGKILL, passes - 1), (-signal.SIGKILL, passes - 1), (0, 5)]


def test_a_seam_refuses_what_makes_no_sense() -> None:
    seam = Seam()
    for passes, deaths in ((0, 1), (1, 0), (1 << 21, 1), (1, 100)):
        with pytest.raises(ValueError, match="want 1 to"):
            seam.arm(Step.TAKE, passes, deaths)
    seam.passing(Step.TAKE)


def test_steps_have_the_numbers_that_the_header_says() -> None:
    header = (Path(__file__).parents[2] / "bus" / "native" / "seam.h").read_text()
    names = re.findall(r"^    SEAM_(\w+)[ ,]", header, re.MULTILINE)
    assert names == ["NONE", *(step.name for step in Step)]
    assert [step.value for step in Step] == list(range(1, len(names)))
    assert [Step.named(step.text) for step in Step] == list(Step)
