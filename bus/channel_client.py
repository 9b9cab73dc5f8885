"""The guest's end of its VMBus connection: messages in, `channel_events` out. No socket, clock or task.

    client = ChannelClient()
    post(client.start())                         # INITIATE_CONTACT, newest version first
    for out in client.receive(payload): ...      # of each SynIC message from the host
    post(client.request_offers())                # -> Offered..., AllOffersDelivered
    handle, out = client.create_gpadl(relid, ranges)               # -> GpadlCreated
    client.open(relid, handle, downstream_page_offset=8)           # -> Opened

The host is not trusted with more than its words: `receive` raises RemoteProtocolError, with nothing changed, for
what makes no sense; messages about channels and GPADLs that are gone are ignored, because they may have crossed
ours on the way.

Sources: Linux drivers/hv/connection.c, channel_mgmt.c, channel.c.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from bus import channel_messages as messages
from bus.channel_client_states import (
    ClientChannel,
    ClientChannelState,
    ClientGpadl,
    ClientGpadlState,
    ClientStage,
)
from bus.channel_events import (
    AllOffersDelivered,
    Connected,
    ConnectionRefused,
    GpadlCreated,
    GpadlTornDown,
    Modified,
    Offered,
    Opened,
    Output,
    Rescinded,
    SendMessage,
    StreamRefused,
    Unloaded,
)
from bus.channel_message_codec import (
    USER_DATA_BYTES,
    ChannelMessage,
    ChannelMessageType,
    FeatureFlags,
    Side,
    Version,
    decode_message,
)
from bus.channel_messages import (
    LONG_OPEN_FEATURES,
    MAX_CHANNELS,
    STATUS_SUCCESS,
    ConnectionState,
    OfferChannel,
)
from bus.gpadl import gpadl_messages
from bus.packets import GpaRange
from bus.protocol_errors import LocalProtocolError, RemoteProtocolError
from bus.synic import CONTACT_CONNECTION, MESSAGE_CONNECTION

FIRST_GPADL: Final = 0xE1E10  # where Linux begins to count, too
_MAX_GPADL: Final = 0xFFFF_FFFF


class ChannelRescinded(LocalProtocolError):
    """The host has taken the channel away. What is left to do with it is `close`."""


class ChannelClient:
    """One guest's connection to its host.

    Args:
        newest, oldest: versions to try, from the first down to the second.
        features: what to ask for, from 6.0 on.
        target_vp: on which VP the host's messages shall arrive.
    """

    def __init__(
        self,
        *,
        newest: Version = Version.V6_0,
        oldest: Version = Version.V2_4,
        features: FeatureFlags = FeatureFlags.NONE,
        target_vp: int = 0,
    ) -> None:
        self._versions = [version for version in sorted(Version, reverse=True) if oldest <= version <= newest]
        self._wanted, self._target_vp = features, target_vp
        self._next_gpadl = FIRST_GPADL
        self._forget(ClientStage.DISCONNECTED)

    def _forget(self, stage: ClientStage) -> None:
        self._stage = stage
        self._version = 0  # what is being tried, or was agreed upon
        self._features = FeatureFlags.NONE
        self._post_to = MESSAGE_CONNECTION
        self._offers_requested = False
        self._channels: dict[int, ClientChannel] = {}
        self._gpadls: dict[int, ClientGpadl] = {}

    # -- what is the case

    @property
    def stage(self) -> ClientStage:
        return self._stage

    @property
    def version(self) -> int | None:
        """The version agreed upon; None while there is none."""
        return self._version if self._stage is ClientStage.CONNECTED else None

    @property
    def offers(self) -> list[OfferChannel]:
        return [channel.offer for channel in self._channels.values()]

    def channel_state(self, relid: int) -> ClientChannelState | None:
        """None: there is no such channel, or no longer."""
        channel = self._channels.get(relid)
        return None if channel is None else channel.state

    def gpadls(self, relid: int) -> list[int]:
        """Handles that the host has said yes to and that have not been given up."""
        mine = ((gpadl, self._gpadls[gpadl]) for gpadl in sorted(self._channels[relid].gpadls))
        return [gpadl for gpadl, record in mine if record.state is ClientGpadlState.CREATED]

    # -- connection

    def start(self) -> list[Output]:
        """Contact the host, newest version first. Whatever was before is forgotten, here and by the host."""
        self._forget(ClientStage.CONTACTING)
        return self._contact(self._versions)

    def contact_unreachable(self) -> list[Output]:
        """Posting INITIATE_CONTACT failed with HV_STATUS_INVALID_CONNECTION_ID: the host is older than 5.0."""
        if self._stage is not ClientStage.CONTACTING or self._version < Version.V5_0:
            raise LocalProtocolError("no contact of version 5.0 or newer is being tried")
        return self._contact([version for version in self._versions if version < Version.V5_0])

    def _contact(self, versions: Sequence[Version]) -> list[Output]:
        if not versions:
            self._forget(ClientStage.DISCONNECTED)
            return [ConnectionRefused()]
        self._version = versions[0]
        contact = messages.InitiateContact.create(self._version, self._target_vp, self._wanted)
        post_to = CONTACT_CONNECTION if self._version >= Version.V5_0 else MESSAGE_CONNECTION
        return [SendMessage(post_to, contact.encode())]

    def request_offers(self) -> list[Output]:
        """Once a connection."""
        self._check_connected()
        if self._offers_requested:
            raise LocalProtocolError("offers were requested before")
        self._offers_requested = True
        return [self._send(messages.RequestOffers())]

    def unload(self) -> list[Output]:
        """Leave: every channel and GPADL is over. Until Unloaded the host may still touch their pages."""
        self._check_connected()
        unload, version = self._send(messages.Unload()), self._version
        self._forget(ClientStage.UNLOADING)
        self._version = version
        return [unload]

    # -- channels and GPADLs

    def create_gpadl(self, relid: int, ranges: Sequence[GpaRange]) -> tuple[int, list[Output]]:
        """Hand pages to the host; -> GpadlCreated. ValueError if one GPADL cannot hold the ranges."""
        channel = self._channel(relid)
        handle = self._next_gpadl
        while handle in self._gpadls:
            handle = FIRST_GPADL if handle >= _MAX_GPADL else handle + 1
        sent: list[Output] = [self._send(part) for part in gpadl_messages(relid, handle, ranges)]
        self._next_gpadl = FIRST_GPADL if handle >= _MAX_GPADL else handle + 1
        self._gpadls[handle] = ClientGpadl(relid)
        channel.gpadls.add(handle)
        return handle, sent

    def teardown_gpadl(self, gpadl: int) -> list[Output]:
        """Take pages back; -> GpadlTornDown, which comes at once, unsent, when the channel has been rescinded."""
        if (record := self._gpadls.get(gpadl)) is None:
            raise LocalProtocolError(f"no GPADL {gpadl:#x}")
        channel = self._channels[record.relid]
        if channel.state is ClientChannelState.RESCINDED:
            self._drop_gpadl(gpadl)
            return [GpadlTornDown(gpadl)]
        if record.state is not ClientGpadlState.CREATED:
            raise LocalProtocolError(f"GPADL {gpadl:#x} is {record.state.value}")
        if channel.state is not ClientChannelState.CLOSED and channel.ring_gpadl == gpadl:
            raise LocalProtocolError(f"channel {record.relid} is {channel.state.value} on GPADL {gpadl:#x}")
        record.state = ClientGpadlState.TEARING_DOWN
        return [self._send(messages.GpadlTeardown(record.relid, gpadl))]

    def open(
        self,
        relid: int,
        gpadl: int,
        downstream_page_offset: int,
        target_vp: int = 0,
        user_data: bytes = b"",
    ) -> list[Output]:
        """Open a channel on the rings in a GPADL; -> Opened.

        Args:
            gpadl: GpadlCreated has said yes to it.
            downstream_page_offset: pages from its start to the host-to-guest ring's header.
            target_vp: whose event flag, number `relid`, the host sets; NO_INTERRUPT_VP: nobody's.
            user_data: at most 120 bytes for the device.
        """
        channel = self._channel(relid)
        if channel.state is not ClientChannelState.CLOSED:
            raise LocalProtocolError(f"channel {relid} is {channel.state.value}")
        if gpadl not in channel.gpadls or self._gpadls[gpadl].state is not ClientGpadlState.CREATED:
            raise LocalProtocolError(f"channel {relid} has no GPADL {gpadl:#x}")
        if len(user_data) > USER_DATA_BYTES:
            raise LocalProtocolError(f"user data of {len(user_data)} bytes")
        user_data = user_data.ljust(USER_DATA_BYTES, b"\0")
        message = messages.OpenChannel(relid, relid, gpadl, target_vp, downstream_page_offset, user_data)
        if self._features & LONG_OPEN_FEATURES:
            connection = channel.offer.connection_id
            message = messages.OpenChannel(
                relid, relid, gpadl, target_vp, downstream_page_offset, user_data, connection, relid, 0
            )
        sent = self._send(message)
        channel.state, channel.ring_gpadl = ClientChannelState.OPENING, gpadl
        return [sent]

    def modify(self, relid: int, target_vp: int) -> list[Output]:
        """Have an open channel's interrupts go to another VP; -> Modified, from version 5.3 on."""
        channel = self._channel(relid)
        if channel.state is not ClientChannelState.OPEN or self._version < Version.V4_1:
            raise LocalProtocolError(f"channel {relid} is {channel.state.value}")
        return [self._send(messages.ModifyChannel(relid, target_vp))]

    def connect_stream(self, endpoint: UUID, service: UUID, silo: UUID | None = None) -> list[Output]:
        """hv_sock: -> an offer with these as instance and interface, or StreamRefused; before 4.1 silence is a no."""
        self._check_connected()
        if self._version < (Version.V4_0 if silo is None else Version.V5_2):
            raise LocalProtocolError("the host's version has no such streams")
        return [self._send(messages.TlConnectRequest(endpoint, service, silo))]

    def close(self, relid: int) -> list[Output]:
        """Close an open channel; its GPADLs stay. Or let go of one that has been rescinded, GPADLs and all."""
        channel = self._channels.get(relid)
        if channel is not None and channel.state is ClientChannelState.RESCINDED:
            return [self._release(relid)]
        if self._channel(relid).state is not ClientChannelState.OPEN:
            raise LocalProtocolError(f"channel {relid} is not open")
        self._channels[relid].state = ClientChannelState.CLOSED
        return [self._send(messages.CloseChannel(relid))]

    def _release(self, relid: int) -> SendMessage:
        for gpadl in tuple(self._channels[relid].gpadls):
            self._drop_gpadl(gpadl)
        del self._channels[relid]
        return self._send(messages.RelidReleased(relid))

    def _drop_gpadl(self, gpadl: int) -> None:
        self._channels[self._gpadls.pop(gpadl).relid].gpadls.discard(gpadl)

    def _channel(self, relid: int) -> ClientChannel:
        self._check_connected()
        if (channel := self._channels.get(relid)) is None:
            raise LocalProtocolError(f"no channel {relid}")
        if channel.state is ClientChannelState.RESCINDED:
            raise ChannelRescinded(f"channel {relid} has been rescinded")
        return channel

    def _check_connected(self) -> None:
        if self._stage is not ClientStage.CONNECTED:
            raise LocalProtocolError(f"the connection is {self._stage.value}")

    def _send(self, message: ChannelMessage) -> SendMessage:
        return SendMessage(self._post_to, message.encode())

    # -- from the host

    def receive(self, data: bytes) -> list[Output]:
        """One message of the host.

        Raises:
            RemoteProtocolError: it is none, or makes no sense now. Nothing was changed; log it and drop it.
        """
        # What the host said before it heard our contact, or our unload, does not matter any more.
        awaited = _AWAITED.get(self._stage)
        if awaited is not None and data[:4] != awaited.to_bytes(4, "little"):
            return []
        message = decode_message(data, Side.HOST, self._version, self._features)
        handler = _HANDLERS.get(type(message))
        if handler is None or (awaited is None and message.message_type in _AWAITED.values()):
            raise RemoteProtocolError(f"{message.message_type.name} while {self._stage.value}")
        return handler(self, message)

    def _on_version(self, message: messages.VersionResponse) -> list[Output]:
        if not message.supported:
            return self._contact([version for version in self._versions if version < self._version])
        if message.connection_state != ConnectionState.SUCCESSFUL:
            self._forget(ClientStage.DISCONNECTED)
            return [ConnectionRefused(message.connection_state)]
        features = FeatureFlags(message.features or 0)
        if features & ~int(self._wanted):
            raise RemoteProtocolError(f"features {features:#x} that nobody asked for")
        self._stage, self._features = ClientStage.CONNECTED, features
        self._post_to = message.connection_id if self._version >= Version.V5_0 else MESSAGE_CONNECTION
        return [Connected(self._version, features)]

    def _on_unloaded(self, message: messages.UnloadResponse) -> list[Output]:
        self._forget(ClientStage.DISCONNECTED)
        return [Unloaded()]

    def _on_offer(self, offer: OfferChannel) -> list[Output]:
        if not 0 < offer.relid <= MAX_CHANNELS:
            raise RemoteProtocolError(f"an offer with relid {offer.relid}")
        if offer.relid in self._channels:
            raise RemoteProtocolError(f"a second offer with relid {offer.relid}")
        self._channels[offer.relid] = ClientChannel(offer)
        return [Offered(offer)]

    def _on_all_offers(self, message: messages.AllOffersDelivered) -> list[Output]:
        return [AllOffersDelivered()]

    def _on_rescind(self, message: messages.RescindChannelOffer) -> list[Output]:
        relid = message.relid
        if (channel := self._channels.get(relid)) is None:
            return []
        if channel.state is ClientChannelState.RESCINDED:
            raise RemoteProtocolError(f"channel {relid} rescinded twice")
        in_use = channel.state is not ClientChannelState.CLOSED or bool(channel.gpadls)
        channel.state = ClientChannelState.RESCINDED
        return [Rescinded(relid, in_use), *([] if in_use else [self._release(relid)])]

    def _on_gpadl_created(self, message: messages.GpadlCreated) -> list[Output]:
        if (record := self._gpadls.get(message.gpadl)) is None:
            return []
        if record.state is not ClientGpadlState.CREATING or record.relid != message.relid:
            raise RemoteProtocolError(f"GPADL {message.gpadl:#x} is {record.state.value}")
        if message.status == STATUS_SUCCESS:
            record.state = ClientGpadlState.CREATED
        else:
            self._drop_gpadl(message.gpadl)
        return [GpadlCreated(message.gpadl, message.status)]

    def _on_gpadl_torndown(self, message: messages.GpadlTorndown) -> list[Output]:
        if (record := self._gpadls.get(message.gpadl)) is None:
            return []
        if record.state is not ClientGpadlState.TEARING_DOWN:
            raise RemoteProtocolError(f"GPADL {message.gpadl:#x} is {record.state.value}")
        self._drop_gpadl(message.gpadl)
        return [GpadlTornDown(message.gpadl)]

    def _on_open_result(self, message: messages.OpenChannelResult) -> list[Output]:
        channel = self._channels.get(message.relid)
        if channel is None or channel.state is ClientChannelState.RESCINDED:
            return []
        if channel.state is not ClientChannelState.OPENING:
            raise RemoteProtocolError(f"channel {message.relid} is {channel.state.value}")
        opened = message.status == STATUS_SUCCESS
        channel.state = ClientChannelState.OPEN if opened else ClientChannelState.CLOSED
        return [Opened(message.relid, message.status)]

    def _on_modified(self, message: messages.ModifyChannelResponse) -> list[Output]:
        known = message.relid in self._channels
        return [Modified(message.relid, message.status)] if known else []


# In these stages one message matters, and in the others it may not come.
_AWAITED: Final = {
    ClientStage.CONTACTING: ChannelMessageType.VERSION_RESPONSE,
    ClientStage.UNLOADING: ChannelMessageType.UNLOAD_RESPONSE,
}
_HANDLERS: Final[Mapping[type[ChannelMessage], Callable[[ChannelClient, Any], list[Output]]]] = {
    messages.VersionResponse: ChannelClient._on_version,
    messages.UnloadResponse: ChannelClient._on_unloaded,
    messages.OfferChannel: ChannelClient._on_offer,
    messages.AllOffersDelivered: ChannelClient._on_all_offers,
    messages.RescindChannelOffer: ChannelClient._on_rescind,
    messages.GpadlCreated: ChannelClient._on_gpadl_created,
    messages.GpadlTorndown: ChannelClient._on_gpadl_torndown,
    messages.OpenChannelResult: ChannelClient._on_open_result,
    messages.ModifyChannelResponse: ChannelClient._on_modified,
    messages.TlConnectResult: lambda _, message: [StreamRefused(message.endpoint, message.status)],
}
