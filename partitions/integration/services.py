"""The integration services that there are: how each is offered, and which versions of it both ends know."""

from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from bus import guids
from bus.channel_messages import OfferFlags, PipeMode, pipe_user_data
from partitions.integration.wire import MessageType, Version

FRAMEWORKS: Final = (Version(1, 0), Version(3, 0))
DEVICE_PREFIX: Final = (
    "integration:"  # of their names among a machine's devices; no name in a config has a colon
)
RING_BYTES: Final = 16 << 10  # of each direction: room for the longest message


@dataclass(frozen=True, slots=True)
class IcService:
    """One row of SERVICES."""

    name: str
    message_type: MessageType
    interface: UUID
    instance: UUID  # a partition has one of each
    versions: tuple[Version, ...]  # of its messages

    @property
    def device(self) -> str:
        return DEVICE_PREFIX + self.name


HEARTBEAT: Final = IcService(
    "heartbeat",
    MessageType.HEARTBEAT,
    guids.HEARTBEAT,
    guids.HEARTBEAT_INSTANCE,
    (Version(1, 0), Version(3, 0)),
)
SHUTDOWN: Final = IcService(
    "shutdown",
    MessageType.SHUTDOWN,
    guids.SHUTDOWN,
    guids.SHUTDOWN_INSTANCE,
    (Version(1, 0), Version(3, 0), Version(3, 1), Version(3, 2)),
)
TIME_SYNC: Final = IcService(
    "timesync",
    MessageType.TIME_SYNC,
    guids.TIME_SYNC,
    guids.TIME_SYNC_INSTANCE,
    (Version(1, 0), Version(3, 0), Version(4, 0)),
)
KEY_VALUE: Final = IcService(
    "kvp",
    MessageType.KEY_VALUE,
    guids.KEY_VALUE_PAIRS,
    guids.KEY_VALUE_PAIRS_INSTANCE,
    (Version(1, 0), Version(3, 0), Version(4, 0), Version(5, 0)),
)
SNAPSHOT: Final = IcService(
    "vss",
    MessageType.SNAPSHOT,
    guids.SNAPSHOT,
    guids.SNAPSHOT_INSTANCE,
    (Version(4, 0), Version(5, 0), Version(6, 0), Version(7, 0)),
)
SERVICES: Final = (HEARTBEAT, SHUTDOWN, TIME_SYNC, KEY_VALUE, SNAPSHOT)
INTERFACES: Final = frozenset(service.interface for service in SERVICES)
INSTANCES: Final = {service.device: service.instance for service in SERVICES}
_MESSAGE_PIPE: Final = pipe_user_data(PipeMode.MESSAGE)


def framing_of(interface: UUID) -> dict[str, Any]:
    """What an offer of the interface says of its packets, as OfferParameters has it."""
    if interface not in INTERFACES:
        return {}
    return {"flags": OfferFlags.NAMED_PIPE, "user_data": _MESSAGE_PIPE}
