"""storvsp's wire: the 64-byte packet, its operations, and the SCSI request block inside it.

Both sides build and parse with these types. A guest older than protocol 5.1 uses a union of 36 bytes
instead of 52, so its packets are 48 bytes; a reply is always as long as the request that it answers.
Sources: openvmm vm/devices/storage/storvsp_protocol; Linux drivers/scsi/storvsc_drv.c.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

PACKET_BYTES: Final = 64
PACKET_BYTES_BEFORE_5_1: Final = 48
_UNION_AT: Final = 12
SRB_BYTES: Final = 52
SRB_BYTES_BEFORE_5_1: Final = 36
CDB_BYTES_MAX: Final = 16
SENSE_AREA_BYTES: Final = 20  # what the SRB has room for

_HEADER: Final = struct.Struct("<III")  # operation, flags, status
_SRB: Final = struct.Struct("<HBBBBBBBBBBI20sHBBIII")
_REPLY: Final = struct.Struct("<2xBB8xI")  # of an SRB: its statuses, and how much it moved
_VERSION: Final = struct.Struct("<HH")
_PROPERTIES: Final = struct.Struct("<IHHIIQ")
_SUB_CHANNELS: Final = struct.Struct("<H")
assert _HEADER.size == _UNION_AT
assert _SRB.size == SRB_BYTES
assert _HEADER.size + SRB_BYTES == PACKET_BYTES
assert _HEADER.size + SRB_BYTES_BEFORE_5_1 == PACKET_BYTES_BEFORE_5_1
assert _PROPERTIES.size == 24


class Operation(IntEnum):
    COMPLETE_IO = 1  # the operation of every reply
    REMOVE_DEVICE = 2
    EXECUTE_SRB = 3
    RESET_LUN = 4
    RESET_ADAPTER = 5
    RESET_BUS = 6
    BEGIN_INITIALIZATION = 7
    END_INITIALIZATION = 8
    QUERY_PROTOCOL_VERSION = 9
    QUERY_PROPERTIES = 10
    ENUMERATE_BUS = 11  # host to guest, unasked: look for disks again
    FCHBA_DATA = 12
    CREATE_SUB_CHANNELS = 13
    EVENT_NOTIFICATION = 14


COMPLETION_REQUESTED: Final = 1  # bit 0 of the packet's flags


class NtStatus(IntEnum):
    SUCCESS = 0x00000000
    BUFFER_OVERFLOW = 0x80000005
    DEVICE_BUSY = 0x80000011
    UNSUCCESSFUL = 0xC0000001
    INVALID_PARAMETER = 0xC000000D
    INVALID_DEVICE_REQUEST = 0xC0000010
    REVISION_MISMATCH = 0xC0000059
    IO_TIMEOUT = 0xC00000B5
    DEVICE_DOES_NOT_EXIST = 0xC00000C0
    CANCELLED = 0xC0000120
    INVALID_DEVICE_STATE = 0xC0000184
    IO_DEVICE_ERROR = 0xC0000185


class SrbStatus(IntEnum):
    """Bits 5:0 of srb_status."""

    PENDING = 0x00
    SUCCESS = 0x01
    ABORTED = 0x02
    ERROR = 0x04
    BUSY = 0x05
    INVALID_REQUEST = 0x06
    INVALID_PATH = 0x07
    NO_DEVICE = 0x08
    TIMEOUT = 0x09
    SELECTION_TIMEOUT = 0x0A
    BUS_RESET = 0x0E
    DATA_OVERRUN = 0x12
    REQUEST_FLUSHED = 0x16
    INVALID_LUN = 0x20
    INVALID_TARGET = 0x21


SRB_STATUS_MASK: Final = 0x3F
SRB_AUTOSENSE_VALID: Final = 0x80


class ScsiStatus(IntEnum):
    """SAM-5, 5.3.1."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    BUSY = 0x08
    TASK_SET_FULL = 0x28


class Direction(IntEnum):
    """The SRB's `data_in` byte. Not the flag that its name suggests: 0 is a write."""

    WRITE = 0  # guest memory to disk
    READ = 1
    NONE = 2


class SrbFlags(IntFlag):
    QUEUE_ACTION_ENABLE = 0x2
    DISABLE_SYNCH_TRANSFER = 0x8
    DATA_IN = 0x40
    DATA_OUT = 0x80
    NO_QUEUE_FREEZE = 0x100


class ProtocolVersion(IntEnum):
    """u16, major << 8 | minor."""

    WIN6 = 0x0200
    WIN7 = 0x0402
    WIN8 = 0x0501
    BLUE = 0x0600
    V6_2 = 0x0602


class MalformedPacket(Exception):
    """The peer's packet is too short for what it claims to be; nothing was taken from it."""


class Packet(NamedTuple):
    """Header and raw union. `size_bytes` is the length on the wire, which a reply repeats.

    A tuple, as ScsiRequest is.
    """

    operation: int
    flags: int = 0
    status: int = 0
    body: bytes = b""
    size_bytes: int = PACKET_BYTES

    def build(self) -> bytes:
        head = _HEADER.pack(self.operation, self.flags, self.status)
        return (head + self.body[: self.size_bytes - _UNION_AT]).ljust(self.size_bytes, b"\0")

    @classmethod
    def parse(cls, payload: bytes) -> "Packet":
        """Raises MalformedPacket below 48 bytes. What stands behind byte 64 is ring padding: ignored."""
        if len(payload) < PACKET_BYTES_BEFORE_5_1:
            raise MalformedPacket(f"{len(payload)} bytes, want {PACKET_BYTES_BEFORE_5_1} or {PACKET_BYTES}")
        operation, flags, status = _HEADER.unpack_from(payload)
        size = PACKET_BYTES if len(payload) >= PACKET_BYTES else PACKET_BYTES_BEFORE_5_1
        return tuple.__new__(cls, (operation, flags, status, bytes(payload[_UNION_AT:size]), size))

    def completion(self, status: int, body: bytes) -> bytes:
        """`reply(status, body).build()`: what every request ends with, without the packet in between."""
        head = _HEADER.pack(Operation.COMPLETE_IO, 0, status)
        return (head + body[: self.size_bytes - _UNION_AT]).ljust(self.size_bytes, b"\0")

    def reply(self, status: int, body: bytes | None = None) -> "Packet":
        """COMPLETE_IO of this request's length; the union is echoed unless one is given."""
        return Packet(Operation.COMPLETE_IO, 0, status, self.body if body is None else body, self.size_bytes)


class ScsiRequest(NamedTuple):
    """The SRB, in either direction. A tuple, as one is made for each request: that takes a tenth of a frozen
    dataclass's time. Its fields stand as in _SRB, without the length and what is reserved.

    `cdb_or_sense` is the CDB on the way in and the sense data on the way back; `sense_length` is the room
    that the guest has for sense, then the number of sense bytes given.
    """

    srb_status: int = 0
    scsi_status: int = 0
    port: int = 0
    path: int = 0
    target: int = 0
    lun: int = 0
    cdb_length: int = 0
    sense_length: int = SENSE_AREA_BYTES
    direction: int = Direction.NONE
    transfer_bytes: int = 0
    cdb_or_sense: bytes = b""  # at most 20 bytes
    queue_tag: int = 0
    queue_action: int = 0
    srb_flags: int = 0
    timeout_s: int = 0
    queue_sort_key: int = 0

    @property
    def cdb(self) -> bytes:
        """The CDB as far as its length says; empty where that length is a lie."""
        return self.cdb_or_sense[: self.cdb_length] if self.cdb_length <= CDB_BYTES_MAX else b""

    @property
    def sense(self) -> bytes:
        """Sense data of a reply, cut to what the SRB can hold."""
        return self.cdb_or_sense[: min(self.sense_length, SENSE_AREA_BYTES)]

    def answer(self, srb_status: int, scsi_status: int, transfer_bytes: int, sense: bytes) -> bytes:
        """The union of its reply: what it asked for, and what came of it."""
        return _SRB.pack(
            SRB_BYTES,
            srb_status,
            scsi_status,
            self.port,
            self.path,
            self.target,
            self.lun,
            self.cdb_length,
            len(sense),
            self.direction,
            0,
            transfer_bytes,
            sense,
            0,
            self.queue_tag,
            self.queue_action,
            self.srb_flags,
            self.timeout_s,
            self.queue_sort_key,
        )

    def build(self) -> bytes:
        return _SRB.pack(
            SRB_BYTES,
            self.srb_status,
            self.scsi_status,
            self.port,
            self.path,
            self.target,
            self.lun,
            self.cdb_length,
            self.sense_length,
            self.direction,
            0,
            self.transfer_bytes,
            self.cdb_or_sense,
            0,
            self.queue_tag,
            self.queue_action,
            self.srb_flags,
            self.timeout_s,
            self.queue_sort_key,
        )

    @classmethod
    def parse(cls, body: bytes) -> "ScsiRequest":
        """The union of an EXECUTE_SRB or of its reply, 36 or 52 bytes. The length field is not trusted."""
        if len(body) < SRB_BYTES_BEFORE_5_1:
            raise MalformedPacket(f"SRB of {len(body)} bytes")
        fields = _SRB.unpack(body[:SRB_BYTES].ljust(SRB_BYTES, b"\0"))
        return tuple.__new__(cls, fields[1:10] + fields[11:13] + fields[14:])


def build_command(cdb: bytes, direction: int, transfer_bytes: int, srb_flags: int) -> bytes:
    """The union of an EXECUTE_SRB for path 0, target 0, LUN 0; the rest is as ScsiRequest has it."""
    return _SRB.pack(
        SRB_BYTES,
        *(0, 0, 0, 0, 0, 0),
        len(cdb),
        SENSE_AREA_BYTES,
        direction,
        0,
        transfer_bytes,
        cdb,
        *(0, 0, 0),
        srb_flags,
        *(0, 0),
    )


def bytes_moved(body: bytes) -> int | None:
    """Of a reply whose SRB and device report plain success. None: it is for ScsiRequest.parse to say what it is."""
    if len(body) < SRB_BYTES_BEFORE_5_1:
        return None
    srb_status, scsi_status, moved = _REPLY.unpack_from(body)
    return moved if srb_status == SrbStatus.SUCCESS and scsi_status == ScsiStatus.GOOD else None


@dataclass(frozen=True, slots=True)
class ChannelProperties:
    """Answer to QUERY_PROPERTIES, 24 bytes."""

    max_sub_channels: int = 0
    multi_channel: bool = False
    max_transfer_bytes: int = 0

    def build(self) -> bytes:
        return _PROPERTIES.pack(
            0, self.max_sub_channels, 0, int(self.multi_channel), self.max_transfer_bytes, 0
        )

    @classmethod
    def parse(cls, body: bytes) -> "ChannelProperties":
        if len(body) < _PROPERTIES.size:
            raise MalformedPacket(f"channel properties of {len(body)} bytes")
        _, sub_channels, _, flags, transfer, _ = _PROPERTIES.unpack_from(body)
        return cls(sub_channels, bool(flags & 1), transfer)


def build_version(version: int) -> bytes:
    return _VERSION.pack(version, 0)


def parse_version(body: bytes) -> int:
    version: int = _VERSION.unpack_from(body)[0]
    return version


def build_sub_channel_count(count: int) -> bytes:
    return _SUB_CHANNELS.pack(count)


def parse_sub_channel_count(body: bytes) -> int:
    count: int = _SUB_CHANNELS.unpack_from(body)[0]
    return count
