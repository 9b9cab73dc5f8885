"""Keeps CPUs from halting while nobody needs them: a spinner of lowest priority on each.

A halted virtual CPU is woken by its host, which takes longer than most of what is measured here. SCHED_IDLE gives way
to everything else at once. Source: sched(7).
"""

import contextlib
import os
import signal
from collections.abc import Collection, Iterator
from typing import NoReturn

from runtime.machine.lifeline import die_with_parent


@contextlib.contextmanager
def kept_awake(cpus: Collection[int]) -> Iterator[None]:
    """Until the block ends. The spinners die with us, too."""
    spinners: list[int] = []
    try:
        for cpu in cpus:
            parent, pid = os.getpid(), os.fork()
            if pid == 0:
                _spin(cpu, parent)
            spinners.append(pid)
        yield
    finally:
        for pid in spinners:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _spin(cpu: int, parent: int) -> NoReturn:
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        die_with_parent(parent)
        os.sched_setaffinity(0, {cpu})
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        while True:
            pass
    finally:
        os._exit(1)
