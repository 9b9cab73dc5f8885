"""How much CPU time a process has had, and how long its threads have waited for a processor.

The time is that of the process's CPU clock: all its threads, the dead ones included, in ns. /proc/PID/schedstat would
be the main thread's alone, and /proc/PID/stat counts in ticks of 10 ms. Of threads that are running, kernels count
up to their last timer tick (4 ms at 250 Hz); the rest is there when the thread has left its processor.

The wait is the second number of each thread's schedstat. It counts waits that are over: of a thread that has run less
and could, so much is added that it has wanted all the time. Files stay open: reading one takes 5 µs. A kernel without
CONFIG_SCHED_INFO has no schedstat; what a thread's state says is then all there is.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Final

from runtime.hypervisor.scheduling_account import Sample

THREADS_WATCHED_MAX: Final = 8  # of one process, the oldest; the waiting of others is not seen
_SAMPLES_PER_LOOK: Final = 32  # at the list of threads
_NEARLY: Final = 0.95  # of the time: who has run or waited less is asked for its state
_STATE_BYTES: Final = 64  # of /proc/PID/stat: number, name in brackets, at most 16 bytes, state
_CPU_CLOCK: Final = 2  # CPUCLOCK_SCHED, of a process; clock_getcpuclockid(3) makes the same number


def cpu_clock(pid: int) -> int:
    """For time.clock_gettime_ns; good as long as the process is not reaped."""
    return (~pid << 3) | _CPU_CLOCK


def cpu_ns(pid: int | None) -> int | None:
    """Of a process, so far. None: there is no such process."""
    try:
        return None if pid is None else time.clock_gettime_ns(cpu_clock(pid))
    except OSError:
        return None


def processor_time_ns(pid: int, thread: int) -> int:
    """Of a thread, as the kernel last booked it. thread 0: the whole process. 0: it has ended, or the host does not
    tell."""
    if thread == 0:
        return cpu_ns(pid) or 0
    try:
        with open(f"/proc/{pid}/task/{thread}/schedstat", "rb") as file:  # run time, wait time, slices
            return int(file.read().split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def has_thread(pid: int, thread: int) -> bool:
    """Other partitions' threads stand in no folder of this process."""
    return Path(f"/proc/{pid}/task/{thread}").exists()


class CpuMeter:
    """Of one process. Owns descriptors."""

    def __init__(self, pid: int) -> None:
        self._pid: Final = pid
        self._tasks: Final = Path(f"/proc/{pid}/task")
        self._threads: dict[str, tuple[int, int, int]] = {}  # by tid: schedstat, the wait seen so far, stat
        self._samples = 0
        self._used_ns = cpu_ns(pid) or 0
        self._look()

    def sample(self, elapsed_ns: int) -> Sample:
        """Since the sample before, so long ago. Of a process that has ended: nothing."""
        self._samples += 1
        if self._samples % _SAMPLES_PER_LOOK == 0:
            self._look()
        used_before, self._used_ns = self._used_ns, cpu_ns(self._pid) or self._used_ns
        used_ns, waited_ns = self._used_ns - used_before, 0
        for tid, (fd, before, stat_fd) in list(self._threads.items()):
            now = _waited_ns(fd)
            if now is None:
                self._forget(tid)
            else:
                waited_ns += now - before
                self._threads[tid] = (fd, now, stat_fd)
        if used_ns + waited_ns < _NEARLY * elapsed_ns:
            able = sum(_is_able(stat_fd) for _, _, stat_fd in self._threads.values())
            waited_ns = max(waited_ns, able * elapsed_ns - used_ns)
        return Sample(used_ns, waited_ns)

    def close(self) -> None:
        for tid in list(self._threads):
            self._forget(tid)

    def _look(self) -> None:
        with contextlib.suppress(OSError):
            for tid in sorted((each.name for each in self._tasks.iterdir()), key=int):
                if len(self._threads) >= THREADS_WATCHED_MAX:
                    break
                if tid not in self._threads:
                    stat_fd = os.open(self._tasks / tid / "stat", os.O_RDONLY | os.O_CLOEXEC)
                    try:
                        fd = os.open(self._tasks / tid / "schedstat", os.O_RDONLY | os.O_CLOEXEC)
                    except OSError:
                        fd = os.dup(stat_fd)  # whose second word is no number
                    self._threads[tid] = (fd, _waited_ns(fd) or 0, stat_fd)

    def _forget(self, tid: str) -> None:
        fd, _, stat_fd = self._threads.pop(tid)
        os.close(fd)
        os.close(stat_fd)


def _waited_ns(fd: int) -> int | None:
    """None: the thread is gone."""
    try:
        words = os.pread(fd, _STATE_BYTES, 0).split(maxsplit=2)
    except OSError:
        return None
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


def _is_able(stat_fd: int) -> bool:
    """Whether a thread runs, or could."""
    try:
        return os.pread(stat_fd, _STATE_BYTES, 0).rpartition(b") ")[2].startswith(b"R")
    except OSError:
        return False
