"""Ties a process's life to its parent's, by the kernel rather than by good manners.

Every process of a machine calls `die_with_parent` first. SIGKILL of any one of them then takes down, without
anybody's help, all that hang below it: platform -> root and broker -> zygote and partitions.

Source: prctl(2), PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NAME.
"""

import ctypes
import os
import signal
import time
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
_COMM_BYTES_MAX: Final = 15
_ADOPTION_MS_MAX: Final = 2_000

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, argument: int | bytes) -> None:
    if _libc.prctl(option, argument, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}): {os.strerror(error)}")


def die_with_parent(parent_pid: int) -> None:
    """Ask for SIGKILL when the parent dies; die now if it already has.

    Args:
        parent_pid: the process that must be our parent. A partition is forked by a middleman that exits at once, so
            this waits (bounded) until the kernel has handed us to the broker: asking earlier would tie our life to
            the middleman's.
    """
    deadline = time.monotonic() + _ADOPTION_MS_MAX / 1000
    while os.getppid() != parent_pid:
        if os.getppid() == 1 or time.monotonic() > deadline:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.0001)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died between the look and the request
        os.kill(os.getpid(), signal.SIGKILL)


def adopt_orphans(wanted: bool = True) -> None:
    """Become the parent of every descendant whose own parent exits (the broker, for partitions); or no longer."""
    _prctl(_PR_SET_CHILD_SUBREAPER, int(wanted))


def name_process(name: str) -> None:
    """What ps, top and /proc/PID/comm show; cut to the kernel's 15 bytes."""
    _prctl(_PR_SET_NAME, name.encode()[:_COMM_BYTES_MAX])
