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

Page = bytearray | mmap.mmap | memoryview  # 4096 writable bytes, shared with the VP


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

    def create_watch(self, partition: int) -> None: ...


class SynicOperations(Protocol):
    """Atomics on SynIC pages; `bus.native` has them."""

    def synic_post(
        self, sim_page: Page, sint: int, message_type: int, sender: int, payload: bytes, /
    ) -> bool: ...
    def flag_set(self, sief_page: Page, flag: int, /) -> bool: ...


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
class CloseWatch:
    partition: int


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
class KillPartition:
    """Answered by `process_exited`, also when it was still being spawned."""

    partition: int


@dataclass(frozen=True, slots=True)
class ReplaceRoot:
    """Wake the standby, or spawn a new process for partition 1. Answered as SpawnPartition is.

    What the first root was adopted with for its successors is kept for the new one's birth.
    """


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
    | CloseWatch
    | DropFiles
    | RaiseLine
    | RingDoorbell
    | RaiseWatch
)
Effect = (
    HostEffect | KeepFiles | SpawnPartition | KillPartition | ReplaceRoot | CheckHeartbeat | Announce | Halt
)
