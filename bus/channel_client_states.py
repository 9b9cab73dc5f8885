"""What a guest keeps of its VMBus connection, its channels and the pages that it handed over: see `channel_client`."""

from dataclasses import dataclass, field
from enum import Enum

from bus.channel_messages import OfferChannel


class ClientStage(Enum):
    DISCONNECTED = "disconnected"
    CONTACTING = "contacting"
    CONNECTED = "connected"
    UNLOADING = "unloading"


class ClientChannelState(Enum):
    CLOSED = "closed"  # offered
    OPENING = "opening"
    OPEN = "open"
    RESCINDED = "rescinded"  # and still in use here


class ClientGpadlState(Enum):
    CREATING = "creating"
    CREATED = "created"
    TEARING_DOWN = "tearing down"


@dataclass(slots=True)
class ClientGpadl:
    relid: int
    state: ClientGpadlState = ClientGpadlState.CREATING


@dataclass(slots=True)
class ClientChannel:
    offer: OfferChannel
    state: ClientChannelState = ClientChannelState.CLOSED
    ring_gpadl: int = 0  # while OPENING or OPEN
    gpadls: set[int] = field(default_factory=set)
