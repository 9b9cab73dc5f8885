"""What the state machine asks of the world.

Things that can fail, because the host runs out of memory or descriptors, are asked for through `Resources`
while a call is still being checked, so a failure refuses the call and nothing has changed. All the rest are
effects: they follow from a decision already made, are carried out in order, and cannot be refused.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from runtime.hypervisor.drift import Drift
from runtime.hypervisor.interrupt_counts import InterruptCounts
from runtime.hypervisor.replies import Reply

Page = bytearray | mmap.mmap | memoryview  # 4096 writable bytes, shared with the VP


@dataclass(frozen=True, slots=True)
class HostProcessor:
    """What the machine has underneath."""

    logical_processors: int = 1
    vendor: int = 2**16  # as PartitionProperty.PROCESSOR_VENDOR


@dataclass(frozen=True, slots=True)
class RouteSpec:
    """A route through the broker: a kick sets `flag` in the VP's SIEF page and rings the port's doorbell."""

    route: int
    partition: int  # the port's owner
    port: int
    vp: int
    flag: int  # bit in the SIEF page


class Resources(Protocol):
    """What handlers take before they change state. Each raises OSError if the host has no more to give."""

    def create_slot(self, slot: int, pages: int) -> None: ...
    def create_vp(self, partition: int, vp: int) -> tuple[Page, Page]:
        """SIM and SIEF page, zeroed; and the interrupt line."""

    def create_doorbell(self, partition: int, port: int) -> None: ...
    def create_route(self, spec: RouteSpec) -> None:
        """The kick and its route. The port's doorbell exists."""

    def move_route(self, spec: RouteSpec) -> None:
        """From now on its kicks set this VP's flag. Cannot fail: both exist."""

    def route_counts(self, route: int) -> InterruptCounts:
        """What came of its kicks so far."""

    def create_interrupt_page(self, partition: int, vp: int) -> Page:
        """Zeroed. It goes with its VP."""

    def create_reference_page(self, partition: int, created_ns: int | None) -> None:
        """created_ns: as SetReferencePage has it."""

    @property
    def tsc_hz(self) -> int:
        """0: there is no TSC to be relied on."""

    def processor_time_ns(self, pid: int, thread: int) -> int:
        """Of one thread, or, with 0, of the whole process."""

    def has_thread(self, pid: int, thread: int) -> bool: ...
    def read_slot(self, slot: int, byte_offset: int, byte_count: int) -> bytes:
        """Fewer bytes if the host cannot read them."""

    def create_watch(self, partition: int) -> None: ...
    def create_statistics_page(self, page: int) -> Page:
        """Zeroed; only we write it."""

    def create_endpoint(self, endpoint: int) -> None:
        """A connected pair of sockets: one end for who asks, one that waits to be claimed."""

    def write_slot(self, slot: int, byte_offset: int, data: bytes) -> None: ...

    # What only the host can measure. None of these fails; what is not known is 0.

    @property
    def processor(self) -> HostProcessor: ...
    def processor_times_ns(self, lp: int) -> tuple[int, int]:
        """Run and idle time of a logical processor since the host booted."""

    def own_time_ns(self) -> int:
        """CPU time that the hypervisor itself has used."""


class SynicOperations(Protocol):
    """Atomics on SynIC pages; `bus.native` has them."""

    def synic_post(
        self, sim_page: Page, sint: int, message_type: int, sender: int, payload: bytes, /
    ) -> bool: ...
    def flag_set(self, sief_page: Page, flag: int, /) -> bool: ...
    def flag_take(self, sief_page: Page, flag: int, /) -> bool: ...


# -- effects -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CloseSlot:
    slot: int


@dataclass(frozen=True, slots=True)
class CloseVp:
    partition: int
    vp: int


@dataclass(frozen=True, slots=True)
class CloseDoorbell:
    partition: int
    port: int


@dataclass(frozen=True, slots=True)
class RemoveRoute:
    """Its kick stays valid for whoever holds it, and reaches nothing."""

    route: int


@dataclass(frozen=True, slots=True)
class QuietRoute:
    """Whether a route sets its flag without ringing, because the target's SINT is masked or polled."""

    route: int
    quiet: bool


@dataclass(frozen=True, slots=True)
class CloseReferencePage:
    partition: int


@dataclass(frozen=True, slots=True)
class SetReferencePage:
    """Its partition's time has another beginning, by CLOCK_MONOTONIC. None: it stands still."""

    partition: int
    created_ns: int | None
    drift: Drift | None = None


@dataclass(frozen=True, slots=True)
class ArmTimers:
    """Call `timers_due` at this moment of CLOCK_MONOTONIC, and not at one named before. None: not at all."""

    when_ns: int | None


@dataclass(frozen=True, slots=True)
class CloseWatch:
    partition: int


@dataclass(frozen=True, slots=True)
class CloseStatisticsPage:
    page: int


@dataclass(frozen=True, slots=True)
class CloseEndpoint:
    """Whatever end of it has not been handed out."""

    endpoint: int


@dataclass(frozen=True, slots=True)
class RefreshStatistics:
    """Call `statistics_due` after this time. Never asked for again before it has been called."""

    after_ms: int


@dataclass(frozen=True, slots=True)
class SuspendPartition:
    """Stop its process, or let it go on."""

    partition: int
    suspended: bool


@dataclass(frozen=True, slots=True)
class KeepFiles:
    """The descriptors that came with this call are for this partition's birth; earlier ones are closed."""

    partition: int


@dataclass(frozen=True, slots=True)
class DropFiles:
    partition: int


@dataclass(frozen=True, slots=True)
class RaiseLine:
    partition: int
    vp: int


@dataclass(frozen=True, slots=True)
class RingDoorbell:
    partition: int
    port: int


@dataclass(frozen=True, slots=True)
class RaiseWatch:
    partition: int


@dataclass(frozen=True, slots=True)
class SpawnPartition:
    """Answered by `process_started`, then `process_exited`; or by `process_exited` alone."""

    partition: int
    path: str
    module: str


@dataclass(frozen=True, slots=True)
class LoadDriver(SpawnPartition):
    """The same, into this very process. It has none of its own that could be killed."""


@dataclass(frozen=True, slots=True)
class KillPartition:
    """Answered by `process_exited`, also when it was still being spawned."""

    partition: int


@dataclass(frozen=True, slots=True)
class ReplaceRoot:
    """Wake the standby, or spawn a new process for partition 1. Answered as SpawnPartition is.

    What the first root was adopted with for its successors is kept for the new one's birth.
    """


@dataclass(frozen=True, slots=True)
class CompleteCall:
    """Send this reply to the partition whose call was left pending."""

    partition: int
    reply: Reply


@dataclass(frozen=True, slots=True)
class CheckHeartbeat:
    """Call `heartbeat_due` after this time: once, and no more at the time that an earlier one named."""

    partition: int
    after_ms: int


@dataclass(frozen=True, slots=True)
class Announce:
    """An event for the platform, such as "partition.started"."""

    kind: str
    fields: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Halt:
    """The machine goes down: kill every process, tell the platform why, exit."""

    reason: str


HostEffect = (  # on memory, lines and routes, by their ids alone
    CloseSlot
    | CloseVp
    | CloseDoorbell
    | RemoveRoute
    | QuietRoute
    | CloseReferencePage
    | SetReferencePage
    | CloseWatch
    | CloseStatisticsPage
    | CloseEndpoint
    | DropFiles
    | RaiseLine
    | RingDoorbell
    | RaiseWatch
)
Effect = (
    HostEffect
    | KeepFiles
    | SpawnPartition
    | LoadDriver
    | KillPartition
    | ReplaceRoot
    | CompleteCall
    | CheckHeartbeat
    | ArmTimers
    | Announce
    | Halt
    | RefreshStatistics
    | SuspendPartition
)
