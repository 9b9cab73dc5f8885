"""What processes have used so far, read from outside: processor time, context switches, sleeps.

Of a process that runs at the moment the kernel knows its time up to the last tick, a few milliseconds ago; of one that
sleeps, and of ourselves, exactly. A voluntary switch is a sleep, and a sleep ends with one wake-up: the kernel counts
the one, which is the other.

Source: clock_getcpuclockid(3), Linux include/linux/posix-timers_types.h; proc_pid_status(5).
"""

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

_PROCESS_CLOCK: Final = 2  # the low bits of a clock id whose high ones are the complement of a pid
_THREAD_CLOCK: Final = 6
_NS_PER_S: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Usage:
    """Of all threads together."""

    cpu_ns: int = 0
    voluntary_switches: int = 0
    involuntary_switches: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.cpu_ns + other.cpu_ns,
            self.voluntary_switches + other.voluntary_switches,
            self.involuntary_switches + other.involuntary_switches,
        )

    def since(self, before: "Usage") -> "Usage":
        """Never below zero: a thread that ended takes its past along."""
        return Usage(
            max(self.cpu_ns - before.cpu_ns, 0),
            max(self.voluntary_switches - before.voluntary_switches, 0),
            max(self.involuntary_switches - before.involuntary_switches, 0),
        )

    @classmethod
    def of_process(cls, pid: int) -> Self:
        """Its time, and the switches of its living threads. Zero for a process that is gone."""
        try:
            cpu_ns = time.clock_gettime_ns(~pid << 3 | _PROCESS_CLOCK)
            switches = _switches(pid, [int(entry.name) for entry in os.scandir(f"/proc/{pid}/task")])
        except OSError:
            return cls()
        return cls(cpu_ns, *switches)

    @classmethod
    def of_thread(cls, thread: int) -> Self:
        """Of one thread of this process."""
        cpu_ns = time.clock_gettime_ns(~thread << 3 | _THREAD_CLOCK)
        return cls(cpu_ns, *_switches(os.getpid(), [thread]))


def thread_times_ns(pid: int) -> dict[int, int]:
    """Processor time of each living thread; empty for a process that is gone."""
    times = {}
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):  # it has just ended
                times[int(entry.name)] = _thread_time_ns(Path(entry.path))
    return times


def _thread_time_ns(task: Path) -> int:
    try:
        return int((task / "schedstat").read_text().split()[0])
    except FileNotFoundError:  # a kernel without CONFIG_SCHED_INFO counts ticks
        words = (task / "stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) * _NS_PER_S // os.sysconf("SC_CLK_TCK")


def _switches(pid: int, threads: Iterable[int]) -> tuple[int, int]:
    """Voluntary and not."""
    voluntary = involuntary = 0
    for thread in threads:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            for line in Path(f"/proc/{pid}/task/{thread}/status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches:"):
                    voluntary += int(line.split()[1])
                elif line.startswith("nonvoluntary_ctxt_switches:"):
                    involuntary += int(line.split()[1])
    return voluntary, involuntary
