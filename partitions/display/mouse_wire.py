"""The synthetic mouse's messages: a HID device whose descriptors and reports travel in a pipe's packets.

    guest   request (version)  ->  host   response, and unasked the device's descriptors
    guest   acknowledges them
    host    input reports: buttons, absolute position, wheel

Source: openvmm vm/devices/uidevices/src/mouse/protocol.rs; Linux drivers/hid/hid-hyperv.c.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from partitions.display.display_error import DisplayError
from partitions.display.piped_message import decode_piped, encode_piped, fields

VERSION: Final = 0x0002_0000
POSITION_MAX: Final = 32_767  # the lower right corner, whatever the screen's size
WHEEL_MAX: Final = 32_767

_REQUEST: Final = struct.Struct("<I")
_RESPONSE: Final = struct.Struct("<IB")
_ATTRIBUTES: Final = struct.Struct("<IHHH22x")
_HID: Final = struct.Struct("<BBHBBBH")
_ACK: Final = struct.Struct("<B")
_REPORT: Final = struct.Struct("<BHHh")
REPORT_DESCRIPTOR_BYTES_MAX: Final = 128  # the message has so much room for it

assert (_RESPONSE.size, _ATTRIBUTES.size, _HID.size, _REPORT.size) == (5, 32, 9, 7)  # bytes

_HID_DESCRIPTOR: Final = 0x21
_HID_REPORT: Final = 0x22
_HID_VERSION: Final = 0x0101

# What a report of 7 bytes means, in the words of HID 1.11, section 6.2.2.
REPORT_DESCRIPTOR: Final = bytes.fromhex(
    "05 01 09 02 a1 01"  # generic desktop, mouse, application
    "09 01 a1 00"  # pointer, physical
    "05 09 19 01 29 03 15 00 25 01 95 03 75 01 81 02"  # buttons 1 to 3, a bit each
    "95 01 75 05 81 01"  # five bits of nothing
    "05 01 09 30 09 31 15 00 26 ff 7f 75 10 95 02 81 02"  # X and Y: 16 bits each, 0 to 32767, absolute
    "09 38 16 01 80 95 01 81 06"  # wheel: 16 bits, relative
    "c0 c0"
)


def to_absolute(pixel: int, size: int) -> int:
    """From a pixel of a screen of that size to a position."""
    last = max(size - 1, 1)
    return (min(pixel, last) * POSITION_MAX + last // 2) // last


def to_pixel(position: int, size: int) -> int:
    """The other way; exact for screens that are not larger than POSITION_MAX."""
    return (position * (size - 1) + POSITION_MAX // 2) // POSITION_MAX


class MouseMessage(IntEnum):
    REQUEST = 0
    RESPONSE = 1
    DEVICE_INFO = 2
    DEVICE_INFO_ACK = 3
    REPORT = 4


class Buttons(IntFlag):
    LEFT = 1
    RIGHT = 2
    MIDDLE = 4


_ALL_BUTTONS: Final = Buttons.LEFT | Buttons.RIGHT | Buttons.MIDDLE


@dataclass(frozen=True, slots=True)
class MouseRequest:
    version: int

    def encode(self) -> bytes:
        return encode_piped(MouseMessage.REQUEST, _REQUEST.pack(self.version))


@dataclass(frozen=True, slots=True)
class MouseResponse:
    version: int
    approved: bool

    def encode(self) -> bytes:
        return encode_piped(MouseMessage.RESPONSE, _RESPONSE.pack(self.version, self.approved))


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What the guest's HID layer wants to know."""

    vendor: int = 0x045E
    product: int = 0x0621
    version: int = 1
    report_descriptor: bytes = REPORT_DESCRIPTOR

    def encode(self) -> bytes:
        length = len(self.report_descriptor)
        hid = _HID.pack(_HID.size, _HID_DESCRIPTOR, _HID_VERSION, 0, 1, _HID_REPORT, length)
        attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, self.vendor, self.product, self.version)
        padded = self.report_descriptor.ljust(REPORT_DESCRIPTOR_BYTES_MAX, b"\0")
        return encode_piped(MouseMessage.DEVICE_INFO, attributes + hid + padded)


@dataclass(frozen=True, slots=True)
class DeviceInfoAck:
    def encode(self) -> bytes:
        return encode_piped(MouseMessage.DEVICE_INFO_ACK, _ACK.pack(0))


@dataclass(frozen=True, slots=True)
class MouseReport:
    buttons: Buttons
    x: int  # 0 to POSITION_MAX
    y: int
    wheel: int = 0  # notches; up is positive

    def encode(self) -> bytes:
        return encode_piped(MouseMessage.REPORT, _REPORT.pack(self.buttons, self.x, self.y, self.wheel))


ToMouseHost = MouseRequest | DeviceInfoAck
ToMouseGuest = MouseResponse | DeviceInfo | MouseReport


def decode_for_host(payload: bytes) -> ToMouseHost:
    """DisplayError."""
    number, body = decode_piped(payload)
    match number:
        case MouseMessage.REQUEST:
            return MouseRequest(*fields(_REQUEST, body))
        case MouseMessage.DEVICE_INFO_ACK:
            return DeviceInfoAck()
    raise DisplayError(f"mouse message {number} to the host")


def decode_for_guest(payload: bytes) -> ToMouseGuest:
    """DisplayError."""
    number, body = decode_piped(payload)
    match number:
        case MouseMessage.RESPONSE:
            version, approved = fields(_RESPONSE, body)
            return MouseResponse(version, bool(approved))
        case MouseMessage.DEVICE_INFO:
            return _device_info(body)
        case MouseMessage.REPORT:
            buttons, x, y, wheel = fields(_REPORT, body)
            if buttons & ~_ALL_BUTTONS or max(x, y) > POSITION_MAX or wheel < -WHEEL_MAX:
                raise DisplayError(f"a report of buttons {buttons:#x} at {x},{y}, wheel {wheel}")
            return MouseReport(Buttons(buttons), x, y, wheel)
    raise DisplayError(f"mouse message {number} to the guest")


def _device_info(body: bytes) -> DeviceInfo:
    size, vendor, product, version = fields(_ATTRIBUTES, body)
    _, kind, _, _, count, report, length = fields(_HID, body, _ATTRIBUTES.size)
    at = _ATTRIBUTES.size + _HID.size
    if (size, kind, count, report) != (_ATTRIBUTES.size, _HID_DESCRIPTOR, 1, _HID_REPORT):
        raise DisplayError("descriptors of no HID device")
    if not 0 < length <= min(REPORT_DESCRIPTOR_BYTES_MAX, len(body) - at):
        raise DisplayError(f"a report descriptor of {length} bytes in {len(body) - at}")
    return DeviceInfo(vendor, product, version, body[at : at + length])
