"""What every integration service says alike: the header, the negotiation of versions, the statuses.

A message is a pipe message: {u32 1, u32 length}, this header, a body. The host begins everything; the guest answers
in-band with the same message, changed where it has something to say. One transaction is under way at a time.

Sources: openvmm vm/devices/hyperv_ic_protocol; Linux include/linux/hyperv.h, icmsg_hdr and icmsg_negotiate.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple, Self

from bus.packets import PacketError, PipeType, decode_pipe, encode_pipe

_HEADER: Final = struct.Struct("<HHHHHHIBBH")
_COUNTS: Final = struct.Struct("<HHI")
_VERSION: Final = struct.Struct("<HH")
HEADER_BYTES: Final = 20
MESSAGE_BYTES_MAX: Final = 13_312  # header and body
VERSIONS_MAX: Final = 32  # of each list in a negotiation

assert _HEADER.size == HEADER_BYTES
assert _COUNTS.size == 8


class IcError(Exception):
    """The peer's message is none, or not legal now. It counts for nothing; the state stays as it was."""


class Version(NamedTuple):
    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


class MessageType(IntEnum):
    NEGOTIATE = 0
    HEARTBEAT = 1
    KEY_VALUE = 2
    SHUTDOWN = 3
    TIME_SYNC = 4
    SNAPSHOT = 5


class Flags(IntFlag):
    TRANSACTION = 1
    REQUEST = 2
    RESPONSE = 4


class Status(IntEnum):
    """HRESULTs. A peer may have others."""

    OK = 0
    FAIL = 0x8000_4005
    NO_MORE_ITEMS = 0x8007_0103
    NOT_SUPPORTED = 0x8007_0032
    NOT_FOUND = 0x8004_1002


@dataclass(frozen=True, slots=True)
class IcHeader:
    """icmsg_hdr."""

    framework: Version
    message_type: int
    version: Version  # of the message
    body_bytes: int
    status: int
    transaction: int
    flags: Flags

    def encode(self) -> bytes:
        return _HEADER.pack(
            *self.framework,
            self.message_type,
            *self.version,
            self.body_bytes,
            self.status,
            self.transaction,
            self.flags,
            0,
        )


@dataclass(frozen=True, slots=True)
class IcMessage:
    """A whole one."""

    header: IcHeader
    body: bytes

    def encode(self) -> bytes:
        """As it stands in a packet. PacketError: too long."""
        if HEADER_BYTES + len(self.body) > MESSAGE_BYTES_MAX:
            raise PacketError(f"a message of {HEADER_BYTES + len(self.body)} bytes")
        return encode_pipe(self.header.encode() + self.body)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """A packet's payload, padding and all. IcError: it is none."""
        try:
            kind, data = decode_pipe(payload)
        except PacketError as error:
            raise IcError(str(error)) from error
        if kind is not PipeType.DATA or not HEADER_BYTES <= len(data) <= MESSAGE_BYTES_MAX:
            raise IcError(f"a pipe message of kind {kind.name}, {len(data)} bytes")
        a, b, number, c, d, body_bytes, status, transaction, flags, _ = _HEADER.unpack_from(data)
        if HEADER_BYTES + body_bytes > len(data):
            raise IcError(f"a body of {body_bytes} bytes in a message of {len(data)}")
        if flags & ~7:
            raise IcError(f"flags {flags:#x}")
        header = IcHeader(Version(a, b), number, Version(c, d), body_bytes, status, transaction, Flags(flags))
        return cls(header, data[HEADER_BYTES : HEADER_BYTES + body_bytes])


def answer_to(request: IcMessage, body: bytes, status: int = Status.OK) -> IcMessage:
    """The guest's: the same message back."""
    header = request.header
    return IcMessage(
        IcHeader(
            header.framework,
            header.message_type,
            header.version,
            len(body),
            status,
            header.transaction,
            Flags.TRANSACTION | Flags.RESPONSE,
        ),
        body,
    )


@dataclass(frozen=True, slots=True)
class Versions:
    """The body of a negotiation: what the host knows; or the one of each that the guest took, or none."""

    framework: tuple[Version, ...]
    message: tuple[Version, ...]

    def encode(self) -> bytes:
        both = (*self.framework, *self.message)
        counts = _COUNTS.pack(len(self.framework), len(self.message), 0)
        return counts + b"".join(_VERSION.pack(*version) for version in both)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        if len(body) < _COUNTS.size:
            raise IcError(f"a negotiation of {len(body)} bytes")
        frameworks, messages, _ = _COUNTS.unpack_from(body)
        if max(frameworks, messages) > VERSIONS_MAX:
            raise IcError(f"{frameworks} and {messages} versions")
        end = _COUNTS.size + (frameworks + messages) * _VERSION.size
        if end > len(body):
            raise IcError(f"{frameworks} and {messages} versions in {len(body)} bytes")
        both = tuple(Version(*pair) for pair in _VERSION.iter_unpack(body[_COUNTS.size : end]))
        return cls(both[:frameworks], both[frameworks:])


def choose(offered: Sequence[Version], known: Sequence[Version]) -> Version | None:
    """The highest that both know."""
    return max(set(offered) & set(known), default=None)
