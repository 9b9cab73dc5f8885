"""The host's side of one keyboard channel: what may be said, and which keys the guest believes to be down. No I/O."""

import struct
from dataclasses import dataclass, field
from typing import Final, Self

from partitions.display.display_error import DisplayError
from partitions.display.keyboard_wire import (
    VERSION,
    KeyboardLeds,
    KeyboardRequest,
    KeyboardResponse,
    Keystroke,
    decode_for_host,
)

KEYS_DOWN_MAX: Final = 16  # at once; another key that goes down is not passed on
_RECORD: Final = struct.Struct(f"<BBB{KEYS_DOWN_MAX}s")
_E0: Final = 0x80  # of a key in the record


@dataclass(slots=True)
class KeyboardSession:
    """A guest may begin again at any time, as its driver does when it is loaded again."""

    agreed: bool = False
    leds: int = 0
    down: list[int] = field(default_factory=list)  # keys, as scan_codes numbers them

    def receive(self, payload: bytes) -> list[bytes]:
        """What to answer. DisplayError: nothing has changed."""
        match decode_for_host(payload):
            case KeyboardRequest(version):
                self.agreed = version == VERSION
                self.down.clear()
                return [KeyboardResponse(self.agreed).encode()]
            case KeyboardLeds(lit):
                if not self.agreed:
                    raise DisplayError("LEDs before a version is agreed on")
                self.leds = lit
        return []

    def press(self, key: int, pressed: bool) -> list[bytes]:
        """What the guest is to be told. A key that is down and goes down again repeats itself."""
        if not self.agreed:
            return []
        if pressed and key not in self.down:
            if len(self.down) >= KEYS_DOWN_MAX:
                return []
            self.down.append(key)
        elif not pressed:
            if key not in self.down:
                return []
            self.down.remove(key)
        return [Keystroke.of_key(key, pressed).encode()]

    def let_go(self) -> list[bytes]:
        """Every key goes up: whoever held it is no more."""
        return [data for key in list(self.down) for data in self.press(key, False)]

    def to_record(self) -> bytes:
        """A few bytes, of which a successor makes the same session."""
        keys = bytes(key & 0x7F | (_E0 if key > 0xFF else 0) for key in self.down)
        return _RECORD.pack(self.agreed, self.leds & 0xFF, len(keys), keys)

    @classmethod
    def from_record(cls, record: bytes) -> Self:
        agreed, leds, count, keys = _RECORD.unpack_from(record)
        down = [key & 0x7F | (0xE000 if key & _E0 else 0) for key in keys[:count]]
        return cls(bool(agreed), leds, down)
