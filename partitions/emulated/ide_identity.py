"""What an IDE disk says of itself: the 256 words of IDENTIFY DEVICE.

Source: T13/1153D, ATA/ATAPI-4, section 8.12.
"""

import struct
from typing import Final

HEADS: Final = 16
SECTORS_PER_TRACK: Final = 63
_CYLINDERS_MAX: Final = 16_383  # beyond that CHS says no more
_WORDS: Final = 256
_MODEL: Final = "partvisor IDE disk"
_FIRMWARE: Final = "1"
_ATA_4: Final = 0x1E  # versions 1 to 4
_FLUSHES: Final = 1 << 12
_VALID: Final = 1 << 14  # of words 83, 84 and 87, so that an old disk's zeros are told apart


def geometry(sectors: int) -> int:
    """Cylinders of a disk that has 16 heads of 63 sectors."""
    return min(sectors // (HEADS * SECTORS_PER_TRACK), _CYLINDERS_MAX)


def identify(sectors: int, serial: str) -> bytes:
    cylinders = geometry(sectors)
    addressed = cylinders * HEADS * SECTORS_PER_TRACK  # by CHS
    words = [0] * _WORDS
    words[0] = 0x0040  # a fixed disk
    words[1], words[3], words[6] = cylinders, HEADS, SECTORS_PER_TRACK
    words[10:20] = _text(serial, 10)
    words[23:27] = _text(_FIRMWARE, 4)
    words[27:47] = _text(_MODEL, 20)
    words[47] = 0x8000  # READ MULTIPLE: not supported
    words[48] = 1  # 32-bit accesses to the data port
    words[49] = 0x0200  # LBA
    words[50] = _VALID
    words[53] = 1  # the next five are valid
    words[54], words[55], words[56] = cylinders, HEADS, SECTORS_PER_TRACK
    words[57], words[58] = addressed & 0xFFFF, addressed >> 16
    words[60], words[61] = sectors & 0xFFFF, sectors >> 16
    words[80] = _ATA_4
    words[83], words[84] = _VALID | _FLUSHES, _VALID
    words[86], words[87] = _FLUSHES, _VALID
    data = bytearray(struct.pack(f"<{_WORDS}H", *words))
    data[510] = 0xA5  # the sum of all 512 bytes is 0
    data[511] = -sum(data) & 0xFF
    return bytes(data)


def _text(text: str, words: int) -> list[int]:
    """Two characters a word, the first one in the high byte; padded with blanks."""
    padded = text.encode("ascii", "replace")[: 2 * words].ljust(2 * words)
    return [padded[at] << 8 | padded[at + 1] for at in range(0, 2 * words, 2)]
