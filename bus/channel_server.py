"""The host's end of one guest's VMBus connection: messages in, actions out. No socket, clock or task.

    server = ChannelServer(vp_count=2)
    relid, actions = server.offer(OfferParameters(interface=guids.SCSI, instance=...))
    actions = server.receive(payload)            # of a SynIC message from the guest
    actions = server.completed(GpadlMapped(...))  # when an action that takes time is done

Whatever the guest sends, `receive` returns actions or raises RemoteProtocolError with nothing changed. The
owner records `to_state()` before it carries the actions out, so that a successor can take over.

Sources: openvmm vm/devices/vmbus/vmbus_server/src/channels.rs; Linux drivers/hv/connection.c, channel.c.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final
from uuid import UUID

from bus import channel_messages as messages
from bus.channel_actions import (
    Action,
    ChannelClosed,
    ChannelModified,
    ChannelOpened,
    Completion,
    ConnectionMade,
    ConnectStream,
    GpadlMapped,
    GpadlUnmapped,
    OfferParameters,
    ResetConnection,
    SendMessage,
)
from bus.channel_lifecycle import ChannelLifecycle, ConnectionStage, HostConnection
from bus.channel_message_codec import ChannelMessage, FeatureFlags, Side, Version, decode_message
from bus.channel_messages import STATUS_CONNECTION_REFUSED, ConnectionState
from bus.channel_states import ChannelState
from bus.channel_table import ChannelTable, HostChannel, State
from bus.gpadl_server import GpadlServer
from bus.protocol_errors import LocalProtocolError, RemoteProtocolError
from bus.synic import CONTACT_CONNECTION, VMBUS_SINT

SUPPORTED_FEATURES: Final = FeatureFlags.GUEST_SPECIFIED_SIGNAL_PARAMETERS
STATE_VERSION: Final = 1


class ChannelServer:
    """One guest's connection.

    Args:
        vp_count: how many VPs the guest has; what names another is refused.
        newest: the newest version to agree to.
        features: what to agree to, of SUPPORTED_FEATURES, from 6.0 on.
    """

    def __init__(
        self,
        *,
        vp_count: int = 1,
        newest: Version = Version.V6_0,
        features: FeatureFlags = SUPPORTED_FEATURES,
    ) -> None:
        if features & ~int(SUPPORTED_FEATURES):
            raise LocalProtocolError(f"features {features!r}; {SUPPORTED_FEATURES!r} are possible")
        self._newest, self._supported = newest, features
        self._connection = HostConnection(vp_count)
        self._farewell: ChannelMessage | None = None  # to be answered once disconnected
        self._leaving: set[int] = set()  # channels that the end of DISCONNECTING waits for
        self._adopt(ChannelTable(), None)

    def _adopt(self, table: ChannelTable, gpadls_in_progress: list[Any] | None) -> None:
        self._table = table
        self._gpadls = GpadlServer(table, gpadls_in_progress)
        self._channels = ChannelLifecycle(self._connection, table, self._gpadls)

    # -- for the owner

    @property
    def stage(self) -> ConnectionStage:
        return self._connection.stage

    @property
    def version(self) -> int | None:
        """The version agreed upon; None while there is none."""
        return self._connection.version or None

    def channel_state(self, relid: int) -> ChannelState | None:
        """None: there is no such channel."""
        channel = self._table.get(relid)
        return None if channel is None else channel.state

    def is_there(self, relid: int) -> bool:
        """False: it was withdrawn, and waits for the guest to let go of it; so it cannot be revoked again."""
        return self._channel(relid).is_there

    def sub_channel_index(self, relid: int) -> int:
        """0: it is a primary."""
        return self._channel(relid).parameters.sub_channel_index

    def sub_channels(self, relid: int) -> dict[int, int]:
        """Of a primary: relids by index, without those that have been revoked."""
        subs = self._table.sub_channels(self._channel(relid))
        return {sub.parameters.sub_channel_index: sub.relid for sub in subs if sub.is_there}

    def primary_of(self, relid: int) -> int:
        """Of a sub-channel; a primary is its own."""
        primary = self._table.find((*self._channel(relid).parameters.identity[:2], 0))
        assert primary is not None  # a sub-channel goes before it
        return primary.relid

    def offer(self, parameters: OfferParameters) -> tuple[int, list[Action]]:
        """A device is there. The guest hears of it as soon as it is connected and has asked for offers.

        While a withdrawn offer of the same identity has not been released, the new one waits under its relid.

        Raises:
            LocalProtocolError: the identity is in use, a sub-channel lacks its primary, or there are
                MAX_CHANNELS already.
        """
        return self._channels.offer(parameters)

    def revoke(self, relid: int) -> list[Action]:
        """The device goes away. It is stopped, its memory unmapped, the guest told; ChannelReleased comes last.

        LocalProtocolError if there is no such offer, or it still has sub-channels: they go first.
        """
        return self._channels.revoke(self._channel(relid))

    def disconnect(self) -> list[Action]:
        """The guest is gone or was reset without a farewell: as UNLOAD, but nobody is answered."""
        if self._connection.stage is ConnectionStage.DISCONNECTED:
            return []
        return self._begin_disconnect(None)

    def refuse_stream(self, endpoint: UUID, service: UUID) -> list[Action]:
        """Nobody takes a connection that the guest asked for. Before 4.1 that cannot be said; the guest times out."""
        if self._connection.version < Version.V4_1:
            return []
        return [_send(messages.TlConnectResult(endpoint, service, STATUS_CONNECTION_REFUSED))]

    def receive(self, data: bytes) -> list[Action]:
        """One message of the guest.

        Raises:
            RemoteProtocolError: it is none, or not allowed now. Nothing was changed; log it and drop it.
        """
        message = decode_message(data, Side.GUEST, self._connection.version, self._connection.features)
        handler = _HANDLERS.get(type(message))
        if handler is None:
            raise RemoteProtocolError(f"{message.message_type.name} is not supported")
        return handler(self, message)

    def completed(self, completion: Completion) -> list[Action]:
        """An action has been carried out. LocalProtocolError if it was not under way; nothing was changed."""
        match completion:
            case GpadlMapped():
                channel, actions = self._gpadls.mapped(completion)
            case GpadlUnmapped():
                channel, actions = self._gpadls.unmapped(completion)
            case ChannelOpened(relid, status):
                channel = self._channel(relid)
                actions = self._channels.opened(channel, status)
            case ChannelClosed(relid):
                channel = self._channel(relid)
                actions = self._channels.closed(channel)
            case ChannelModified(relid, status):
                channel = self._channel(relid)
                actions = self._channels.modified(channel, status)
        actions += self._channels.settle(channel)
        if not channel.busy:
            self._leaving.discard(channel.relid)
        return actions + self._finish_disconnect()

    def _channel(self, relid: int) -> HostChannel:
        if (channel := self._table.get(relid)) is None:
            raise LocalProtocolError(f"no channel {relid}")
        return channel

    # -- connection

    def _on_contact(self, message: messages.InitiateContact) -> list[Action]:
        return self._begin_disconnect(message)

    def _on_unload(self, message: messages.Unload) -> list[Action]:
        return self._begin_disconnect(message)

    def _begin_disconnect(self, farewell: ChannelMessage | None) -> list[Action]:
        actions: list[Action] = []
        if self._connection.stage is not ConnectionStage.DISCONNECTED:
            actions.append(ResetConnection())
        self._farewell = farewell
        self._forget_agreement(ConnectionStage.DISCONNECTING)
        for channel in self._table:
            actions += self._channels.reset(channel)
        for channel in self._table:
            actions += self._channels.settle(channel)
        self._leaving = {channel.relid for channel in self._table if channel.busy}
        return actions + self._finish_disconnect()

    def _forget_agreement(self, stage: ConnectionStage) -> None:
        connection = self._connection
        connection.stage, connection.version, connection.features = stage, 0, FeatureFlags.NONE
        connection.target_vp, connection.offering = 0, False

    def _finish_disconnect(self) -> list[Action]:
        """Once nothing of the old connection is in use: after the answer the guest's pages must not change."""
        if self._connection.stage is not ConnectionStage.DISCONNECTING or self._leaving:
            return []
        farewell, self._farewell = self._farewell, None
        self._connection.stage = ConnectionStage.DISCONNECTED
        if isinstance(farewell, messages.InitiateContact):
            return self._answer_contact(farewell)
        return [_send(messages.UnloadResponse())] if isinstance(farewell, messages.Unload) else []

    def _answer_contact(self, contact: messages.InitiateContact) -> list[Action]:
        version = contact.version
        if version not in tuple(Version) or version > self._newest:
            return [_send(messages.VersionResponse(0, ConnectionState.SUCCESSFUL))]
        features = contact.features & self._supported
        agreed = int(features) if version >= Version.V6_0 else None
        target_vp = contact.target_vp if version >= Version.V3_0 else 0
        one_page = bool(contact.parent_to_child_page) != bool(contact.child_to_parent_page)
        if (
            one_page
            or target_vp >= self._connection.vp_count
            or contact.sint != VMBUS_SINT
            or contact.vtl != 0
        ):
            return [_send(messages.VersionResponse(1, ConnectionState.FAILED, 0, agreed))]
        connection = self._connection
        connection.stage, connection.version = ConnectionStage.CONNECTED, version
        connection.features, connection.target_vp = features, target_vp
        post_to = CONTACT_CONNECTION if version >= Version.V5_0 else version
        response = messages.VersionResponse(1, ConnectionState.SUCCESSFUL, post_to, agreed)
        return [ConnectionMade(version, features, target_vp), _send(response)]

    # -- channels

    def _on_request_offers(self, message: messages.RequestOffers) -> list[Action]:
        if self._connection.offering:
            raise RemoteProtocolError("REQUESTOFFERS twice")
        self._connection.offering = True
        actions: list[Action] = []
        for channel in sorted(self._table, key=lambda one: (one.parameters.sub_channel_index > 0, one.relid)):
            actions += self._channels.send_offer(channel)
        return [*actions, _send(messages.AllOffersDelivered())]

    def _on_relid_released(self, message: messages.RelidReleased) -> list[Action]:
        return self._channels.release(self._known_channel(message.relid))

    def _on_open(self, message: messages.OpenChannel) -> list[Action]:
        return self._channels.open(self._known_channel(message.relid), message)

    def _on_close(self, message: messages.CloseChannel) -> list[Action]:
        return self._channels.close(self._known_channel(message.relid))

    def _on_modify(self, message: messages.ModifyChannel) -> list[Action]:
        return self._channels.modify(self._known_channel(message.relid), message)

    def _on_tl_connect(self, message: messages.TlConnectRequest) -> list[Action]:
        return [ConnectStream(message.endpoint, message.service, message.silo)]

    def _known_channel(self, relid: int) -> HostChannel:
        channel = self._table.get(relid)
        if channel is None or not channel.known:
            raise RemoteProtocolError(f"channel {relid} was not offered")
        return channel

    # -- GPADLs

    def _on_gpadl_header(self, message: messages.GpadlHeader) -> list[Action]:
        self._known_channel(message.relid)
        return self._gpadls.header(message)

    def _on_gpadl_body(self, message: messages.GpadlBody) -> list[Action]:
        return self._gpadls.body(message)

    def _on_gpadl_teardown(self, message: messages.GpadlTeardown) -> list[Action]:
        return self._gpadls.teardown(self._known_channel(message.relid), message)

    # -- takeover

    def pending(self) -> list[Action]:
        """Actions that were handed out and have not been reported done; who takes over carries them out again."""
        return self._table.pending()

    def standing(self) -> list[Action]:
        """Actions that are done and in force; who takes over carries them out too, but reports nothing."""
        connection = self._connection
        made = ConnectionMade(connection.version, connection.features, connection.target_vp)
        connected = connection.stage is ConnectionStage.CONNECTED
        return [*([made] if connected else []), *self._table.standing()]

    def to_state(self) -> State:
        """Everything, as plain values that msgpack takes."""
        connection = self._connection
        return {
            "version": STATE_VERSION,
            "settings": [connection.vp_count, int(self._newest), int(self._supported)],
            "stage": int(connection.stage),
            "protocol": connection.version,
            "features": int(connection.features),
            "target_vp": connection.target_vp,
            "offering": connection.offering,
            "farewell": None if self._farewell is None else self._farewell.encode(),
            "table": self._table.to_state(),
            "gpadls_in_progress": self._gpadls.to_state(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "ChannelServer":
        """A server that goes on where the other was. ValueError if another version saved the state."""
        if state["version"] != STATE_VERSION:
            raise ValueError(f"saved state of version {state['version']}; {STATE_VERSION} is possible")
        vp_count, newest, supported = state["settings"]
        server = cls(vp_count=vp_count, newest=Version(newest), features=FeatureFlags(supported))
        connection = server._connection
        connection.stage, connection.version = ConnectionStage(state["stage"]), state["protocol"]
        connection.features, connection.target_vp = FeatureFlags(state["features"]), state["target_vp"]
        connection.offering = state["offering"]
        if state["farewell"] is not None:
            server._farewell = decode_message(state["farewell"], Side.GUEST, Version.V6_0)
        server._adopt(ChannelTable.from_state(state["table"]), state["gpadls_in_progress"])
        if connection.stage is ConnectionStage.DISCONNECTING:
            server._leaving = {channel.relid for channel in server._table if channel.busy}
        return server


def _send(message: ChannelMessage) -> SendMessage:
    return SendMessage(message.encode())


_HANDLERS: Final[Mapping[type[ChannelMessage], Callable[[ChannelServer, Any], list[Action]]]] = {
    messages.InitiateContact: ChannelServer._on_contact,
    messages.RequestOffers: ChannelServer._on_request_offers,
    messages.RelidReleased: ChannelServer._on_relid_released,
    messages.OpenChannel: ChannelServer._on_open,
    messages.CloseChannel: ChannelServer._on_close,
    messages.ModifyChannel: ChannelServer._on_modify,
    messages.GpadlHeader: ChannelServer._on_gpadl_header,
    messages.GpadlBody: ChannelServer._on_gpadl_body,
    messages.GpadlTeardown: ChannelServer._on_gpadl_teardown,
    messages.TlConnectRequest: ChannelServer._on_tl_connect,
    messages.Unload: ChannelServer._on_unload,
}
