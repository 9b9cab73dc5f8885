"""A process that stands still, surely."""

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Final

PATIENCE_S: Final = 60.0
_STOPPED: Final = {"T", "t", "Z", "X"}


def stop(pid: int) -> None:
    """SIGSTOP, and wait until it has come to every thread.

    The signal is one thread's to take: on a busy host the others run on, and answer, until that one gets a processor.
    """
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + PATIENCE_S
    while not thread_states(pid) <= _STOPPED:
        assert time.monotonic() < deadline, f"process {pid} does not stop: {thread_states(pid)}"
        time.sleep(0.001)


def thread_states(pid: int) -> set[str]:
    """The letters of proc(5)."""
    states = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            states.add((task / "stat").read_text().rpartition(")")[2].split()[0])
    return states
