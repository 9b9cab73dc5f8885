"""A network without rings: frames as calls and replies, each one packet of a SOCK_SEQPACKET socket.

    head (8 bytes) | length of each frame, u32 | the frames       or, for OPEN and OPENED, head | their own fields

A client has two connections. On the first it says OPEN, and TRANSMIT with many frames; leaving it is what closes the
adapter. On the second it keeps one RECEIVE, which is answered when there are frames, or when the link has changed. All
integers are little-endian.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, Final, Self

from partitions.net.frames import ETHERNET_HEADER_BYTES, MTU_MAX, Frame

FRAMES_MAX: Final = 256  # in one message
FRAME_DATA_BYTES_MAX: Final = 128 << 10  # of all frames in one message
VLAN_TAG_BYTES: Final = 4
FRAME_BYTES_MAX: Final = ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES + MTU_MAX
_HEAD: Final = struct.Struct("<BBHI")  # kind, what else there is to say, frames, bytes behind the head
_LENGTH_BYTES: Final = 4
MESSAGE_BYTES_MAX: Final = _HEAD.size + FRAMES_MAX * _LENGTH_BYTES + FRAME_DATA_BYTES_MAX
assert _HEAD.size == 8
assert FRAME_BYTES_MAX <= FRAME_DATA_BYTES_MAX


class Kind(IntEnum):
    OPEN = 1
    TRANSMIT = 2
    RECEIVE = 3
    OPENED = 129
    TRANSMITTED = 130
    RECEIVED = 131
    REFUSED = 132


class Refusal(IntEnum):
    """Of a call that was understood. Nothing of it was done, but for what INVALID_FRAME says."""

    NOT_OPEN = 1  # this server does not know of an OPEN: it may be another one
    INVALID_FRAME = 2  # too short, or too long; those in front of it were sent


class MalformedCall(ValueError):
    """Not one of these. Nothing was done for it."""


@dataclass(frozen=True, slots=True)
class Open:
    """Or open once more, with another packet filter: what waits to be received stays."""

    KIND: ClassVar[Kind] = Kind.OPEN
    FORM: ClassVar[struct.Struct] = struct.Struct("<III")

    mtu: int  # the most that is wanted
    packet_filter: int  # partitions.net.rndis.PacketFilter
    receive_bytes: int  # of frames that are kept for the client

    def encode(self) -> bytes:
        return _message(self.KIND, 0, self.FORM.pack(self.mtu, self.packet_filter, self.receive_bytes))

    @classmethod
    def decode(cls, also: int, body: memoryview) -> Self:
        return cls(*_exactly(cls.FORM, body))


@dataclass(frozen=True, slots=True)
class Receive:
    KIND: ClassVar[Kind] = Kind.RECEIVE

    def encode(self) -> bytes:
        return _message(self.KIND, 0, b"")

    @classmethod
    def decode(cls, also: int, body: memoryview) -> Self:
        if body:
            raise MalformedCall(f"{len(body)} bytes behind a RECEIVE")
        return cls()


@dataclass(frozen=True, slots=True)
class Opened:
    KIND: ClassVar[Kind] = Kind.OPENED
    FORM: ClassVar[struct.Struct] = struct.Struct("<6sHI")

    mac: bytes
    link_up: bool
    mtu: int

    def encode(self) -> bytes:
        return _message(self.KIND, 0, self.FORM.pack(self.mac, self.link_up, self.mtu))

    @classmethod
    def decode(cls, also: int, body: memoryview) -> Self:
        mac, link_up, mtu = _exactly(cls.FORM, body)
        if not 0 < mtu <= MTU_MAX:
            raise MalformedCall(f"an MTU of {mtu}")
        return cls(mac, bool(link_up), mtu)


@dataclass(frozen=True, slots=True)
class Transmitted:
    """All of them went to the switch."""

    KIND: ClassVar[Kind] = Kind.TRANSMITTED

    def encode(self) -> bytes:
        return _message(self.KIND, 0, b"")

    @classmethod
    def decode(cls, also: int, body: memoryview) -> Self:
        if body:
            raise MalformedCall(f"{len(body)} bytes behind a TRANSMITTED")
        return cls()


@dataclass(frozen=True, slots=True)
class Refused:
    KIND: ClassVar[Kind] = Kind.REFUSED

    refusal: Refusal

    def encode(self) -> bytes:
        return _message(self.KIND, self.refusal, b"")

    @classmethod
    def decode(cls, also: int, body: memoryview) -> Self:
        try:
            return cls(Refusal(also))
        except ValueError as error:
            raise MalformedCall(f"refusal {also}") from error


@dataclass(frozen=True, slots=True)
class Transmit:
    KIND: ClassVar[Kind] = Kind.TRANSMIT

    frames: Sequence[Frame]

    def encode(self) -> bytes:
        return _with_frames(self.KIND, 0, self.frames)


@dataclass(frozen=True, slots=True)
class Received:
    KIND: ClassVar[Kind] = Kind.RECEIVED

    frames: Sequence[Frame]  # none: it is about the link
    link_up: bool

    def encode(self) -> bytes:
        return _with_frames(self.KIND, int(self.link_up), self.frames)


Call = Open | Transmit | Receive
NetReply = Opened | Transmitted | Received | Refused
_PLAIN_CALLS: Final[Mapping[int, Callable[[int, memoryview], Call]]] = {
    kind.KIND: kind.decode for kind in (Open, Receive)
}
_PLAIN_REPLIES: Final[Mapping[int, Callable[[int, memoryview], NetReply]]] = {
    kind.KIND: kind.decode for kind in (Opened, Transmitted, Refused)
}

assert Opened.FORM.size == 12
assert Open.FORM.size == 12


def decode_call(data: memoryview) -> Call:
    """What a server got; its frames are views of `data`. MalformedCall."""
    kind, also, count, body = _split(data)
    if kind == Kind.TRANSMIT:
        return Transmit(_frames(count, body))
    if count or (decode := _PLAIN_CALLS.get(kind)) is None:
        raise MalformedCall(f"call {kind}, {count} frames")
    return decode(also, body)


def decode_reply(data: memoryview) -> NetReply:
    """What a client got; its frames are views of `data`. MalformedCall."""
    kind, also, count, body = _split(data)
    if kind == Kind.RECEIVED:
        return Received(_frames(count, body), bool(also))
    if count or (decode := _PLAIN_REPLIES.get(kind)) is None:
        raise MalformedCall(f"reply {kind}, {count} frames")
    return decode(also, body)


def how_many_fit(frames: Sequence[Frame], start: int) -> int:
    """Of those from `start` on, so many go into one message."""
    count = total = 0
    for frame in frames[start : start + FRAMES_MAX]:
        total += len(frame)
        if total > FRAME_DATA_BYTES_MAX:
            break
        count += 1
    return count


def _message(kind: Kind, also: int, body: bytes, frames: int = 0) -> bytes:
    return _HEAD.pack(kind, also, frames, len(body)) + body


def _with_frames(kind: Kind, also: int, frames: Sequence[Frame]) -> bytes:
    lengths = struct.pack(f"<{len(frames)}I", *map(len, frames))
    total = len(lengths) + sum(map(len, frames))
    return b"".join((_HEAD.pack(kind, also, len(frames), total), lengths, *frames))


def _split(data: memoryview) -> tuple[int, int, int, memoryview]:
    if len(data) < _HEAD.size:
        raise MalformedCall(f"{len(data)} bytes")
    kind, also, count, length = _HEAD.unpack_from(data)
    if length != len(data) - _HEAD.size or count > FRAMES_MAX:
        raise MalformedCall(f"{len(data)} bytes, {length} of them behind the head, {count} frames")
    return kind, also, count, data[_HEAD.size :]


def _frames(count: int, body: memoryview) -> list[memoryview]:
    at = count * _LENGTH_BYTES
    if at > len(body):
        raise MalformedCall(f"{count} lengths in {len(body)} bytes")
    frames: list[memoryview] = []
    for length in struct.unpack_from(f"<{count}I", body):
        if length > len(body) - at:
            raise MalformedCall(f"a frame of {length} bytes in {len(body) - at}")
        frames.append(body[at : at + length])
        at += length
    if at != len(body):
        raise MalformedCall(f"{len(body) - at} bytes behind the last frame")
    return frames


def _exactly(form: struct.Struct, body: memoryview) -> tuple[Any, ...]:
    if len(body) != form.size:
        raise MalformedCall(f"{len(body)} bytes, not {form.size}")
    return form.unpack(body)
