"""What a channel server asks its owner to do, and what the owner reports back when it is done.

Actions of one list are to be carried out in its order. Those that take time are answered, each exactly once,
by the completion that their docstring names, in whatever order they finish. The server never hands out an
unmap while the device may still use the memory, nor a second start before the stop has been reported.
"""

from dataclasses import dataclass
from uuid import UUID

from bus.channel_message_codec import USER_DATA_BYTES, FeatureFlags
from bus.channel_messages import STATUS_SUCCESS, OfferFlags
from bus.packets import GpaRange


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferParameters:
    """A device as its owner offers it. The two GUIDs and the index identify it."""

    interface: UUID
    instance: UUID
    sub_channel_index: int = 0  # 0: the primary, which must be offered first
    flags: OfferFlags = OfferFlags.NONE
    user_data: bytes = bytes(USER_DATA_BYTES)
    mmio_megabytes: int = 0
    mmio_megabytes_optional: int = 0

    def __post_init__(self) -> None:
        """ValueError if no offer could carry it."""
        sizes = (self.sub_channel_index, self.mmio_megabytes, self.mmio_megabytes_optional, int(self.flags))
        if len(self.user_data) != USER_DATA_BYTES or not all(0 <= size <= 0xFFFF for size in sizes):
            raise ValueError(f"impossible offer: {self!r}")

    @property
    def identity(self) -> tuple[UUID, UUID, int]:
        return self.interface, self.instance, self.sub_channel_index


# -- actions


@dataclass(frozen=True, slots=True)
class SendMessage:
    """Post to the guest, in order, as SynIC message type 1 on SINT 2 of the VP that it asked for."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class ResetConnection:
    """The guest starts over: drop every message that it has not been given yet."""


@dataclass(frozen=True, slots=True)
class ConnectionMade:
    """The guest and the server agree on a version. Later messages go to `target_vp`."""

    version: int
    features: FeatureFlags
    target_vp: int


@dataclass(frozen=True, slots=True)
class MapGpadl:
    """Give the device these pages. -> GpadlMapped"""

    relid: int
    gpadl: int
    ranges: tuple[GpaRange, ...]


@dataclass(frozen=True, slots=True)
class UnmapGpadl:
    """Take them away; once reported, nothing on the host touches them. -> GpadlUnmapped"""

    relid: int
    gpadl: int


@dataclass(frozen=True, slots=True)
class OpenChannel:
    """Start the device on these rings. -> ChannelOpened"""

    relid: int
    ring_gpadl: int
    downstream_page_offset: int  # pages from the GPADL's start to the host-to-guest ring
    target_vp: int  # VP of the guest whose flag to set; NO_INTERRUPT_VP: do not signal
    connection_id: int  # the guest signals this connection
    event_flag: int  # the flag of SINT 2 to set in the guest
    user_data: bytes


@dataclass(frozen=True, slots=True)
class CloseChannel:
    """Stop the device: every request finished or failed, the rings not touched any more. -> ChannelClosed

    Each ModifyChannel of this channel must have been reported before.
    """

    relid: int


@dataclass(frozen=True, slots=True)
class ModifyChannel:
    """Send the channel's interrupts to another VP. -> ChannelModified"""

    relid: int
    target_vp: int


@dataclass(frozen=True, slots=True)
class ConnectStream:
    """hv_sock: the guest wants to reach a service. Offer it a channel with the service as interface and the endpoint as
    instance, or call `ChannelServer.refuse_stream`. Not kept: what a dying root had in hand gets no answer."""

    endpoint: UUID
    service: UUID
    silo: UUID | None


@dataclass(frozen=True, slots=True)
class ChannelReleased:
    """The relid is free again and means nothing until `offer` returns it anew."""

    relid: int


Action = (
    SendMessage
    | ResetConnection
    | ConnectionMade
    | MapGpadl
    | UnmapGpadl
    | OpenChannel
    | CloseChannel
    | ModifyChannel
    | ConnectStream
    | ChannelReleased
)


# -- completions; a status other than 0 reaches the guest as it is


@dataclass(frozen=True, slots=True)
class GpadlMapped:
    gpadl: int
    status: int = STATUS_SUCCESS


@dataclass(frozen=True, slots=True)
class GpadlUnmapped:
    gpadl: int


@dataclass(frozen=True, slots=True)
class ChannelOpened:
    relid: int
    status: int = STATUS_SUCCESS


@dataclass(frozen=True, slots=True)
class ChannelClosed:
    relid: int


@dataclass(frozen=True, slots=True)
class ChannelModified:
    relid: int
    status: int = STATUS_SUCCESS


Completion = GpadlMapped | GpadlUnmapped | ChannelOpened | ChannelClosed | ChannelModified
