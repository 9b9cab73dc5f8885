"""The processes of partitions: watched by pidfd, reaped, and nothing of theirs left over.

The broker is a subreaper, so whatever a partition started and left behind becomes the broker's child. It is
no partition, and has no business to be there.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runtime.abi import ExitStatus

if TYPE_CHECKING:
    from runtime.hypervisor.loop import Loop

ORPHAN_SWEEP_MS: Final = 20

_CHILDREN: Final = Path("/proc/thread-self/children")


@dataclass(frozen=True, slots=True)
class WatchedProcess:
    """Owns the pidfd."""

    partition: int
    pid: int
    pidfd: int

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal_number)

    @property
    def has_ended(self) -> bool:
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def reap(self) -> ExitStatus | None:
        """Once it has ended. None: it is not our child (the root is the platform's)."""
        try:
            result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return None
        if result is None:
            return None
        if result.si_code == os.CLD_EXITED:
            return ExitStatus(result.si_status, None)
        return ExitStatus(None, result.si_status)

    def close(self) -> None:
        os.close(self.pidfd)


def sweep_orphans(known: set[int]) -> bool:
    """Kill and reap children of ours that nobody knows. True: some are still dying, call again soon."""
    try:
        pids = [int(word) for word in _CHILDREN.read_text().split()]
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN: they die with us
        return False
    remaining = False
    for pid in pids:
        if pid in known:
            continue
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            remaining |= os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is None
    return remaining


class OrphanSweeper:
    """Sweeps until nothing is left of a partition's process that has ended."""

    def __init__(self, loop: Loop, known: Callable[[], set[int] | None]) -> None:
        """`known`: pids that are no orphans; None: that cannot be said at the moment."""
        self._loop: Final = loop
        self._known: Final = known
        self._is_due = False

    def soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.after(ORPHAN_SWEEP_MS, self._sweep)

    def _sweep(self) -> None:
        self._is_due = False
        known = self._known()
        if known is None or sweep_orphans(known):
            self.soon()
