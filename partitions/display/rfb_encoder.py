"""Parts of a picture as one viewer gets them: raw, in a zlib stream, or as ZRLE's tiles in one.

A stream of zlib lasts as long as the connection. Of ZRLE's tiles there are two kinds: of one colour, and raw.

Source: RFC 6143, sections 7.7.1 and 7.7.6; Zlib is community-registered, number 6.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Final

from partitions.display.framebuffer import Picture
from partitions.display.pixel_format import PixelFormat
from partitions.display.rectangle import Rectangle
from partitions.display.rfb_wire import Encoding, rectangle_head

STRIPE_ROWS: Final = 64  # that are encoded, and sent, at once; as high as ZRLE's tiles are
TILE: Final = 64
LEVEL: Final = 1  # of zlib: most of what can be had, in the least time
_LENGTH: Final = struct.Struct(">I")
_RAW_TILE: Final = b"\0"
_SOLID_TILE: Final = b"\1"


def stripes_of(part: Rectangle) -> list[Rectangle]:
    """From top to bottom."""
    return [
        Rectangle(part.left, top, part.right, min(top + STRIPE_ROWS, part.bottom))
        for top in range(part.top, part.bottom, STRIPE_ROWS)
    ]


class Encoder:
    """Of one connection."""

    def __init__(self) -> None:
        self._streams = {kind: zlib.compressobj(LEVEL) for kind in (Encoding.ZLIB, Encoding.ZRLE)}

    def encode(self, picture: Picture, part: Rectangle, how: Encoding, pixels: PixelFormat) -> bytes:
        """One rectangle of an update, at most STRIPE_ROWS high."""
        head, data = rectangle_head(part, how), picture.read(part)
        if how is Encoding.RAW:
            return head + pixels.convert(data)
        if how is Encoding.ZRLE:
            data = b"".join(_tiles(pixels.compact(data), part.width, len(pixels.compact_bytes)))
        else:
            data = pixels.convert(data)
        stream = self._streams[how]
        packed = stream.compress(data) + stream.flush(zlib.Z_SYNC_FLUSH)
        return head + _LENGTH.pack(len(packed)) + packed


def _tiles(data: bytes, width: int, pixel_bytes: int) -> Iterator[bytes]:
    """Of one row of tiles, from left to right."""
    row_bytes = width * pixel_bytes
    for left in range(0, width, TILE):
        start, end = left * pixel_bytes, min(left + TILE, width) * pixel_bytes
        tile = b"".join([data[at + start : at + end] for at in range(0, len(data), row_bytes)])
        first = tile[:pixel_bytes]
        if tile == first * (len(tile) // pixel_bytes):
            yield _SOLID_TILE + first
        else:
            yield _RAW_TILE + tile
