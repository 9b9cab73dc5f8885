"""Requests and replies of any length. All integers are little-endian.

In a ring a request is the payload of an in-band packet, and its reply that of the completion; both say how much of
it is padding (`Channel.exact_lengths`), and a completion's mark what it is. A request of kind GPA-direct is in pages,
and the reply goes into the same ones: in band the packets carry a length, u32, or nothing where it is that of all the
pages.

As a message each is one packet of a SOCK_SEQPACKET socket, with its mark in one byte behind it.
"""

import errno
import struct
from enum import IntEnum
from typing import Final
from uuid import UUID

# Ours: Hyper-V has no such device.
CUSTOM_INTERFACE: Final = UUID("8f6b1c52-4d3e-4b0a-9a51-637573740001")
REQUEST_BYTES_MAX: Final = 256 << 10  # also of a reply: what one message of the kernel's may carry
_NUMBER: Final = struct.Struct("<I")
_TEXT_BYTES_MAX: Final = 200  # of an error


class Mark(IntEnum):
    PLAIN = 0
    ERROR = 1  # a reply: errno, then text
    OPENED = 2  # a message without a reply: the client begins anew


class CustomError(Exception):
    """The device refused or failed at this request. Branch on `errno`, never on the text."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(number, text)
        self.errno = number

    def __str__(self) -> str:
        return f"{self.args[1]} ({errno.errorcode.get(self.errno, self.errno)})"


class CustomClosedError(Exception):
    """The device is gone for good, or this end was closed. Whether a request without a reply was served is open."""


class MalformedPayload(ValueError):
    """Not one of these."""


def encode_error(number: int, text: str) -> bytes:
    return _NUMBER.pack(number & 0xFFFF_FFFF) + text.encode()[:_TEXT_BYTES_MAX]


def decode_error(data: bytes) -> CustomError:
    """MalformedPayload."""
    if len(data) < _NUMBER.size:
        raise MalformedPayload(f"an error of {len(data)} bytes")
    return CustomError(_NUMBER.unpack_from(data)[0], data[_NUMBER.size :].decode(errors="replace"))


def encode_length(length: int) -> bytes:
    """Of what does not fill its pages."""
    return _NUMBER.pack(length)


def decode_length(payload: bytes, room_bytes: int) -> int:
    """MalformedPayload: it cannot be."""
    if not payload:
        return room_bytes
    if len(payload) != _NUMBER.size or (length := _NUMBER.unpack(payload)[0]) > room_bytes:
        raise MalformedPayload(f"{payload.hex()} where a length of at most {room_bytes} is due")
    return int(length)


MARK_BYTES: Final = 1  # of a message
PLAIN: Final = bytes([Mark.PLAIN])
ERROR: Final = bytes([Mark.ERROR])
OPENED: Final = bytes([Mark.OPENED])
