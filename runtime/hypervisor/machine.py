"""The whole machine's state, and what one call sees of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final

from runtime.abi import PARTITION_SELF, ROOT_PARTITION, WHOLE_PROCESSOR, HvStatus, PartitionProperty
from runtime.hypervisor.effects import DropFiles, Effect, Halt, ReplaceRoot, Resources, SynicOperations
from runtime.hypervisor.fault_seams import FaultSeams
from runtime.hypervisor.gpa_space import Slot
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.port import Connection, Port
from runtime.hypervisor.program import Process
from runtime.hypervisor.replies import Refused
from runtime.hypervisor.synthetic_timers import TimerQueue

ROOT_FAILURES_MAX: Final = 10  # unplanned ones, within
ROOT_FAILURES_WITHIN_MS: Final = 2_000  # a root that fails as fast as it starts is not worth another try


class RootFailurePolicy(enum.Enum):
    """What becomes of the machine when its root partition is gone."""

    HALT = "halt"  # the machine goes down
    RESTART = "restart"  # a new process takes over
    STANDBY = "standby"  # as RESTART, and it waits already


@dataclass(slots=True)
class CallCount:
    """Hypercalls: of one partition, or of all."""

    made: int = 0
    refused: int = 0


@dataclass(slots=True)
class Machine:
    resources: Resources
    synic: SynicOperations
    on_root_failure: RootFailurePolicy = RootFailurePolicy.HALT
    memory_pages: int = 0  # conserved
    now_ns: int = 0  # of the event being handled; CLOCK_MONOTONIC
    partitions: dict[int, Partition] = field(default_factory=dict)
    slots: dict[int, Slot] = field(default_factory=dict)
    effects: list[Effect] = field(default_factory=list)  # of the event being handled
    timers: TimerQueue = field(default_factory=TimerQueue)  # of all VPs
    timers_armed_ns: int | None = None  # what the loop was last told
    # ids are never used twice, so a stale one names nothing
    next_partition: int = ROOT_PARTITION
    next_slot: int = 1
    next_route: int = 1
    next_stats_page: int = 1
    next_endpoint: int = 1
    loads_drivers: bool = False  # into the hypervisor itself: a monolithic machine
    scheduling_version: int = 0  # counts changes of what the scheduler looks at: properties, processes
    served_for: int = 0  # by the call being handled, if that is not its caller
    capped_ns: dict[int, int] = field(default_factory=dict)  # of each with a cap: its time, and ours for it
    worked_ns: dict[int, int] = field(default_factory=dict)  # by parents, for those: not charged yet
    statistics_timer: bool = False  # runs, because somebody has a statistics page
    calls: CallCount = field(default_factory=CallCount)
    calls_of: dict[int, CallCount] = field(default_factory=dict)  # by partition
    root_generation: int = 1  # counts the root's processes
    root_files: int = 0  # descriptors that each but the first is born with
    root_leaves: bool = False  # it has taken its promise back: it ends, as it was asked to
    root_is_up: bool = False  # it has given a first heartbeat, so it has saved what a successor needs
    rebooting: bool = False  # every partition is to end, and a new root to begin
    root_failures_ns: list[int] = field(default_factory=list)  # when, of the last few
    faults: FaultSeams | None = None  # on purpose; nobody has armed any, and then it is not even loaded

    def partition(self, caller: Partition, partition_id: int) -> Partition:
        """Refused: INVALID_PARTITION_ID."""
        if partition_id in (PARTITION_SELF, caller.id):
            return caller
        if (found := self.partitions.get(partition_id)) is None:
            raise Refused(HvStatus.INVALID_PARTITION_ID)
        return found

    def is_below(self, partition: Partition, ancestor: Partition) -> bool:
        parent = partition.parent
        while parent is not None:
            if parent == ancestor.id:
                return True
            parent = self.partitions[parent].parent
        return False

    def works_for(self, caller: Partition, partition: Partition) -> None:
        """The call being handled is about this one. A parent makes such calls because its child wants something of it;
        so where the child has a cap, they are the child's. Nobody else can have others pay."""
        cap = partition.properties.get(PartitionProperty.CPU_CAP, WHOLE_PROCESSOR)
        if partition.parent == caller.id and cap < WHOLE_PROCESSOR:
            self.served_for = partition.id

    def path(self, partition: Partition) -> str:
        """Its name below the root's children: "guest", or "guest/inner" for a child of it."""
        if partition.parent in (None, ROOT_PARTITION):
            return partition.name
        assert partition.parent is not None
        return f"{self.path(self.partitions[partition.parent])}/{partition.name}"

    def by_path(self, path: str) -> Partition | None:
        """The newest one of this name: a dead one's record may still be there."""
        found = [partition for partition in self.partitions.values() if self.path(partition) == path]
        return max(found, key=lambda partition: partition.id, default=None)

    def port_behind(self, connection: Connection) -> tuple[Partition, Port] | None:
        if connection.port is None:
            return None
        owner = self.partitions[connection.port_partition]
        return owner, owner.ports[connection.port]

    def root_failed(self, reason: str, *, planned: bool) -> None:
        """Its process has been reaped, so nothing of that generation can touch anything any more."""
        if self.rebooting:  # that is no failure; `reboot.settle` goes on
            return
        if self.on_root_failure is RootFailurePolicy.HALT or not self.root_is_up:
            while_booting = "" if self.root_is_up else " while it booted"
            self.effects.append(Halt(f"the root partition died{while_booting} ({reason})"))
            return
        if not planned:
            horizon_ns = self.now_ns - ROOT_FAILURES_WITHIN_MS * 1_000_000
            self.root_failures_ns = [when for when in self.root_failures_ns if when > horizon_ns]
            self.root_failures_ns.append(self.now_ns)
        if len(self.root_failures_ns) > ROOT_FAILURES_MAX:
            within_s = ROOT_FAILURES_WITHIN_MS // 1000
            self.effects.append(
                Halt(f"the root failed {len(self.root_failures_ns)} times in {within_s} s, at last: {reason}")
            )
            return
        self.root_generation += 1
        root = self.partitions[ROOT_PARTITION]
        if root.files:  # the one that just failed did not ask for them
            self.effects.append(DropFiles(ROOT_PARTITION))
        root.process, root.files = Process.STARTING, self.root_files
        self.effects.append(ReplaceRoot())


@dataclass(frozen=True, slots=True)
class Call:
    """One hypercall being handled: its privilege, relation and states are checked already."""

    machine: Machine
    caller: Partition
    target: Partition
    files: int  # descriptors that came with it
