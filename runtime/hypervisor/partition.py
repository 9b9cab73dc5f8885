"""What the machine keeps of a partition: `partitions` says how it comes to be and ends."""

from __future__ import annotations

from dataclasses import dataclass, field

from runtime.abi import (
    ADDRESS_BITS_MAX,
    DEFAULT_PRIVILEGES,
    ExitStatus,
    PartitionProperty,
    PartitionState,
    Privilege,
)
from runtime.hypervisor.device_domain import DeviceDomain
from runtime.hypervisor.drift import Drift
from runtime.hypervisor.gpa_space import GpaSpace
from runtime.hypervisor.intercept_state import Intercepts
from runtime.hypervisor.pool import Pool
from runtime.hypervisor.port import Connection, Port
from runtime.hypervisor.program import Process, Program
from runtime.hypervisor.statistics_page import StatsKey, StatsPage
from runtime.hypervisor.synthetic_timers import TIMER_BURST, TIMER_GRID_NS, TIMER_SPACING_NS, Pace
from runtime.hypervisor.virtual_processor import GuestRegisters, VirtualProcessor


@dataclass(slots=True)
class Partition:
    id: int
    parent: int | None  # None: the root
    depth: int
    created_ns: int
    state: PartitionState = PartitionState.UNINITIALIZED
    privileges: Privilege = DEFAULT_PRIVILEGES
    properties: dict[PartitionProperty, int] = field(default_factory=dict)  # those with another value
    pool: Pool = field(default_factory=Pool)
    children: list[int] = field(default_factory=list)  # ascending
    orphaned: bool = False  # its parent is going: nobody will delete it, so it goes by itself
    program: Program | None = None
    files: int = 0  # descriptors kept for its birth
    process: Process = Process.NONE
    is_loaded: bool = False  # what stands for its process is a thread of ours: nobody ends it alone
    pid: int | None = None
    exit_status: ExitStatus | None = None
    failure: str | None = None  # why we had to kill it
    heartbeat_within_ms: int = 0
    heartbeat_due_ns: int | None = None  # None: nothing was promised
    heartbeat_timer_ns: int | None = None  # when its one timer comes; None: there is none
    held_since_ns: int | None = None  # the scheduler has stopped it until it is its turn
    watched_children: bool = False  # has claimed the eventfd of WATCH_CHILDREN
    gpa: GpaSpace = field(default_factory=GpaSpace)
    vps: dict[int, VirtualProcessor] = field(default_factory=dict)
    guest: GuestRegisters = field(default_factory=GuestRegisters)
    has_reference_page: bool = False
    timer_pace: Pace = field(default_factory=lambda: Pace(TIMER_SPACING_NS, TIMER_BURST, TIMER_GRID_NS))
    intercepts: Intercepts = field(default_factory=Intercepts)
    ports: dict[int, Port] = field(default_factory=dict)
    connections: dict[int, Connection] = field(default_factory=dict)
    suspended: bool = False  # its process is stopped until the parent, or the operator, lets it go on
    pause_froze: bool = False  # it is paused, and its time stands still because of that
    frozen_ns: int | None = None  # since when its reference time stands still
    drift: Drift | None = None  # a fault on purpose: its reference time runs wrong
    address_bits: int = ADDRESS_BITS_MAX
    device_domains: dict[int, DeviceDomain] = field(default_factory=dict)
    device_domain: tuple[int, int] | None = None  # (owner, domain) that it is attached to as a device
    stats_pages: dict[StatsKey, StatsPage] = field(default_factory=dict)  # that it has mapped

    @property
    def name(self) -> str:
        return self.program.name if self.program is not None else f"partition-{self.id}"

    @property
    def outlives_process(self) -> bool:
        """Its memory, ports and connections stay where they are for the next process, as the root's do."""
        return bool(self.properties.get(PartitionProperty.OUTLIVES_PROCESS))

    @property
    def may_start(self) -> bool:
        """Whether VP 0 can be given a process."""
        return self.process is Process.NONE or (self.process is Process.ENDED and self.outlives_process)
