"""The synthetic keyboard's messages: in-band packets without a pipe header, both ways.

    guest   request (version)  ->  host   response (accepted)
    host    keystroke, one for each key that goes down or up
    guest   LEDs

Source: openvmm vm/devices/uidevices/src/keyboard/protocol.rs; Linux drivers/input/serio/hyperv-keyboard.c.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final, Self

from partitions.display.display_error import DisplayError

VERSION: Final = 0x0001_0000  # major << 16 | minor
MAKE_CODE_MAX: Final = 0x7F  # of set 1; that a key goes up is a flag

_TYPE: Final = struct.Struct("<I")
_WORD: Final = struct.Struct("<II")
_KEYSTROKE: Final = struct.Struct("<IHHI")
_LEDS: Final = struct.Struct("<IHH")

assert (_WORD.size, _KEYSTROKE.size, _LEDS.size) == (8, 12, 8)  # bytes


class KeyboardMessage(IntEnum):
    REQUEST = 1
    RESPONSE = 2
    EVENT = 3
    LEDS = 4


class KeyFlags(IntFlag):
    UNICODE = 1  # the code is a UTF-16 unit
    BREAK = 2  # the key goes up
    E0 = 4
    E1 = 8


_NO_FLAGS: Final = KeyFlags(0)
_ALL_FLAGS: Final = KeyFlags.UNICODE | KeyFlags.BREAK | KeyFlags.E0 | KeyFlags.E1


@dataclass(frozen=True, slots=True)
class KeyboardRequest:
    version: int

    def encode(self) -> bytes:
        return _WORD.pack(KeyboardMessage.REQUEST, self.version)


@dataclass(frozen=True, slots=True)
class KeyboardResponse:
    accepted: bool

    def encode(self) -> bytes:
        return _WORD.pack(KeyboardMessage.RESPONSE, int(self.accepted))


@dataclass(frozen=True, slots=True)
class Keystroke:
    make_code: int  # of set 1
    flags: KeyFlags = _NO_FLAGS

    @property
    def is_break(self) -> bool:
        return bool(self.flags & KeyFlags.BREAK)

    @property
    def key(self) -> int:
        """As partitions.emulated.scan_codes numbers keys: 0xE0 in front of those that have it."""
        return self.make_code | (0xE000 if self.flags & KeyFlags.E0 else 0)

    @classmethod
    def of_key(cls, key: int, pressed: bool) -> Self:
        flags = KeyFlags(0) if pressed else KeyFlags.BREAK
        return cls(key & MAKE_CODE_MAX, flags | KeyFlags.E0 if key > 0xFF else flags)

    def encode(self) -> bytes:
        return _KEYSTROKE.pack(KeyboardMessage.EVENT, self.make_code, 0, self.flags)


@dataclass(frozen=True, slots=True)
class KeyboardLeds:
    lit: int  # 1 scroll lock, 2 num lock, 4 caps lock

    def encode(self) -> bytes:
        return _LEDS.pack(KeyboardMessage.LEDS, self.lit, 0)


ToKeyboardHost = KeyboardRequest | KeyboardLeds
ToKeyboardGuest = KeyboardResponse | Keystroke


def decode_for_host(data: bytes) -> ToKeyboardHost:
    """Padding behind a message is ignored: packets are rounded up to 8 bytes. DisplayError."""
    match _type_of(data):
        case KeyboardMessage.REQUEST:
            return KeyboardRequest(_fields(_WORD, data)[1])
        case KeyboardMessage.LEDS:
            return KeyboardLeds(_fields(_LEDS, data)[1])
        case number:
            raise DisplayError(f"keyboard message {number} to the host")


def decode_for_guest(data: bytes) -> ToKeyboardGuest:
    """DisplayError."""
    match _type_of(data):
        case KeyboardMessage.RESPONSE:
            return KeyboardResponse(bool(_fields(_WORD, data)[1] & 1))
        case KeyboardMessage.EVENT:
            _, code, _, flags = _fields(_KEYSTROKE, data)
            if flags & ~_ALL_FLAGS or (not flags & KeyFlags.UNICODE and code > MAKE_CODE_MAX):
                raise DisplayError(f"keystroke {code:#x} with flags {flags:#x}")
            return Keystroke(code, KeyFlags(flags))
        case number:
            raise DisplayError(f"keyboard message {number} to the guest")


def _type_of(data: bytes) -> int:
    return _fields(_TYPE, data)[0]


def _fields(layout: struct.Struct, data: bytes) -> tuple[int, ...]:
    if len(data) < layout.size:
        raise DisplayError(f"{len(data)} bytes of a keyboard message of {layout.size}")
    return layout.unpack_from(data)
