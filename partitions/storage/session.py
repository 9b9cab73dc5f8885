"""storvsp's channel set-up on the server's side: a table and a function, without I/O.

    CREATED -BEGIN-> BEGUN -QUERY_PROTOCOL_VERSION-> VERSIONED -QUERY_PROPERTIES-> DESCRIBED -END-> READY

A version that we do not speak is refused with REVISION_MISMATCH and leaves the state: the guest asks again
with an older one. Whatever comes out of order is answered INVALID_DEVICE_STATE, and changes nothing. Each
opening of the channel begins a new session. A sub-channel is READY when it is opened: what was agreed upon on its
primary holds for it, and it has no sub-channels of its own. Source: openvmm vm/devices/storage/storvsp, ProtocolState.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from partitions.storage.protocol import (
    ChannelProperties,
    MalformedPacket,
    NtStatus,
    Operation,
    Packet,
    ProtocolVersion,
    ScsiRequest,
    build_version,
    parse_sub_channel_count,
    parse_version,
)

SUPPORTED_VERSIONS: Final = frozenset(
    (ProtocolVersion.WIN6, ProtocolVersion.WIN7, ProtocolVersion.WIN8, ProtocolVersion.BLUE)
)
SNAPSHOT_VERSION: Final = 1


class SessionState(Enum):
    CREATED = "created"
    BEGUN = "begun"
    VERSIONED = "versioned"
    DESCRIBED = "described"
    READY = "ready"


_NEXT: Final[Mapping[tuple[SessionState, int], SessionState]] = {
    (SessionState.CREATED, Operation.BEGIN_INITIALIZATION): SessionState.BEGUN,
    (SessionState.BEGUN, Operation.QUERY_PROTOCOL_VERSION): SessionState.VERSIONED,
    (SessionState.VERSIONED, Operation.QUERY_PROPERTIES): SessionState.DESCRIBED,
    (SessionState.DESCRIBED, Operation.END_INITIALIZATION): SessionState.READY,
    (SessionState.DESCRIBED, Operation.CREATE_SUB_CHANNELS): SessionState.DESCRIBED,
    (SessionState.READY, Operation.CREATE_SUB_CHANNELS): SessionState.READY,
    (SessionState.READY, Operation.EXECUTE_SRB): SessionState.READY,
    (SessionState.READY, Operation.RESET_LUN): SessionState.READY,
    (SessionState.READY, Operation.RESET_ADAPTER): SessionState.READY,
    (SessionState.READY, Operation.RESET_BUS): SessionState.READY,
}
_LED_TO: Final = {  # which operation each state of the set-up was reached by
    SessionState.BEGUN: Operation.BEGIN_INITIALIZATION,
    SessionState.VERSIONED: Operation.QUERY_PROTOCOL_VERSION,
    SessionState.DESCRIBED: Operation.QUERY_PROPERTIES,
    SessionState.READY: Operation.END_INITIALIZATION,
}
_KNOWN: Final = frozenset(operation for _, operation in _NEXT)


class SnapshotError(ValueError):
    """A saved session that this version can't take over; nothing was restored."""


@dataclass(slots=True)  # not frozen: one is made for each request, and that takes a third of the time
class Execute:
    """Carry this SRB out, then answer `packet` with its outcome."""

    packet: Packet
    request: ScsiRequest


@dataclass(slots=True)
class Session:
    """One channel's negotiation. Packets in; a reply, or an SRB to execute, out."""

    properties: ChannelProperties
    state: SessionState = SessionState.CREATED
    version: int = 0  # as negotiated; 0 before
    sub_channels: int = 0  # the most that the guest has asked for, and was granted
    is_sub_channel: bool = False
    replaying: bool = False  # a predecessor may have dealt with the packet: we may be a step ahead of it

    def receive(self, packet: Packet) -> Packet | Execute:
        """The reply to send, or what to execute first. Never raises for anything that a guest wrote."""
        if self.state is SessionState.READY and packet.operation == Operation.EXECUTE_SRB:
            return self._execute(packet)
        if packet.operation not in _KNOWN:
            return packet.reply(NtStatus.INVALID_DEVICE_REQUEST)
        following = _NEXT.get((self.state, packet.operation))
        if self.is_sub_channel and packet.operation == Operation.CREATE_SUB_CHANNELS:
            following = None
        if following is None and self.replaying and packet.operation == _LED_TO.get(self.state):
            following = self.state  # each step of the set-up can be done twice
        if following is None:
            return packet.reply(NtStatus.INVALID_DEVICE_STATE)
        match packet.operation:
            case Operation.QUERY_PROTOCOL_VERSION:
                version = parse_version(packet.body)
                if version not in SUPPORTED_VERSIONS:
                    return packet.reply(NtStatus.REVISION_MISMATCH)
                self.version = version
                reply = packet.reply(NtStatus.SUCCESS, build_version(version))
            case Operation.QUERY_PROPERTIES:
                reply = packet.reply(NtStatus.SUCCESS, self.properties.build())
            case Operation.CREATE_SUB_CHANNELS:
                if (count := parse_sub_channel_count(packet.body)) > self.properties.max_sub_channels:
                    return packet.reply(NtStatus.INVALID_PARAMETER)
                self.sub_channels = max(self.sub_channels, count)
                reply = packet.reply(NtStatus.SUCCESS)
            case _:  # BEGIN, END; and resets: requests run in order, so none is in flight when one is read
                reply = packet.reply(NtStatus.SUCCESS)
        self.state = following
        return reply

    @staticmethod
    def _execute(packet: Packet) -> Packet | Execute:
        try:
            return Execute(packet, ScsiRequest.parse(packet.body))
        except MalformedPacket:
            return packet.reply(NtStatus.INVALID_PARAMETER)

    def snapshot(self) -> dict[str, int | str]:
        """What a successor needs to go on serving the channel."""
        word: dict[str, int | str] = {"sub_channels": self.sub_channels} if self.sub_channels else {}
        return {"snapshot": SNAPSHOT_VERSION, "state": self.state.value, "version": self.version} | word

    @classmethod
    def of_sub_channel(cls, properties: ChannelProperties) -> "Session":
        return cls(properties, SessionState.READY, max(SUPPORTED_VERSIONS), is_sub_channel=True)

    @classmethod
    def restore(cls, properties: ChannelProperties, saved: Mapping[str, object]) -> "Session":
        """Raises SnapshotError unless `saved` is exactly what `snapshot` makes."""
        keys = set(saved) - {"sub_channels"}
        if keys != {"snapshot", "state", "version"} or saved["snapshot"] != SNAPSHOT_VERSION:
            raise SnapshotError(f"not a version {SNAPSHOT_VERSION} storage session: {dict(saved)!r}")
        version = saved["version"]
        try:
            state = SessionState(saved["state"])
        except ValueError as error:
            raise SnapshotError(str(error)) from error
        negotiated = state not in (SessionState.CREATED, SessionState.BEGUN)
        if not isinstance(version, int) or negotiated != (version in SUPPORTED_VERSIONS):
            raise SnapshotError(f"version {version!r} while {state.name}")
        described = state in (SessionState.DESCRIBED, SessionState.READY)
        count = saved.get("sub_channels", 0)
        if not isinstance(count, int) or not 0 <= count <= (properties.max_sub_channels if described else 0):
            raise SnapshotError(f"{count!r} sub-channels while {state.name}")
        return cls(properties, state, version, count)


# 1 + the state's place in SessionState, the sub-channels that were asked for, the version: one aligned store.
_WORD: Final = struct.Struct("<BBH")
_STATES: Final = tuple(SessionState)


def save_session(word: memoryview, session: Session) -> None:
    """Put it into 4 bytes of memory that outlives this process, before the guest hears of what it says."""
    word[:] = _WORD.pack(1 + _STATES.index(session.state), session.sub_channels, session.version)


def load_session(word: memoryview) -> dict[str, int | str] | None:
    """A snapshot of what `save_session` wrote; None: nothing. Raises SnapshotError: nothing that it writes."""
    place, sub_channels, version = _WORD.unpack(word)
    if place == 0:
        return None
    if place > len(_STATES):
        raise SnapshotError(f"storage session in state {place}")
    more = {"sub_channels": sub_channels} if sub_channels else {}
    return {"snapshot": SNAPSHOT_VERSION, "state": _STATES[place - 1].value, "version": version} | more
