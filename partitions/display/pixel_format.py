"""Pixels as a viewer wants them: any true-colour format of 8, 16 or 32 bits.

A framebuffer's pixels are three planes of bytes that lie interleaved. Each byte of a converted pixel is the bitwise or
of one table look-up in each plane: `bytes.translate` and strided slices do that without a loop over pixels.

Source: RFC 6143, section 7.4.
"""

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Self

_LAYOUT: Final = struct.Struct(">BBBBHHHBBB3x")
PIXEL_FORMAT_BYTES: Final = 16
_BITS: Final = (8, 16, 32)
_BLUE, _GREEN, _RED = 0, 1, 2  # place in a pixel of the framebuffer
_SOURCE_BYTES: Final = 4

assert _LAYOUT.size == PIXEL_FORMAT_BYTES


class PixelFormatError(ValueError):
    """No such pixels can be made. The text says why."""


@dataclass(frozen=True)  # not slotted: tables are made at first use
class PixelFormat:
    bits: int = 32
    depth: int = 24
    big_endian: bool = False
    true_colour: bool = True
    red_max: int = 255
    green_max: int = 255
    blue_max: int = 255
    red_shift: int = 16
    green_shift: int = 8
    blue_shift: int = 0

    def __post_init__(self) -> None:
        if self.bits not in _BITS:
            raise PixelFormatError(f"pixels of {self.bits} bits")
        if not self.true_colour:
            return
        for most, shift in self._channels:
            if most & (most + 1) or shift + most.bit_length() > self.bits:
                raise PixelFormatError(f"a colour of 0 to {most} at bit {shift} of {self.bits}")

    @property
    def _channels(self) -> tuple[tuple[int, int], ...]:
        """Largest value and shift, in the order of the framebuffer's bytes."""
        return (
            (self.blue_max, self.blue_shift),
            (self.green_max, self.green_shift),
            (self.red_max, self.red_shift),
        )

    @property
    def pixel_bytes(self) -> int:
        return self.bits // 8

    @property
    def is_native(self) -> bool:
        """As the framebuffer has them. The fourth byte means nothing."""
        own = (255, 0), (255, 8), (255, 16)
        return self.true_colour and self.bits == 32 and not self.big_endian and self._channels == own

    @cached_property
    def compact_bytes(self) -> tuple[int, ...]:
        """Which bytes of a pixel ZRLE sends: three of four, where colours lie in those alone. RFC 6143, 7.7.5."""
        every = tuple(range(self.pixel_bytes))
        if self.bits != 32 or self.depth > 24 or not self.true_colour:
            return every
        used = self.red_max << self.red_shift | self.green_max << self.green_shift
        used |= self.blue_max << self.blue_shift
        if used < 1 << 24:
            return every[1:] if self.big_endian else every[:3]
        if not used & 0xFF:
            return every[:3] if self.big_endian else every[1:]
        return every

    @cached_property
    def _tables(self) -> tuple[tuple[tuple[int, bytes], ...], ...]:
        """For each byte of a pixel: which planes have a part in it, and their tables."""
        found = []
        for place in range(self.pixel_bytes):
            shift = 8 * (self.pixel_bytes - 1 - place if self.big_endian else place)
            tables = []
            for plane, (most, at) in enumerate(self._channels):
                table = bytes(((value * most + 127) // 255 << at >> shift) & 0xFF for value in range(256))
                if any(table):
                    tables.append((plane, table))
            found.append(tuple(tables))
        return tuple(found)

    def convert(self, pixels: bytes) -> bytes:
        """From the framebuffer's."""
        return pixels if self.is_native else self._made_of(pixels, tuple(range(self.pixel_bytes)))

    def compact(self, pixels: bytes) -> bytes:
        """From the framebuffer's to what ZRLE sends."""
        return self._made_of(pixels, self.compact_bytes)

    def _made_of(self, pixels: bytes, places: tuple[int, ...]) -> bytes:
        count = len(pixels) // _SOURCE_BYTES
        made = bytearray(count * len(places))
        for at, place in enumerate(places):
            parts = [pixels[plane::_SOURCE_BYTES].translate(table) for plane, table in self._tables[place]]
            if parts:
                made[at :: len(places)] = _either(parts)
        return bytes(made)

    def encode(self) -> bytes:
        return _LAYOUT.pack(
            self.bits,
            self.depth,
            self.big_endian,
            self.true_colour,
            self.red_max,
            self.green_max,
            self.blue_max,
            self.red_shift,
            self.green_shift,
            self.blue_shift,
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """PixelFormatError."""
        bits, depth, big, true, *rest = _LAYOUT.unpack(data)
        return cls(bits, depth, bool(big), bool(true), *rest)


NATIVE: Final = PixelFormat()
# What a viewer with a colour map gets: the map is set once, to this.
MAPPED: Final = PixelFormat(8, 8, False, True, 7, 7, 3, 0, 3, 6)


def _either(parts: list[bytes]) -> bytes:
    """Bitwise or, byte by byte; all are of one length."""
    if len(parts) == 1:
        return parts[0]
    length = len(parts[0])
    total = 0
    for part in parts:
        total |= int.from_bytes(part, "little")
    return total.to_bytes(length, "little")
