"""What a PACKET may say of its frame, beside the frame itself: RNDIS per-packet information.

A record is {u32 size, u32 type, u32 offset of its data}; bit 31 of the type: internal to one side. Of the types there
are, we know one that changes a frame: a VLAN tag that is to be on it. What asks for an offload, which nobody here was
offered, is refused: such a frame is not whole yet.

Sources: openvmm vm/devices/net/netvsp/src/rndisprot.rs; Linux drivers/net/hyperv/hyperv_net.h, rndis_filter.c.
"""

import struct
from collections.abc import Mapping
from enum import IntEnum
from typing import Final

from partitions.net.rndis import HEAD_BYTES, PACKET_OFFSET, MalformedRndis, Status

RECORDS_MAX: Final = 16  # of one packet
_RECORD: Final = struct.Struct("<III")
_VALUE: Final = struct.Struct("<I")
_TAG: Final = struct.Struct(">HH")
_TAG_TYPE: Final = 0x8100
_INTERNAL: Final = 0x8000_0000
_ADDRESSES_BYTES: Final = 12
_WANTED_CHECKSUMS: Final = 0b11100  # of TCP, UDP, and the IPv4 header; the bits below say which IP it is


class InformationType(IntEnum):
    CHECKSUM = 0
    LARGE_SEND = 2
    VLAN = 6


assert _RECORD.size == 12


def encode_vlan(identifier: int, priority: int = 0, drop_eligible: bool = False) -> bytes:
    """A record that asks for a tag."""
    value = priority & 7 | drop_eligible << 3 | (identifier & 0xFFF) << 4
    return _RECORD.pack(_RECORD.size + _VALUE.size, InformationType.VLAN, _RECORD.size) + _VALUE.pack(value)


def information_of(message: memoryview, offset: int, length: int) -> Mapping[int, int]:
    """The first u32 of each record, by its type. `message`: a PACKET, from its head on. MalformedRndis."""
    if offset < PACKET_OFFSET or HEAD_BYTES + offset + length > len(message):
        raise MalformedRndis(f"{length} bytes of information at {offset}", Status.INVALID_LENGTH)
    data = bytes(message[HEAD_BYTES + offset : HEAD_BYTES + offset + length])
    found: dict[int, int] = {}
    at = 0
    for _ in range(RECORDS_MAX):
        if len(data) - at < _RECORD.size:
            break
        size, number, value_at = _RECORD.unpack_from(data, at)
        if not _RECORD.size <= size <= len(data) - at or value_at < _RECORD.size:
            raise MalformedRndis(f"information of {size} bytes in {len(data) - at}", Status.INVALID_LENGTH)
        if not number & _INTERNAL and value_at + _VALUE.size <= size:
            (found[number],) = _VALUE.unpack_from(data, at + value_at)
        at += size
    else:
        raise MalformedRndis(f"more than {RECORDS_MAX} records of information")
    return found


def apply_information(frame: memoryview, information: Mapping[int, int]) -> memoryview:
    """The frame as it is to be sent: itself, or a copy with its tag. MalformedRndis: it wants what nobody offers."""
    if information.get(InformationType.LARGE_SEND):
        raise MalformedRndis("a large send, which was not offered", Status.NOT_SUPPORTED)
    if information.get(InformationType.CHECKSUM, 0) & _WANTED_CHECKSUMS:
        raise MalformedRndis("a frame without its checksums, which was not offered", Status.NOT_SUPPORTED)
    if (vlan := information.get(InformationType.VLAN)) is None:
        return frame
    tag = (vlan & 7) << 13 | (vlan >> 3 & 1) << 12 | vlan >> 4 & 0xFFF
    tagged = bytes(frame[:_ADDRESSES_BYTES]) + _TAG.pack(_TAG_TYPE, tag) + bytes(frame[_ADDRESSES_BYTES:])
    return memoryview(tagged)


def received_with(message: memoryview, frame: memoryview, offset: int, length: int) -> memoryview:
    """A frame of a server's, with the tag that the server took off; what it says of checksums does not matter."""
    information = information_of(message, offset, length)
    return apply_information(
        frame, {number: value for number, value in information.items() if number == InformationType.VLAN}
    )
