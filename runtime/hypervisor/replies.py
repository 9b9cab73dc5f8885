"""What a hypercall comes back with, and how a handler refuses one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from runtime.abi import HvStatus


class Refused(Exception):
    """Raised by a handler before it changes anything; becomes the call's status."""

    def __init__(self, status: HvStatus) -> None:
        super().__init__(status)
        self.status: Final = status


# -- descriptors that a reply carries, by what they stand for; the loop knows their numbers ----------------


@dataclass(frozen=True, slots=True)
class SlotHandle:
    slot: int
    writable: bool


@dataclass(frozen=True, slots=True)
class VpHandle:
    """Three descriptors: SIM page, SIEF page, interrupt line."""

    partition: int
    vp: int


@dataclass(frozen=True, slots=True)
class DoorbellHandle:
    partition: int
    port: int


@dataclass(frozen=True, slots=True)
class KickHandle:
    """What the sender of a route through the broker writes to."""

    route: int


@dataclass(frozen=True, slots=True)
class ReferencePageHandle:
    """Read only."""

    partition: int


@dataclass(frozen=True, slots=True)
class InterruptPageHandle:
    partition: int
    vp: int


@dataclass(frozen=True, slots=True)
class WatchHandle:
    partition: int


@dataclass(frozen=True, slots=True)
class StatisticsHandle:
    page: int


@dataclass(frozen=True, slots=True)
class EndpointHandle:
    """One end of a pair of sockets. It moves, as files do."""

    endpoint: int
    waiting: bool  # the end that waited for who owns the port; else the other


@dataclass(frozen=True, slots=True)
class FilesHandle:
    """All files kept for a partition. They move: the broker's copies are closed once the reply is sent."""

    partition: int


Handle = (
    SlotHandle
    | VpHandle
    | DoorbellHandle
    | KickHandle
    | ReferencePageHandle
    | InterruptPageHandle
    | WatchHandle
    | StatisticsHandle
    | EndpointHandle
    | FilesHandle
)


@dataclass(frozen=True, slots=True)
class Reply:
    status: HvStatus = HvStatus.SUCCESS
    values: dict[str, object] = field(default_factory=dict)
    handles: tuple[Handle, ...] = ()


DONE: Final = Reply()
