"""RNDIS: what a network adapter is asked and told, and the frames themselves, inside NVSP's buffers.

Layouts only. A message is {u32 type, u32 total length} + body. Offsets in one count from the byte behind that head.

Sources: openvmm vm/devices/net/netvsp/src/rndisprot.rs; Linux drivers/net/hyperv/hyperv_net.h, rndis_filter.c.
"""

import struct
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from enum import IntEnum, IntFlag
from typing import ClassVar, Final, Self

HEAD_BYTES: Final = 8
PACKET_HEADER_BYTES: Final = 44  # of a PACKET without anything but its frame
PACKET_OFFSET: Final = PACKET_HEADER_BYTES - HEAD_BYTES  # where its frame begins
ALIGN_BYTES: Final = 8  # of messages behind each other
ALIGN_SHIFT: Final = 3
MAX_TRANSFER_BYTES: Final = 0x4000  # what a guest says in INITIALIZE
MAJOR: Final = 1
MINOR: Final = 0
INFO_BYTES_MAX: Final = 512  # of one QUERY or SET
COMPLETE: Final = 0x8000_0000  # set in the type of an answer
_HEAD: Final = struct.Struct("<II")


class Type(IntEnum):
    PACKET = 1
    INITIALIZE = 2
    HALT = 3
    QUERY = 4
    SET = 5
    INDICATE_STATUS = 7
    KEEP_ALIVE = 8
    INITIALIZE_COMPLETE = COMPLETE | 2
    QUERY_COMPLETE = COMPLETE | 4
    SET_COMPLETE = COMPLETE | 5
    KEEP_ALIVE_COMPLETE = COMPLETE | 8


class Status(IntEnum):
    SUCCESS = 0
    MEDIA_CONNECT = 0x4001_000B
    MEDIA_DISCONNECT = 0x4001_000C
    LINK_SPEED_CHANGE = 0x4001_0013
    FAILURE = 0xC000_0001
    NOT_SUPPORTED = 0xC000_00BB
    INVALID_LENGTH = 0xC001_0014
    INVALID_DATA = 0xC001_0015


class MalformedRndis(ValueError):
    """The peer's bytes are no message, or none that may come now. `status`: what the wire says of it."""

    def __init__(self, text: str, status: Status = Status.INVALID_DATA) -> None:
        super().__init__(text)
        self.status = status


class Oid(IntEnum):
    MAXIMUM_FRAME_SIZE = 0x0001_0106
    LINK_SPEED = 0x0001_0107
    CURRENT_PACKET_FILTER = 0x0001_010E
    MEDIA_CONNECT_STATUS = 0x0001_0114
    PERMANENT_ADDRESS = 0x0101_0101
    CURRENT_ADDRESS = 0x0101_0102
    TCP_OFFLOAD_PARAMETERS = 0xFC01_020C
    TCP_OFFLOAD_HARDWARE_CAPABILITIES = 0xFC01_020D


class PacketFilter(IntFlag):
    NONE = 0
    DIRECTED = 1
    MULTICAST = 2
    ALL_MULTICAST = 4
    BROADCAST = 8
    PROMISCUOUS = 0x20


@dataclass(frozen=True, slots=True)
class Message:
    TYPE: ClassVar[Type]
    FORM: ClassVar[struct.Struct]

    def encode(self) -> bytes:
        return _HEAD.pack(self.TYPE, HEAD_BYTES + self.FORM.size) + self.FORM.pack(*astuple(self))

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """From what follows the head, exactly as long as the head says."""
        if len(body) < cls.FORM.size:
            raise MalformedRndis(f"{cls.TYPE.name} of {HEAD_BYTES + len(body)} bytes", Status.INVALID_LENGTH)
        return cls(*cls.FORM.unpack_from(body))


@dataclass(frozen=True, slots=True)
class Initialize(Message):
    TYPE: ClassVar[Type] = Type.INITIALIZE
    FORM: ClassVar[struct.Struct] = struct.Struct("<IIII")

    request_id: int
    major: int = MAJOR
    minor: int = MINOR
    max_transfer_bytes: int = MAX_TRANSFER_BYTES


@dataclass(frozen=True, slots=True)
class InitializeComplete(Message):
    TYPE: ClassVar[Type] = Type.INITIALIZE_COMPLETE
    FORM: ClassVar[struct.Struct] = struct.Struct("<11I")

    request_id: int
    status: int
    major: int
    minor: int
    device_flags: int  # 1: connectionless
    medium: int  # 0: Ethernet
    packets_max: int  # behind each other in one section
    max_transfer_bytes: int
    align_shift: int
    address_list_offset: int = 0
    address_list_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Halt(Message):
    TYPE: ClassVar[Type] = Type.HALT
    FORM: ClassVar[struct.Struct] = struct.Struct("<I")

    request_id: int


@dataclass(frozen=True, slots=True)
class KeepAlive(Message):
    TYPE: ClassVar[Type] = Type.KEEP_ALIVE
    FORM: ClassVar[struct.Struct] = struct.Struct("<I")

    request_id: int


@dataclass(frozen=True, slots=True)
class KeepAliveComplete(Message):
    TYPE: ClassVar[Type] = Type.KEEP_ALIVE_COMPLETE
    FORM: ClassVar[struct.Struct] = struct.Struct("<II")

    request_id: int
    status: int


@dataclass(frozen=True, slots=True)
class SetComplete(Message):
    TYPE: ClassVar[Type] = Type.SET_COMPLETE
    FORM: ClassVar[struct.Struct] = struct.Struct("<II")

    request_id: int
    status: int


@dataclass(frozen=True, slots=True)
class _Ask(Message):
    """QUERY and SET: {request id, OID, length, offset, 0} + information."""

    FORM: ClassVar[struct.Struct] = struct.Struct("<IIIII")

    request_id: int
    oid: int
    info: bytes = b""

    def encode(self) -> bytes:
        offset = self.FORM.size if self.info else 0
        fixed = self.FORM.pack(self.request_id, self.oid, len(self.info), offset, 0)
        return _HEAD.pack(self.TYPE, HEAD_BYTES + len(fixed) + len(self.info)) + fixed + self.info

    @classmethod
    def decode(cls, body: bytes) -> Self:
        if len(body) < cls.FORM.size:
            raise MalformedRndis(f"{cls.TYPE.name} of {HEAD_BYTES + len(body)} bytes", Status.INVALID_LENGTH)
        request_id, oid, length, offset, _ = cls.FORM.unpack_from(body)
        return cls(request_id, oid, information(body, length, offset, cls.FORM.size))


@dataclass(frozen=True, slots=True)
class Query(_Ask):
    TYPE: ClassVar[Type] = Type.QUERY


@dataclass(frozen=True, slots=True)
class Set(_Ask):
    TYPE: ClassVar[Type] = Type.SET


@dataclass(frozen=True, slots=True)
class QueryComplete(Message):
    TYPE: ClassVar[Type] = Type.QUERY_COMPLETE
    FORM: ClassVar[struct.Struct] = struct.Struct("<IIII")

    request_id: int
    status: int
    info: bytes = b""

    def encode(self) -> bytes:
        offset = self.FORM.size if self.info else 0
        fixed = self.FORM.pack(self.request_id, self.status, len(self.info), offset)
        return _HEAD.pack(self.TYPE, HEAD_BYTES + len(fixed) + len(self.info)) + fixed + self.info

    @classmethod
    def decode(cls, body: bytes) -> Self:
        if len(body) < cls.FORM.size:
            raise MalformedRndis(f"{cls.TYPE.name} of {HEAD_BYTES + len(body)} bytes", Status.INVALID_LENGTH)
        request_id, status, length, offset = cls.FORM.unpack_from(body)
        return cls(request_id, status, information(body, length, offset, cls.FORM.size))


@dataclass(frozen=True, slots=True)
class IndicateStatus(Message):
    TYPE: ClassVar[Type] = Type.INDICATE_STATUS
    FORM: ClassVar[struct.Struct] = struct.Struct("<III")

    status: int
    info_bytes: int = 0
    info_offset: int = 0


def information(body: bytes, length: int, offset: int, fixed_bytes: int) -> bytes:
    """What a length and an offset of the peer's point at: behind the fixed fields, and not past the message."""
    if length == 0:
        return b""
    if length > INFO_BYTES_MAX or offset < fixed_bytes or offset + length > len(body):
        found = f"{length} bytes of information at {offset} of {len(body)}"
        raise MalformedRndis(found, Status.INVALID_LENGTH)
    return bytes(body[offset : offset + length])


_OF_GUEST: Final = (Initialize, Halt, Query, Set, KeepAlive)
_OF_SERVER: Final = (InitializeComplete, QueryComplete, SetComplete, KeepAliveComplete, IndicateStatus)
GUEST_MESSAGES: Final[Mapping[int, type[Message]]] = {kind.TYPE: kind for kind in _OF_GUEST}
SERVER_MESSAGES: Final[Mapping[int, type[Message]]] = {kind.TYPE: kind for kind in _OF_SERVER}

assert HEAD_BYTES + Initialize.FORM.size == 24
assert HEAD_BYTES + InitializeComplete.FORM.size == 52
assert HEAD_BYTES + Query.FORM.size == 28
assert HEAD_BYTES + QueryComplete.FORM.size == 24
assert HEAD_BYTES + SetComplete.FORM.size == 16
assert HEAD_BYTES + IndicateStatus.FORM.size == 20


def decode_message(data: bytes, messages: Mapping[int, type[Message]]) -> Message:
    """One control message of a peer, of the table for what it may say; bytes behind it are padding.

    Raises MalformedRndis.
    """
    if len(data) < HEAD_BYTES:
        raise MalformedRndis(f"{len(data)} bytes", Status.INVALID_LENGTH)
    number, length = _HEAD.unpack_from(data)
    if not HEAD_BYTES <= length <= len(data):
        raise MalformedRndis(f"a message of {length} bytes in {len(data)}", Status.INVALID_LENGTH)
    if (kind := messages.get(number)) is None:
        raise MalformedRndis(f"message type {number:#x}", Status.NOT_SUPPORTED)
    return kind.decode(data[HEAD_BYTES:length])
