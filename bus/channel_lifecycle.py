"""The life of each channel of one guest, from the host's side: offered, opened, closed, moved, withdrawn.

What is allowed when, is the table in `channel_states`; this carries it out. `channel_server` owns the connection
and finds out which of these to call.

Source: openvmm vm/devices/vmbus/vmbus_server/src/channels.rs.
"""

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from bus import channel_messages as messages
from bus.channel_actions import (
    Action,
    ChannelReleased,
    CloseChannel,
    ModifyChannel,
    OfferParameters,
    OpenChannel,
    SendMessage,
)
from bus.channel_message_codec import ChannelMessage, FeatureFlags, Version
from bus.channel_messages import (
    LONG_OPEN_FEATURES,
    NO_INTERRUPT_VP,
    STATUS_FAILURE,
    STATUS_SUCCESS,
    OfferFlags,
)
from bus.channel_states import (
    TRANSITIONS,
    WITHDRAWING_STATES,
    WITHDRAWN_STATES,
    ChannelEvent,
    ChannelState,
    Step,
)
from bus.channel_table import ChannelTable, GpadlFate, GpadlStage, HostChannel
from bus.gpadl_server import GpadlServer
from bus.memory import PAGE_BYTES
from bus.protocol_errors import LocalProtocolError, RemoteProtocolError
from bus.synic import CONTACT_CONNECTION, FLAGS_PER_SINT, MAX_CONNECTION_ID, channel_connection

MAX_MOVES: Final = 16  # of one channel's interrupt, under way
MIN_RING_PAGES: Final = 2  # a header page and one of data

# Only guests that negotiated the matching feature know these; none of them is supported.
_UNSUPPORTED_OFFER_FLAGS: Final = (
    OfferFlags.CONFIDENTIAL_RING | OfferFlags.CONFIDENTIAL_EXTERNAL_MEMORY | OfferFlags.REQUIRES_PINNED_MEMORY
)


class ConnectionStage(IntEnum):
    """The numbers stand in saved state."""

    DISCONNECTED = 0
    DISCONNECTING = 1  # devices are being stopped; then the message that asked for it is answered
    CONNECTED = 2


@dataclass(slots=True)
class HostConnection:
    """What the host and one guest agreed upon. All but the first as here unless connected."""

    vp_count: int
    stage: ConnectionStage = ConnectionStage.DISCONNECTED
    version: int = 0
    features: FeatureFlags = FeatureFlags.NONE
    target_vp: int = 0  # of messages to the guest
    offering: bool = False  # the guest has requested offers

    def possible_vp(self, target_vp: int) -> bool:
        """Whether a channel's interrupts can go there."""
        return target_vp < self.vp_count or target_vp == NO_INTERRUPT_VP


class ChannelLifecycle:
    """Events of one guest's channels in, actions out."""

    __slots__ = ("_connection", "_gpadls", "_table")

    def __init__(self, connection: HostConnection, table: ChannelTable, gpadls: GpadlServer) -> None:
        self._connection, self._table, self._gpadls = connection, table, gpadls

    # -- the host's events

    def offer(self, parameters: OfferParameters) -> tuple[int, list[Action]]:
        if parameters.sub_channel_index != 0:
            primary = self._primary(parameters)
            if primary is None or primary.state in WITHDRAWN_STATES:
                raise LocalProtocolError("a sub-channel without its primary")
        if (old := self._table.find(parameters.identity)) is not None:
            if old.is_there:
                raise LocalProtocolError(f"channel {old.relid} has this identity")
            old.successor = parameters
            return old.relid, self._advance(old, ChannelEvent.REOFFER)
        channel = self._table.add(parameters)
        return channel.relid, self.send_offer(channel)

    def revoke(self, channel: HostChannel) -> list[Action]:
        if channel.successor is not None:
            channel.successor = None
            return self._advance(channel, ChannelEvent.UNOFFER)
        for sub in self._table.sub_channels(channel):
            if sub.is_there:
                raise LocalProtocolError(f"channel {channel.relid} has sub-channel {sub.relid}")
        actions = self._advance(channel, ChannelEvent.REVOKE)
        return actions + self._gpadls.withdraw(channel) + self.settle(channel)

    def send_offer(self, channel: HostChannel) -> list[Action]:
        """The offer, if the guest can take it now; otherwise it goes with the next connection."""
        if not self._connection.offering or (channel.state, ChannelEvent.OFFER) not in TRANSITIONS:
            return []
        if channel.parameters.sub_channel_index != 0:
            primary = self._primary(channel.parameters)
            if primary is None or not primary.known:
                return []
        return self._advance(channel, ChannelEvent.OFFER)

    def _primary(self, parameters: OfferParameters) -> HostChannel | None:
        return self._table.find((parameters.interface, parameters.instance, 0))

    def reset(self, channel: HostChannel) -> list[Action]:
        """The guest starts over, or is gone."""
        channel.known = False
        self._gpadls.forget(channel)
        return self._advance(channel, ChannelEvent.RESET)

    # -- the guest's events: each raises RemoteProtocolError, with nothing changed, if it is illegal now

    def release(self, channel: HostChannel) -> list[Action]:
        self._check(channel, ChannelEvent.RELEASE)
        channel.known = False
        self._gpadls.forget(channel)
        return self._advance(channel, ChannelEvent.RELEASE) + self.settle(channel)

    def open(self, channel: HostChannel, message: messages.OpenChannel) -> list[Action]:
        if self._check(channel, ChannelEvent.OPEN) is Step.IGNORE:
            return []
        if (request := self._open_request(channel, message)) is None:
            return [_send(messages.OpenChannelResult(message.relid, message.open_id, STATUS_FAILURE))]
        channel.request, channel.open_id = request, message.open_id
        return self._advance(channel, ChannelEvent.OPEN)

    def _open_request(self, channel: HostChannel, message: messages.OpenChannel) -> OpenChannel | None:
        """None if the guest asks for what cannot be."""
        gpadl = channel.gpadls.get(message.ring_gpadl)
        if gpadl is None or gpadl.stage is not GpadlStage.MAPPED or gpadl.fate is not GpadlFate.LIVE:
            return None
        if any(part.byte_offset or part.byte_count % PAGE_BYTES for part in gpadl.ranges):
            return None
        if not MIN_RING_PAGES <= message.downstream_page_offset <= gpadl.pages - MIN_RING_PAGES:
            return None
        if not self._connection.possible_vp(message.target_vp):
            return None
        connection, flag = channel_connection(channel.relid), channel.relid
        if self._connection.features & LONG_OPEN_FEATURES:
            assert message.connection_id is not None
            assert message.event_flag is not None
            connection, flag = message.connection_id, message.event_flag
            if not CONTACT_CONNECTION < connection <= MAX_CONNECTION_ID or not 0 < flag < FLAGS_PER_SINT:
                return None
        return OpenChannel(
            channel.relid,
            message.ring_gpadl,
            message.downstream_page_offset,
            message.target_vp,
            connection,
            flag,
            message.user_data,
        )

    def close(self, channel: HostChannel) -> list[Action]:
        self._check(channel, ChannelEvent.CLOSE)
        return self._advance(channel, ChannelEvent.CLOSE)

    def modify(self, channel: HostChannel, message: messages.ModifyChannel) -> list[Action]:
        if self._check(channel, ChannelEvent.MODIFY) is Step.IGNORE:
            return []
        if not self._connection.possible_vp(message.target_vp):
            return self._answer_modify(channel, STATUS_FAILURE)
        if len(channel.moves) >= MAX_MOVES:
            raise RemoteProtocolError(f"channel {channel.relid}: {MAX_MOVES} modifications are under way")
        channel.moves.append(message.target_vp)
        return [ModifyChannel(channel.relid, message.target_vp)]

    def _answer_modify(self, channel: HostChannel, status: int) -> list[Action]:
        if not channel.known or self._connection.version < Version.V5_3:
            return []
        return [_send(messages.ModifyChannelResponse(channel.relid, status))]

    # -- the device's reports: each raises LocalProtocolError if it was not asked for

    def opened(self, channel: HostChannel, status: int) -> list[Action]:
        failed = status != STATUS_SUCCESS
        return self._advance(channel, ChannelEvent.OPEN_FAILED if failed else ChannelEvent.OPENED, status)

    def closed(self, channel: HostChannel) -> list[Action]:
        if channel.moves:  # one that came later would be taken for the next open's
            raise LocalProtocolError(f"channel {channel.relid} is still being modified")
        return self._advance(channel, ChannelEvent.CLOSED)

    def modified(self, channel: HostChannel, status: int) -> list[Action]:
        if not channel.moves:
            raise LocalProtocolError(f"channel {channel.relid} is not being modified")
        target_vp = channel.moves.pop(0)
        if status == STATUS_SUCCESS and channel.state is ChannelState.OPEN:
            assert channel.request is not None
            channel.request = replace(channel.request, target_vp=target_vp)
        return self._answer_modify(channel, status)

    # -- transitions

    def _check(self, channel: HostChannel, event: ChannelEvent) -> Step:
        """What the guest's event would lead to. RemoteProtocolError if it is illegal now."""
        if (transition := TRANSITIONS.get((channel.state, event))) is None:
            raise RemoteProtocolError(f"{event.name} of channel {channel.relid} while {channel.state.name}")
        return transition[1]

    def _advance(
        self, channel: HostChannel, event: ChannelEvent, status: int = STATUS_SUCCESS
    ) -> list[Action]:
        if (transition := TRANSITIONS.get((channel.state, event))) is None:
            raise LocalProtocolError(f"{event.name} of channel {channel.relid} while {channel.state.name}")
        channel.state, step = transition
        relid = channel.relid
        match step:
            case Step.SEND_OFFER:
                channel.known = True
                return [_send(_offer_message(channel))]
            case Step.OPEN_DEVICE | Step.REOPEN_DEVICE:
                assert channel.request is not None
                return [channel.request]
            case Step.REPLY_OPENED | Step.REPLY_OPEN_FAILED:
                return [_send(messages.OpenChannelResult(relid, channel.open_id, status))]
            case Step.CLOSE_DEVICE:
                return [CloseChannel(relid)]
            case Step.SEND_RESCIND:
                return [_send(messages.RescindChannelOffer(relid))]
            case Step.REMOVE:
                return self._remove(channel)
            case Step.NOTHING | Step.IGNORE | Step.REMEMBER_OPEN | Step.MOVE_INTERRUPT:
                return []

    def settle(self, channel: HostChannel) -> list[Action]:
        """Go on with what waited for the device or for memory, if it need not wait any longer."""
        actions = self._gpadls.sweep(channel)
        if channel.state is not ChannelState.REVOKING or channel.busy:
            return actions
        if any(sub.state in WITHDRAWING_STATES for sub in self._table.sub_channels(channel)):
            return actions  # their rescinds go first
        event = ChannelEvent.WITHDRAWN if channel.known else ChannelEvent.VANISHED
        actions += self._advance(channel, event)
        if channel.known and channel.successor is not None:
            actions += self._advance(channel, ChannelEvent.REOFFER)
        primary = self._primary(channel.parameters)
        if primary is not None and primary is not channel:
            actions += self.settle(primary)  # it may have waited for this one
        return actions

    def _remove(self, channel: HostChannel) -> list[Action]:
        """The relid is free, unless the same device has been offered again in the meantime."""
        if channel.successor is None:
            self._table.remove(channel)
            return [ChannelReleased(channel.relid)]
        return self.send_offer(self._table.succeed(channel))


def _send(message: ChannelMessage) -> SendMessage:
    return SendMessage(message.encode())


def _offer_message(channel: HostChannel) -> messages.OfferChannel:
    offered = channel.parameters
    return messages.OfferChannel(
        interface=offered.interface,
        instance=offered.instance,
        flags=offered.flags & ~int(_UNSUPPORTED_OFFER_FLAGS),
        mmio_megabytes=offered.mmio_megabytes,
        user_data=offered.user_data,
        sub_channel_index=offered.sub_channel_index,
        mmio_megabytes_optional=offered.mmio_megabytes_optional,
        relid=channel.relid,
        monitor_id=messages.MONITOR_ID_UNUSED,
        monitor_allocated=0,
        is_dedicated=1,
        connection_id=channel_connection(channel.relid),
    )
