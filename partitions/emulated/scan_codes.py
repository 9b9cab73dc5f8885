"""What a keyboard sends: the codes of its keys in sets 1 and 2.

Set 2 is what the keyboard itself says; the controller of a PC translates it to set 1 unless told not to. Key numbers
here are set 1's, as everywhere in PC software; E0 keys are those that the 101-key keyboard added.

Source: IBM PS/2 Hardware Interface Technical Reference, Keyboard (101- and 102-Key).
"""

from typing import Final

BREAK_PREFIX: Final = 0xF0  # of set 2; set 1 has bit 7 instead
EXTENDED_PREFIX: Final = 0xE0

# The controller's table, from set 2 to set 1. Codes from 0x84 on stay as they are: they are answers, not keys.
_TRANSLATION: Final = bytes.fromhex(
    "ff 43 41 3f 3d 3b 3c 58 64 44 42 40 3e 0f 29 59"
    "65 38 2a 70 1d 10 02 5a 66 71 2c 1f 1e 11 03 5b"
    "67 2e 2d 20 12 05 04 5c 68 39 2f 21 14 13 06 5d"
    "69 31 30 23 22 15 07 5e 6a 72 32 24 16 08 09 5f"
    "6b 33 25 17 18 0b 0a 60 6c 34 35 26 27 19 0c 61"
    "6d 73 28 74 1a 0d 62 6e 3a 36 1c 1b 75 2b 63 76"
    "55 56 77 78 79 7a 0e 7b 7c 4f 7d 4b 47 7e 7f 6f"
    "52 53 50 4c 4d 48 01 45 57 4e 51 4a 37 49 46 54"
    "80 81 82 41 54"
)


def translated(code: int) -> int:
    """From set 2 to set 1, for one byte."""
    return _TRANSLATION[code] if code < len(_TRANSLATION) else code


# The other way, for making set 2 from key numbers. F7 (0x83) and SysRq (0x84) are the odd ones out.
_SET_2: Final = {_TRANSLATION[code]: code for code in [*range(1, 0x80), 0x83] if _TRANSLATION[code] < 0x80}


def _numbered(first: int, keys: str) -> dict[str, int]:
    return {key: first + place for place, key in enumerate(keys)}


KEYS: Final[dict[str, int]] = {
    "escape": 0x01,
    **_numbered(0x02, "1234567890-="),
    "backspace": 0x0E,
    "tab": 0x0F,
    **_numbered(0x10, "qwertyuiop[]"),
    "enter": 0x1C,
    "control": 0x1D,
    **_numbered(0x1E, "asdfghjkl;'`"),
    "shift": 0x2A,
    **_numbered(0x2B, "\\zxcvbnm,./"),
    "right shift": 0x36,
    "alt": 0x38,
    " ": 0x39,
    "caps lock": 0x3A,
    **{f"f{number}": 0x3A + number for number in range(1, 11)},
    "f11": 0x57,
    "f12": 0x58,
    # with the prefix
    "home": 0xE047,
    "up": 0xE048,
    "page up": 0xE049,
    "left": 0xE04B,
    "right": 0xE04D,
    "end": 0xE04F,
    "down": 0xE050,
    "page down": 0xE051,
    "insert": 0xE052,
    "delete": 0xE053,
}


def key_bytes(key: int, pressed: bool, scan_set: int) -> bytes:
    """What the keyboard sends when this key (a value of KEYS) goes down or up."""
    prefix, code = (bytes([EXTENDED_PREFIX]), key & 0xFF) if key > 0xFF else (b"", key)
    if scan_set == 1:
        return prefix + bytes([code if pressed else code | 0x80])
    return prefix + (b"" if pressed else bytes([BREAK_PREFIX])) + bytes([_SET_2[code]])
