"""PNG files of 8-bit RGB pixels. Source: PNG specification, W3C, third edition."""

import struct
import zlib
from typing import Final

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_HEADER: Final = struct.Struct(">IIBBBBB")
_RGB: Final = 2  # colour type
PIXEL_BYTES: Final = 3


def png_of(width: int, height: int, pixels: bytes) -> bytes:
    """`pixels`: rows from the top; red, green and blue, a byte each. ValueError: not as many."""
    row_bytes = width * PIXEL_BYTES
    if len(pixels) != row_bytes * height or not pixels:
        raise ValueError(f"{len(pixels)} bytes for {width} x {height} pixels")
    rows = b"".join(b"\0" + pixels[at : at + row_bytes] for at in range(0, len(pixels), row_bytes))
    header = _HEADER.pack(width, height, 8, _RGB, 0, 0, 0)
    return (
        _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows, 6)) + _chunk(b"IEND", b"")
    )


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
