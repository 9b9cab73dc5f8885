"""Ctrl-C at every instruction of what must not be left half done."""

import signal
import threading
import time

import pytest

from runtime.chaos.interruption import heeding, interrupts_kept
from tests.interrupting import interrupted_everywhere
from tests.patience import WAIT_S


def test_ctrl_c_comes_in_a_wait_or_in_the_end_and_finds_nothing_half_done() -> None:
    half_done: list[str] = []
    reached: list[str] = []

    def work() -> None:
        reached.clear()
        with interrupts_kept():
            half_done.append("before")
            half_done.pop()
            try:
                heeding(lambda: reached.append("wait"))
            except KeyboardInterrupt:
                reached.append("interrupted")
                raise
            half_done.append("after")
            half_done.pop()
            reached.append("end")

    seen = set()
    for raised in interrupted_everywhere(work):
        assert not half_done
        assert raised is not None, reached  # none is lost
        seen.add(tuple(reached))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert ("interrupted",) in seen  # it came before the wait, and was kept for it
    assert ("wait", "end") in seen  # it came behind it, and was kept for the end


def test_it_ends_a_wait_that_is_under_way() -> None:
    waits = threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        waits.wait()
        signal.pthread_kill(main, signal.SIGINT)

    def wait() -> None:
        waits.set()
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            time.sleep(0.01)  # not once for all: a signal that comes just before it does not wake it

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt), interrupts_kept():
        heeding(wait)
    thread.join()


def test_where_ctrl_c_is_ignored_it_stays_so() -> None:
    """As in a campaign's workers, or under nohup."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_kept():
            signal.raise_signal(signal.SIGINT)
            assert heeding(lambda: signal.getsignal(signal.SIGINT)) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
