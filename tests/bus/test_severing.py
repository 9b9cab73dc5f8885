"""Memory that was shared, and is left: the same addresses, the same bytes, and nobody else sees them."""

import os
import random
import threading

from bus.memory import PAGE_BYTES, MemorySlot
from bus.severing import empty, sever

PAGES = 37
SIZE = PAGES * PAGE_BYTES


def _shared() -> tuple[MemorySlot, MemorySlot]:
    ours = MemorySlot.create(PAGES, 16, "shared")
    ours.memory[:] = random.Random(1).randbytes(SIZE)
    return ours, MemorySlot.from_fd(os.dup(ours.fd), 16, PAGES)


def test_who_leaves_takes_a_copy_along_and_neither_sees_the_other_any_more() -> None:
    ours, theirs = _shared()
    before, view = bytes(ours.memory), ours.memory[100:200]  # made before, and good afterwards
    sever(ours)
    assert bytes(ours.memory) == bytes(theirs.memory) == before
    view[:] = b"o" * 100
    theirs.memory[5000:5100] = b"t" * 100
    assert bytes(ours.memory) == before[:100] + b"o" * 100 + before[200:]
    assert bytes(theirs.memory) == before[:5000] + b"t" * 100 + before[5100:]
    view.release()
    ours.close()
    theirs.close()


def test_what_was_left_is_empty_and_stays_as_long_as_it_was() -> None:
    """No SIGBUS for who still maps it, and no page is kept for it."""
    ours, theirs = _shared()
    sever(ours)
    empty(ours)
    assert bytes(theirs.memory) == bytes(SIZE)
    assert os.fstat(ours.fd).st_size == SIZE
    assert os.fstat(ours.fd).st_blocks <= PAGES * PAGE_BYTES // 512  # what was just read may be back
    assert any(ours.memory[:])
    ours.close()
    theirs.close()


def test_threads_may_work_there_while_it_is_left() -> None:
    ours, theirs = _shared()
    over = threading.Event()
    ended: list[bool] = []

    def work() -> None:
        last = False
        while not last:
            last = over.is_set()  # the last round is all after the last exchange
            for page in range(PAGES):
                ours.memory[page * PAGE_BYTES] = 1
        ended.append(last)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for _ in range(20):
        sever(ours)  # what is private already is exchanged again
    over.set()
    for worker in workers:
        worker.join()
    assert len(ended) == 2
    assert bytes(ours.memory[::PAGE_BYTES]) == b"\1" * PAGES
    ours.close()
    theirs.close()
