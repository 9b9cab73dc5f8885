"""What comes out of a channel client: messages to post, and what has become of the connection and its channels."""

from dataclasses import dataclass
from uuid import UUID

from bus.channel_message_codec import FeatureFlags
from bus.channel_messages import OfferChannel


@dataclass(frozen=True, slots=True)
class StreamRefused:
    """hv_sock: nobody takes the connection that we asked for."""

    endpoint: UUID
    status: int


@dataclass(frozen=True, slots=True)
class SendMessage:
    """Post to the host, in order, as SynIC message type 1."""

    connection_id: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Connected:
    version: int
    features: FeatureFlags


@dataclass(frozen=True, slots=True)
class ConnectionRefused:
    """No version is left to try; or the host supports the version and is in this state."""

    state: int | None = None


@dataclass(frozen=True, slots=True)
class Offered:
    offer: OfferChannel


@dataclass(frozen=True, slots=True)
class AllOffersDelivered:
    pass


@dataclass(frozen=True, slots=True)
class GpadlCreated:
    """With a status other than 0 the handle means nothing any more."""

    gpadl: int
    status: int


@dataclass(frozen=True, slots=True)
class GpadlTornDown:
    """The host no longer touches those pages."""

    gpadl: int


@dataclass(frozen=True, slots=True)
class Opened:
    relid: int
    status: int  # 0: the channel is open


@dataclass(frozen=True, slots=True)
class Modified:
    """Below version 5.3 the host does not tell."""

    relid: int
    status: int


@dataclass(frozen=True, slots=True)
class Rescinded:
    """The device is gone; whatever was awaited for this channel will not come.

    `in_use`: stop using its rings, then call `close`, which also forgets its GPADLs. Otherwise it has been let go.
    """

    relid: int
    in_use: bool


@dataclass(frozen=True, slots=True)
class Unloaded:
    """The host has forgotten us, and touches none of our pages."""


Output = (
    SendMessage
    | Connected
    | ConnectionRefused
    | Offered
    | AllOffersDelivered
    | GpadlCreated
    | GpadlTornDown
    | Opened
    | Modified
    | Rescinded
    | Unloaded
    | StreamRefused
)
