"""The host's records of one guest: its channels, their GPADLs, and both as plain values for a snapshot."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any
from uuid import UUID

from bus.channel_actions import (
    Action,
    CloseChannel,
    MapGpadl,
    ModifyChannel,
    OfferParameters,
    OpenChannel,
    UnmapGpadl,
)
from bus.channel_messages import MAX_CHANNELS, OfferFlags
from bus.channel_states import (
    RING_STATES,
    STARTING_STATES,
    STOPPING_STATES,
    WITHDRAWN_STATES,
    ChannelState,
)
from bus.memory import MAX_GPFN
from bus.packets import GpaRange
from bus.protocol_errors import LocalProtocolError

State = dict[str, Any]  # str, int, bytes, bool, None, and lists and dicts of them: msgpack takes it as it is

_Identity = tuple[UUID, UUID, int]


class GpadlStage(IntEnum):
    """How far a GPADL is. The numbers stand in saved state."""

    MAPPING = 0  # the device is being given the pages; the guest waits for GPADL_CREATED
    MAPPED = 1
    UNMAPPING = 2
    DEAD = 3  # of a withdrawn channel: no page behind it; the guest may still tear it down


class GpadlFate(IntEnum):
    """What becomes of a GPADL once its pages are unmapped. The numbers stand in saved state."""

    LIVE = 0  # not to be unmapped
    FORGET = 1
    TORNDOWN = 2  # the guest is owed GPADL_TORNDOWN
    DEAD = 3


@dataclass(slots=True)
class HostGpadl:
    gpadl: int
    ranges: tuple[GpaRange, ...]  # none once it is dead
    stage: GpadlStage = GpadlStage.MAPPING
    fate: GpadlFate = GpadlFate.LIVE

    @property
    def pages(self) -> int:
        return sum(part.pages for part in self.ranges)


@dataclass(slots=True)
class HostChannel:
    relid: int
    parameters: OfferParameters
    state: ChannelState = ChannelState.CLIENT_RELEASED
    known: bool = False  # the guest was sent the offer, and has not let go of it
    request: OpenChannel | None = None  # the guest's latest
    open_id: int = 0
    moves: list[int] = field(default_factory=list)  # target VPs of the interrupt, under way
    successor: OfferParameters | None = None  # to be offered under this relid when the guest has let go of it
    gpadls: dict[int, HostGpadl] = field(default_factory=dict)

    @property
    def is_there(self) -> bool:
        """Whether the guest has the offer, or will have it: it was not withdrawn, or was made again since."""
        return self.state not in WITHDRAWN_STATES or self.successor is not None

    @property
    def device_busy(self) -> bool:
        return self.state in STARTING_STATES or self.state in STOPPING_STATES

    @property
    def busy(self) -> bool:
        """Something that was asked for has not been reported done."""
        moving = (GpadlStage.MAPPING, GpadlStage.UNMAPPING)
        return (
            self.device_busy
            or bool(self.moves)
            or any(gpadl.stage in moving for gpadl in self.gpadls.values())
        )

    def uses_ring(self, gpadl: int) -> bool:
        """Whether the rings of an open, or of one under way, lie in this GPADL."""
        return self.state in RING_STATES and self.request is not None and self.request.ring_gpadl == gpadl


class ChannelTable:
    """Channels by relid and by identity; GPADLs by handle."""

    __slots__ = ("_by_identity", "_channels", "_last_relid", "_owners", "pages")

    def __init__(self) -> None:
        self._channels: dict[int, HostChannel] = {}
        self._by_identity: dict[_Identity, int] = {}
        self._owners: dict[int, HostChannel] = {}  # of GPADLs
        self._last_relid = 0
        self.pages = 0  # of all GPADLs

    def __iter__(self) -> Iterator[HostChannel]:
        """A copy: channels may be removed on the way."""
        return iter(tuple(self._channels.values()))

    def __len__(self) -> int:
        return len(self._channels)

    def get(self, relid: int) -> HostChannel | None:
        return self._channels.get(relid)

    def find(self, identity: _Identity) -> HostChannel | None:
        relid = self._by_identity.get(identity)
        return None if relid is None else self._channels[relid]

    def sub_channels(self, primary: HostChannel) -> list[HostChannel]:
        if primary.parameters.sub_channel_index != 0:
            return []
        device = primary.parameters.identity[:2]
        return [one for one in self if one.parameters.identity[:2] == device and one is not primary]

    def add(self, parameters: OfferParameters) -> HostChannel:
        """A channel with a relid of its own. Relids rotate, so that late signals rarely meet a successor."""
        if len(self._channels) >= MAX_CHANNELS:
            raise LocalProtocolError(f"all {MAX_CHANNELS} channels are in use")
        relid = self._last_relid
        while (relid := relid % MAX_CHANNELS + 1) in self._channels:
            pass
        self._last_relid = relid
        channel = self._channels[relid] = HostChannel(relid, parameters)
        self._by_identity[parameters.identity] = relid
        return channel

    def remove(self, channel: HostChannel) -> None:
        for gpadl in tuple(channel.gpadls):
            self.remove_gpadl(channel, gpadl)
        del self._channels[channel.relid]
        del self._by_identity[channel.parameters.identity]

    def succeed(self, channel: HostChannel) -> HostChannel:
        """The channel's successor takes its place, its relid and its identity, as if newly added."""
        assert channel.successor is not None
        for gpadl in tuple(channel.gpadls):
            self.remove_gpadl(channel, gpadl)
        successor = self._channels[channel.relid] = HostChannel(channel.relid, channel.successor)
        return successor

    @property
    def gpadl_count(self) -> int:
        return len(self._owners)

    def gpadl_owner(self, gpadl: int) -> HostChannel | None:
        return self._owners.get(gpadl)

    def add_gpadl(self, channel: HostChannel, gpadl: HostGpadl) -> None:
        channel.gpadls[gpadl.gpadl] = gpadl
        self._owners[gpadl.gpadl] = channel
        self.pages += gpadl.pages

    def bury_gpadl(self, gpadl: HostGpadl) -> None:
        """Its pages are gone; the handle stays until the guest lets go of it."""
        self.pages -= gpadl.pages
        gpadl.ranges, gpadl.stage, gpadl.fate = (), GpadlStage.DEAD, GpadlFate.DEAD

    def remove_gpadl(self, channel: HostChannel, gpadl: int) -> None:
        self.pages -= channel.gpadls.pop(gpadl).pages
        del self._owners[gpadl]

    def pending(self) -> list[Action]:
        """Actions that were handed out and have not been reported done."""
        actions: list[Action] = []
        for channel in self:
            for gpadl in channel.gpadls.values():
                if gpadl.stage is GpadlStage.MAPPING:
                    actions.append(MapGpadl(channel.relid, gpadl.gpadl, gpadl.ranges))
                elif gpadl.stage is GpadlStage.UNMAPPING:
                    actions.append(UnmapGpadl(channel.relid, gpadl.gpadl))
            actions += [ModifyChannel(channel.relid, target_vp) for target_vp in channel.moves]
            if channel.state in STARTING_STATES:
                assert channel.request is not None
                actions.append(channel.request)
            elif channel.state in STOPPING_STATES:
                actions.append(CloseChannel(channel.relid))
        return actions

    def standing(self) -> list[Action]:
        """Actions that are done and in force."""
        actions: list[Action] = []
        for channel in self:
            actions += [
                MapGpadl(channel.relid, gpadl.gpadl, gpadl.ranges)
                for gpadl in channel.gpadls.values()
                if gpadl.stage is GpadlStage.MAPPED
            ]
            if channel.state is ChannelState.OPEN:
                assert channel.request is not None
                actions.append(channel.request)
        return actions

    def to_state(self) -> State:
        return {
            "last_relid": self._last_relid,
            "channels": [_channel_to_state(channel) for channel in self._channels.values()],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "ChannelTable":
        table = cls()
        table._last_relid = state["last_relid"]
        for saved in state["channels"]:
            channel = HostChannel(
                relid=saved["relid"],
                parameters=_parameters_from_state(saved["parameters"]),
                state=ChannelState(saved["state"]),
                known=saved["known"],
                request=None if saved["request"] is None else OpenChannel(saved["relid"], *saved["request"]),
                open_id=saved["open_id"],
                moves=list(saved["moves"]),
                successor=None if saved["successor"] is None else _parameters_from_state(saved["successor"]),
            )
            table._channels[channel.relid] = channel
            table._by_identity[channel.parameters.identity] = channel.relid
            for gpadl, stage, fate, ranges in saved["gpadls"]:
                parts = tuple(_range_from_state(part) for part in ranges)
                table.add_gpadl(channel, HostGpadl(gpadl, parts, GpadlStage(stage), GpadlFate(fate)))
        return table


def _channel_to_state(channel: HostChannel) -> State:
    request, successor = channel.request, channel.successor
    return {
        "relid": channel.relid,
        "parameters": _parameters_to_state(channel.parameters),
        "state": int(channel.state),
        "known": channel.known,
        "request": None
        if request is None
        else [
            request.ring_gpadl,
            request.downstream_page_offset,
            request.target_vp,
            request.connection_id,
            request.event_flag,
            request.user_data,
        ],
        "open_id": channel.open_id,
        "moves": list(channel.moves),
        "successor": None if successor is None else _parameters_to_state(successor),
        "gpadls": [
            [gpadl.gpadl, int(gpadl.stage), int(gpadl.fate), [_range_to_state(part) for part in gpadl.ranges]]
            for gpadl in channel.gpadls.values()
        ],
    }


def _parameters_to_state(parameters: OfferParameters) -> State:
    return {
        "interface": parameters.interface.bytes,
        "instance": parameters.instance.bytes,
        "sub_channel_index": parameters.sub_channel_index,
        "flags": int(parameters.flags),
        "user_data": parameters.user_data,
        "mmio_megabytes": parameters.mmio_megabytes,
        "mmio_megabytes_optional": parameters.mmio_megabytes_optional,
    }


def _parameters_from_state(state: Mapping[str, Any]) -> OfferParameters:
    return OfferParameters(
        interface=UUID(bytes=state["interface"]),
        instance=UUID(bytes=state["instance"]),
        sub_channel_index=state["sub_channel_index"],
        flags=OfferFlags(state["flags"]),
        user_data=state["user_data"],
        mmio_megabytes=state["mmio_megabytes"],
        mmio_megabytes_optional=state["mmio_megabytes_optional"],
    )


def _range_to_state(part: GpaRange) -> list[int | bytes]:
    """[offset, count, first PFN] where the pages are consecutive, as slots make them; else with the PFNs."""
    first, *others = part.page_numbers
    consecutive = first <= MAX_GPFN - part.pages and others == list(range(first + 1, first + part.pages))
    return [part.byte_offset, part.byte_count, first if consecutive else part.pfns]


def _range_from_state(state: list[int | bytes]) -> GpaRange:
    byte_offset, byte_count, pages = state
    assert isinstance(byte_offset, int)
    assert isinstance(byte_count, int)
    if isinstance(pages, int):
        return GpaRange.contiguous(pages, byte_count, byte_offset)
    return GpaRange(byte_offset, byte_count, pages)
