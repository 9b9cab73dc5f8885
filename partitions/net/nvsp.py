"""NVSP: the messages by which a guest and its network server agree on buffers, and announce RNDIS messages.

Layouts only. A message is u32 type + body, filled with zeros to 28 bytes, from version 6.1 on to 40. A reply is a
completion packet with the request's id. All integers are little-endian.

    guest -> server: INIT, NDIS_CONFIG, NDIS_VERSION, SEND_RECEIVE_BUFFER, SEND_SEND_BUFFER, then SEND_RNDIS_PACKETs
    server -> guest: SEND_RNDIS_PACKETs, in transfer-page packets over the receive buffer

Sources: openvmm vm/devices/net/netvsp/src/protocol.rs; Linux drivers/net/hyperv/hyperv_net.h.
"""

import struct
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from enum import IntEnum, IntFlag
from typing import ClassVar, Final, Self

SHORT_MESSAGE_BYTES: Final = 28
MESSAGE_BYTES: Final = 40  # from version 6.1 on
RECEIVE_BUFFER_ID: Final = 0xCAFE
SEND_BUFFER_ID: Final = 0
NO_SECTION: Final = 0xFFFF_FFFF
RANGES_MAX: Final = 375  # of one transfer-page packet
MDL_CHAIN_MAX: Final = 34  # what INIT_COMPLETE says of GPA ranges in one packet
_TYPE: Final = struct.Struct("<I")


class Status(IntEnum):
    NONE = 0
    SUCCESS = 1
    FAILURE = 2
    INVALID_RNDIS = 5
    BUSY = 6


class MalformedNvsp(ValueError):
    """The peer's bytes are no message, or none that may come now. `status`: what the wire says of it."""

    def __init__(self, text: str, status: Status = Status.FAILURE) -> None:
        super().__init__(text)
        self.status = status


class Version(IntEnum):
    V1 = 0x2
    V2 = 0x3_0002
    V4 = 0x4_0000
    V5 = 0x5_0000
    V6 = 0x6_0000
    V61 = 0x6_0001

    @property
    def message_bytes(self) -> int:
        return MESSAGE_BYTES if self >= Version.V61 else SHORT_MESSAGE_BYTES


class Channel(IntEnum):
    """What an RNDIS message is."""

    DATA = 0
    CONTROL = 1


class Capability(IntFlag):
    """Of NDIS_CONFIG."""

    NONE = 0
    VMQ = 1
    CHIMNEY = 2
    SR_IOV = 4
    VLAN = 8
    CORRELATION = 16
    TEAMING = 32
    VIRTUAL_SUBNET = 64
    RSC = 128


class Type(IntEnum):
    INIT = 1
    INIT_COMPLETE = 2
    NDIS_VERSION = 100
    SEND_RECEIVE_BUFFER = 101
    RECEIVE_BUFFER_COMPLETE = 102
    REVOKE_RECEIVE_BUFFER = 103
    SEND_SEND_BUFFER = 104
    SEND_BUFFER_COMPLETE = 105
    REVOKE_SEND_BUFFER = 106
    SEND_RNDIS_PACKET = 107
    RNDIS_PACKET_COMPLETE = 108
    NDIS_CONFIG = 125
    VF_ASSOCIATION = 128
    SWITCH_DATA_PATH = 129
    SUBCHANNEL = 133


@dataclass(frozen=True, slots=True)
class Message:
    TYPE: ClassVar[Type]
    FORM: ClassVar[struct.Struct]

    def encode(self, message_bytes: int = MESSAGE_BYTES) -> bytes:
        """As long as its version has them; INIT and its answer, too."""
        return (_TYPE.pack(self.TYPE) + self.FORM.pack(*astuple(self))).ljust(message_bytes, b"\0")

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """From what follows the type. What stands behind the fields is padding."""
        if len(body) < cls.FORM.size:
            raise MalformedNvsp(f"{cls.TYPE.name} of {_TYPE.size + len(body)} bytes")
        return cls(*cls.FORM.unpack_from(body))


@dataclass(frozen=True, slots=True)
class Init(Message):
    TYPE: ClassVar[Type] = Type.INIT
    FORM: ClassVar[struct.Struct] = struct.Struct("<II")

    version: int
    same_version: int


@dataclass(frozen=True, slots=True)
class InitComplete(Message):
    TYPE: ClassVar[Type] = Type.INIT_COMPLETE
    FORM: ClassVar[struct.Struct] = struct.Struct("<III")

    deprecated: int  # all ones; 2 for the oldest version
    mdl_chain_max: int
    status: int  # NONE: a version that the server does not know


@dataclass(frozen=True, slots=True)
class NdisVersion(Message):
    TYPE: ClassVar[Type] = Type.NDIS_VERSION
    FORM: ClassVar[struct.Struct] = struct.Struct("<II")

    major: int
    minor: int


@dataclass(frozen=True, slots=True)
class SendReceiveBuffer(Message):
    TYPE: ClassVar[Type] = Type.SEND_RECEIVE_BUFFER
    FORM: ClassVar[struct.Struct] = struct.Struct("<IH2x")

    gpadl: int
    buffer_id: int


@dataclass(frozen=True, slots=True)
class ReceiveBufferComplete(Message):
    """With one section always: so many pieces of one size, from `offset` on."""

    TYPE: ClassVar[Type] = Type.RECEIVE_BUFFER_COMPLETE
    FORM: ClassVar[struct.Struct] = struct.Struct("<IIIIII")

    status: int
    sections: int
    offset: int
    piece_bytes: int
    pieces: int
    end_offset: int


@dataclass(frozen=True, slots=True)
class RevokeReceiveBuffer(Message):
    TYPE: ClassVar[Type] = Type.REVOKE_RECEIVE_BUFFER
    FORM: ClassVar[struct.Struct] = struct.Struct("<H")

    buffer_id: int


@dataclass(frozen=True, slots=True)
class SendSendBuffer(Message):
    TYPE: ClassVar[Type] = Type.SEND_SEND_BUFFER
    FORM: ClassVar[struct.Struct] = struct.Struct("<IH2x")

    gpadl: int
    buffer_id: int


@dataclass(frozen=True, slots=True)
class SendBufferComplete(Message):
    TYPE: ClassVar[Type] = Type.SEND_BUFFER_COMPLETE
    FORM: ClassVar[struct.Struct] = struct.Struct("<II")

    status: int
    section_bytes: int


@dataclass(frozen=True, slots=True)
class RevokeSendBuffer(Message):
    TYPE: ClassVar[Type] = Type.REVOKE_SEND_BUFFER
    FORM: ClassVar[struct.Struct] = struct.Struct("<H")

    buffer_id: int


@dataclass(frozen=True, slots=True)
class SendRndisPacket(Message):
    TYPE: ClassVar[Type] = Type.SEND_RNDIS_PACKET
    FORM: ClassVar[struct.Struct] = struct.Struct("<III")

    channel: int
    section: int  # of the send buffer; NO_SECTION: the packet's own ranges hold the RNDIS message
    section_bytes: int


@dataclass(frozen=True, slots=True)
class RndisPacketComplete(Message):
    TYPE: ClassVar[Type] = Type.RNDIS_PACKET_COMPLETE
    FORM: ClassVar[struct.Struct] = struct.Struct("<I")

    status: int


@dataclass(frozen=True, slots=True)
class NdisConfig(Message):
    TYPE: ClassVar[Type] = Type.NDIS_CONFIG
    FORM: ClassVar[struct.Struct] = struct.Struct("<I4xQ")

    frame_bytes_max: int  # the MTU and its Ethernet header
    capabilities: int


@dataclass(frozen=True, slots=True)
class VfAssociation(Message):
    TYPE: ClassVar[Type] = Type.VF_ASSOCIATION
    FORM: ClassVar[struct.Struct] = struct.Struct("<II")

    allocated: int
    serial: int


@dataclass(frozen=True, slots=True)
class SwitchDataPath(Message):
    TYPE: ClassVar[Type] = Type.SWITCH_DATA_PATH
    FORM: ClassVar[struct.Struct] = struct.Struct("<I")

    active: int  # 0: this channel; 1: a virtual function


@dataclass(frozen=True, slots=True)
class Subchannel(Message):
    """The request is (1, how many); the answer (status, how many)."""

    TYPE: ClassVar[Type] = Type.SUBCHANNEL
    FORM: ClassVar[struct.Struct] = struct.Struct("<II")

    operation: int
    count: int


_OF_GUEST: Final = (
    Init,
    NdisVersion,
    SendReceiveBuffer,
    RevokeReceiveBuffer,
    SendSendBuffer,
    RevokeSendBuffer,
    SendRndisPacket,
    RndisPacketComplete,
    NdisConfig,
    SwitchDataPath,
    Subchannel,
)
_OF_SERVER: Final = (
    InitComplete,
    ReceiveBufferComplete,
    SendBufferComplete,
    SendRndisPacket,
    RndisPacketComplete,
    VfAssociation,
    Subchannel,
)
GUEST_MESSAGES: Final[Mapping[int, type[Message]]] = {kind.TYPE: kind for kind in _OF_GUEST}
SERVER_MESSAGES: Final[Mapping[int, type[Message]]] = {kind.TYPE: kind for kind in _OF_SERVER}

# What the data path takes apart by itself: a SEND_RNDIS_PACKET with its type, and its answers as whole packets.
RNDIS_PACKET_FORM: Final = struct.Struct("<IIII")
COMPLETION_FORM: Final = struct.Struct("<II")

assert {kind.FORM.size for kind in (*_OF_GUEST, *_OF_SERVER)} <= set(range(2, SHORT_MESSAGE_BYTES - 3))
assert ReceiveBufferComplete.FORM.size + _TYPE.size == SHORT_MESSAGE_BYTES
assert NdisConfig.FORM.size == 16
assert SendReceiveBuffer.FORM.size == SendSendBuffer.FORM.size == 8
assert RNDIS_PACKET_FORM.size == _TYPE.size + SendRndisPacket.FORM.size == 16
assert COMPLETION_FORM.size == _TYPE.size + RndisPacketComplete.FORM.size == 8


def decode_message(payload: bytes, messages: Mapping[int, type[Message]]) -> Message:
    """One message of a peer, of the table for what it may say. Raises MalformedNvsp."""
    if len(payload) < _TYPE.size:
        raise MalformedNvsp(f"{len(payload)} bytes")
    (number,) = _TYPE.unpack_from(payload)
    if (kind := messages.get(number)) is None:
        raise MalformedNvsp(f"message type {number}")
    return kind.decode(payload[_TYPE.size :])
