"""Messages of RFB, the protocol of VNC viewers, from 3.3 to 3.8. All integers are big-endian.

Source: RFC 6143, section 7.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

from partitions.display.pixel_format import PIXEL_FORMAT_BYTES, PixelFormat, PixelFormatError
from partitions.display.rectangle import Rectangle

SERVER_VERSION: Final = b"RFB 003.008\n"
VERSION_BYTES: Final = 12
SECURITY_NONE: Final = 1
ENCODINGS_MAX: Final = 256  # that a viewer may list
CUT_TEXT_BYTES_MAX: Final = 256 << 10  # of its clipboard; it is dropped

_PIXEL_FORMAT: Final = struct.Struct(f">B3x{PIXEL_FORMAT_BYTES}s")
_ENCODINGS: Final = struct.Struct(">BxH")
_UPDATE_REQUEST: Final = struct.Struct(">BBHHHH")
_KEY: Final = struct.Struct(">BB2xI")
_POINTER: Final = struct.Struct(">BBHH")
_CUT_TEXT: Final = struct.Struct(">B3xI")
_INIT: Final = struct.Struct(f">HH{PIXEL_FORMAT_BYTES}sI")
_UPDATE: Final = struct.Struct(">BxH")
_RECTANGLE: Final = struct.Struct(">HHHHi")
_COLOUR_MAP: Final = struct.Struct(">BxHH")
_U32: Final = struct.Struct(">I")

assert (_PIXEL_FORMAT.size, _UPDATE_REQUEST.size, _KEY.size, _POINTER.size) == (20, 10, 8, 6)  # bytes
assert (_CUT_TEXT.size, _INIT.size, _RECTANGLE.size) == (8, 24, 12)


class RfbError(Exception):
    """What a viewer said cannot be: its connection ends."""


class Encoding(IntEnum):
    RAW = 0
    ZLIB = 6
    ZRLE = 16
    DESKTOP_SIZE = -223  # not one of pixels: the screen has another size


class ClientMessage(IntEnum):
    SET_PIXEL_FORMAT = 0
    SET_ENCODINGS = 2
    UPDATE_REQUEST = 3
    KEY = 4
    POINTER = 5
    CUT_TEXT = 6


@dataclass(frozen=True, slots=True)
class SetPixelFormat:
    format: PixelFormat


@dataclass(frozen=True, slots=True)
class SetEncodings:
    encodings: tuple[int, ...]  # those that we do not know, too; dearest first


@dataclass(frozen=True, slots=True)
class UpdateRequest:
    incremental: bool
    part: Rectangle


@dataclass(frozen=True, slots=True)
class KeyEvent:
    pressed: bool
    keysym: int


@dataclass(frozen=True, slots=True)
class PointerEvent:
    buttons: int  # bit 0 left, 1 middle, 2 right, 3 wheel up, 4 wheel down
    x: int
    y: int


@dataclass(frozen=True, slots=True)
class CutText:
    """The viewer's clipboard; what is in it was not kept."""


FromViewer: TypeAlias = SetPixelFormat | SetEncodings | UpdateRequest | KeyEvent | PointerEvent | CutText


def take_message(data: bytearray) -> FromViewer | None:
    """The first message, which is removed. None: it is not all there. RfbError."""
    if not data:
        return None
    match data[0]:
        case ClientMessage.SET_PIXEL_FORMAT:
            return _take_pixel_format(data)
        case ClientMessage.SET_ENCODINGS:
            return _take_encodings(data)
        case ClientMessage.UPDATE_REQUEST:
            if (fields := _take(_UPDATE_REQUEST, data)) is None:
                return None
            _, incremental, x, y, width, height = fields
            return UpdateRequest(bool(incremental), Rectangle(x, y, x + width, y + height))
        case ClientMessage.KEY:
            fields = _take(_KEY, data)
            return None if fields is None else KeyEvent(bool(fields[1]), fields[2])
        case ClientMessage.POINTER:
            fields = _take(_POINTER, data)
            return None if fields is None else PointerEvent(*fields[1:])
        case ClientMessage.CUT_TEXT:
            return _take_cut_text(data)
        case number:
            raise RfbError(f"message {number}")


def _take_pixel_format(data: bytearray) -> SetPixelFormat | None:
    if len(data) < _PIXEL_FORMAT.size:
        return None
    _, encoded = _PIXEL_FORMAT.unpack_from(data)
    del data[: _PIXEL_FORMAT.size]
    try:
        return SetPixelFormat(PixelFormat.decode(encoded))
    except PixelFormatError as error:
        raise RfbError(str(error)) from error


def _take(layout: struct.Struct, data: bytearray) -> tuple[int, ...] | None:
    if len(data) < layout.size:
        return None
    fields = layout.unpack_from(data)
    del data[: layout.size]
    return fields


def _take_encodings(data: bytearray) -> SetEncodings | None:
    if len(data) < _ENCODINGS.size:
        return None
    count = _ENCODINGS.unpack_from(data)[1]
    if count > ENCODINGS_MAX:
        raise RfbError(f"{count} encodings")
    rows = struct.Struct(f">{count}i")
    if len(data) < _ENCODINGS.size + rows.size:
        return None
    encodings = rows.unpack_from(data, _ENCODINGS.size)
    del data[: _ENCODINGS.size + rows.size]
    return SetEncodings(encodings)


def _take_cut_text(data: bytearray) -> CutText | None:
    if len(data) < _CUT_TEXT.size:
        return None
    length = _CUT_TEXT.unpack_from(data)[1]
    if length > CUT_TEXT_BYTES_MAX:
        raise RfbError(f"a clipboard of {length} bytes")
    if len(data) < _CUT_TEXT.size + length:
        return None
    del data[: _CUT_TEXT.size + length]
    return CutText()


def security_types(minor: int) -> bytes:
    """Of our one kind: a list from 3.7 on; before, the server decides."""
    return _U32.pack(SECURITY_NONE) if minor < 7 else bytes([1, SECURITY_NONE])


def refusal(minor: int, reason: str) -> bytes:
    """In the place of `security_types`."""
    text = reason.encode()
    head = _U32.pack(0) if minor < 7 else bytes([0])
    return head + _U32.pack(len(text)) + text


SECURITY_DONE: Final = _U32.pack(0)


def server_init(width: int, height: int, pixel_format: PixelFormat, name: str) -> bytes:
    text = name.encode()
    return _INIT.pack(width, height, pixel_format.encode(), len(text)) + text


def update_head(rectangles: int) -> bytes:
    return _UPDATE.pack(0, rectangles)


def rectangle_head(part: Rectangle, encoding: Encoding) -> bytes:
    return _RECTANGLE.pack(part.left, part.top, part.width, part.height, encoding)


def colour_map(pixel_format: PixelFormat) -> bytes:
    """All 256 colours of a true-colour format of 8 bits."""
    rows = bytearray()
    for index in range(256):
        for most, shift in (
            (pixel_format.red_max, pixel_format.red_shift),
            (pixel_format.green_max, pixel_format.green_shift),
            (pixel_format.blue_max, pixel_format.blue_shift),
        ):
            rows += ((index >> shift & most) * 0xFFFF // most).to_bytes(2, "big")
    return _COLOUR_MAP.pack(1, 0, 256) + rows
