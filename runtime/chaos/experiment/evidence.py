"""What one trial leaves for its checks: histories, images, events, what became of each fault, resources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import psutil

from runtime.chaos.experiment.journal import Fate
from runtime.chaos.experiment.machine_files import TrialMachine
from runtime.chaos.experiment.schedule import Schedule
from runtime.chaos.history import History
from runtime.chaos.running_machine import Event
from runtime.chaos.sequence import Sequence as MessageSequence

NS_PER_MS: Final = 1e6


@dataclass(frozen=True, slots=True)
class Balance:
    """What the processes of a machine had at one moment. Totals, over those that could be read."""

    processes: int
    descriptors: int
    resident_bytes: int

    @classmethod
    def take(cls, pids: Sequence[int]) -> "Balance":
        """Of these, and of all below them. Who ends meanwhile is not counted."""
        every: dict[int, psutil.Process] = {}
        for pid in pids:
            try:
                process = psutil.Process(pid)
                every |= {one.pid: one for one in (process, *process.children(recursive=True))}
            except psutil.NoSuchProcess:
                continue
        processes = descriptors = resident = 0
        for process in every.values():
            try:
                resident += process.memory_info().rss
                processes += 1
                descriptors += process.num_fds()
            except psutil.NoSuchProcess:
                continue
            except psutil.AccessDenied:  # its descriptors are nobody's business
                continue
        return cls(processes, descriptors, resident)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All times are ns of CLOCK_MONOTONIC."""

    machine: TrialMachine
    schedule: Schedule
    fates: tuple[Fate, ...]
    histories: Mapping[str, History]  # by guest; only of those that began one
    values: Mapping[str, Mapping[int, int]]  # by device: what each block of its image holds in the end
    events: Sequence[Event]
    began_ns: int  # the steady state was there
    healed_ns: int  # no fault was armed any more
    ended_ns: int
    before: Balance  # in the steady state
    after: Balance | None  # some time after all was healed, still under load; None: it did not come to that
    exit_code: int
    errors: str
    left_behind: Sequence[str]
    sequences: Mapping[str, MessageSequence] = field(default_factory=dict)  # by guest, as `histories`

    def all_of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event["kind"] == kind]
