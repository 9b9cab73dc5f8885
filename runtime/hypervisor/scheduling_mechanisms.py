"""Carrying the policy's decisions out: what every mechanism has in common, and the one that works everywhere.

The portable mechanism stops whole processes and continues them, by signals through their pidfds. A VP is a thread, and
the kernel can stop a thread alone only under a debugger; so all VPs of a partition are held together.
"""

from __future__ import annotations

import contextlib
import enum
import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from runtime.hypervisor.processes import WatchedProcess
from runtime.hypervisor.scheduling import Decision
from runtime.hypervisor.scheduling_account import Member


class SchedulerKind(enum.Enum):
    AUTO = "auto"  # cgroups where they are writable and can do what was asked, otherwise signals
    CGROUP2 = "cgroup2"
    CGROUP1 = "cgroup1"
    SIGNALS = "signals"


class MechanismFailed(Exception):
    """It cannot be had on this host, or not any more. One line for people."""


class Mechanism(Protocol):
    """Owned by the scheduler; `close` leaves every process running, and nothing behind."""

    @property
    def name(self) -> str: ...

    @property
    def needs_slices(self) -> bool:
        """Whether it wants each decision; otherwise the kernel does the rest, and the policy only keeps the books."""

    def set_members(self, members: Sequence[Member], processes: Mapping[int, WatchedProcess]) -> None:
        """All there are. Raises MechanismFailed."""

    def carry_out(self, decision: Decision) -> None: ...

    def forget(self, partition: int) -> None:
        """Its process has been reaped."""

    def let_all(self) -> None:
        """Nobody is held, until the next decision."""

    def close(self) -> None: ...


class Signals:
    """SIGSTOP and SIGCONT."""

    name: Final = SchedulerKind.SIGNALS.value
    needs_slices: Final = True

    def __init__(self) -> None:
        self._processes: Mapping[int, WatchedProcess] = {}
        self._members: dict[int, Member] = {}
        self._stopped: set[int] = set()
        self._confined: dict[int, tuple[int, ...]] = {}

    def set_members(self, members: Sequence[Member], processes: Mapping[int, WatchedProcess]) -> None:
        self._processes = processes
        self._members = {member.id: member for member in members if member.has_work}
        self._stopped &= self._members.keys()  # who is there no more, or was stopped by somebody else

    def carry_out(self, decision: Decision) -> None:
        for partition in decision.held - self._stopped:  # first: nobody runs in another one's place
            if (process := self._processes.get(partition)) is not None:
                process.kill(signal.SIGSTOP)
                self._stopped.add(partition)
        for partition in self._confined.keys() | decision.confined.keys():
            self._confine(partition, decision.confined.get(partition))
        self._let(self._stopped - decision.held)

    def forget(self, partition: int) -> None:
        self._stopped.discard(partition)
        self._confined.pop(partition, None)

    def let_all(self) -> None:
        for partition in list(self._confined):
            self._confine(partition, None)
        self._let(set(self._stopped))

    def close(self) -> None:
        self.let_all()

    def _let(self, partitions: Iterable[int]) -> None:
        for partition in partitions:
            if (process := self._processes.get(partition)) is not None:
                process.kill(signal.SIGCONT)
            self._stopped.discard(partition)

    def _confine(self, partition: int, processors: tuple[int, ...] | None) -> None:
        """None: to all that it may use."""
        if self._confined.get(partition) == processors:
            return
        member, process = self._members.get(partition), self._processes.get(partition)
        if processors is not None:
            self._confined[partition] = processors
        else:
            self._confined.pop(partition, None)
        if member is None or process is None:
            return
        with contextlib.suppress(OSError):  # a thread that ended; a process that did
            for thread in Path(f"/proc/{process.pid}/task").iterdir():
                os.sched_setaffinity(int(thread.name), processors or member.processors)
