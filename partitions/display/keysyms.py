"""From a viewer's keysyms to keys of a PC's keyboard, as a US layout has them.

A viewer sends what a key means ("A"), a keyboard what was pressed (Shift, and the key of "a"). Most viewers send Shift
too; for those that do not it is pressed around the key.

Source: X11 keysymdef.h; RFC 6143, section 7.5.4.
"""

from dataclasses import dataclass, field
from typing import Final

from partitions.emulated.scan_codes import KEYS

SHIFT: Final = KEYS["shift"]
_SHIFTS: Final = (SHIFT, KEYS["right shift"])
KEYS_HELD_MAX: Final = 32  # by one viewer

_SHIFTED: Final = dict(zip('!@#$%^&*()_+{}|:"~<>?', "1234567890-=[]\\;'`,./", strict=True))

_NAMED: Final[dict[int, int]] = {
    0xFF08: KEYS["backspace"],
    0xFF09: KEYS["tab"],
    0xFE20: KEYS["tab"],  # with Shift
    0xFF0D: KEYS["enter"],
    0xFF1B: KEYS["escape"],
    0xFF13: 0x45,  # pause
    0xFF14: 0x46,  # scroll lock
    0xFF15: 0x54,  # system request
    0xFF61: 0xE037,  # print
    0xFF50: KEYS["home"],
    0xFF51: KEYS["left"],
    0xFF52: KEYS["up"],
    0xFF53: KEYS["right"],
    0xFF54: KEYS["down"],
    0xFF55: KEYS["page up"],
    0xFF56: KEYS["page down"],
    0xFF57: KEYS["end"],
    0xFF63: KEYS["insert"],
    0xFFFF: KEYS["delete"],
    0xFF67: 0xE05D,  # menu
    0xFF7F: 0x45,  # num lock
    0xFFE1: SHIFT,
    0xFFE2: KEYS["right shift"],
    0xFFE3: KEYS["control"],
    0xFFE4: 0xE01D,  # right control
    0xFFE5: KEYS["caps lock"],
    0xFFE7: 0xE05B,  # meta: what PCs call the Windows key
    0xFFE8: 0xE05C,
    0xFFE9: KEYS["alt"],
    0xFFEA: 0xE038,  # right alt
    0xFE03: 0xE038,  # AltGr
    0xFFEB: 0xE05B,
    0xFFEC: 0xE05C,
    **{0xFFBE + number: KEYS[f"f{number + 1}"] for number in range(12)},
    # the keypad: enter, then * + - . / and the digits, then the same keys without num lock
    0xFF8D: 0xE01C,
    0xFFAA: 0x37,
    0xFFAB: 0x4E,
    0xFFAD: 0x4A,
    0xFFAE: 0x53,
    0xFFAF: 0xE035,
    **{0xFFB0 + digit: code for digit, code in enumerate(bytes.fromhex("52 4f 50 51 4b 4c 4d 47 48 49"))},
    **dict(zip(range(0xFF95, 0xFFA0), bytes.fromhex("47 4b 48 4d 50 49 51 4f 4c 52 53"), strict=True)),
}


@dataclass(frozen=True, slots=True)
class Key:
    number: int  # as scan_codes has it
    shifted: bool | None  # whether Shift belongs to it; None: whatever it is


def key_of(keysym: int) -> Key | None:
    """None: no key of a PC has it."""
    if (named := _NAMED.get(keysym)) is not None:
        return Key(named, True if keysym == 0xFE20 else None)
    if not 0x20 <= keysym < 0x7F:
        return None
    character = chr(keysym)
    if character in _SHIFTED:
        return Key(KEYS[_SHIFTED[character]], True)
    if character.isupper():
        return Key(KEYS[character.lower()], True)
    return Key(KEYS[character], False)


@dataclass(slots=True)
class ViewerKeys:
    """Which keys one viewer holds; what of it the guest's keyboard is to say. No I/O."""

    _held: dict[int, int] = field(default_factory=dict)  # key by keysym
    unknown: int = 0

    def change(self, keysym: int, pressed: bool) -> list[tuple[int, bool]]:
        """Keys that go down or up, in order."""
        if not pressed:
            number = self._held.pop(keysym, None)
            return [] if number is None else [(number, False)]
        if (key := key_of(keysym)) is None or (keysym not in self._held and len(self._held) >= KEYS_HELD_MAX):
            self.unknown += 1
            return []
        self._held[keysym] = key.number
        if key.shifted and not any(number in _SHIFTS for number in self._held.values()):
            return [(SHIFT, True), (key.number, True), (SHIFT, False)]
        return [(key.number, True)]

    def let_go(self) -> list[tuple[int, bool]]:
        """The viewer is no more."""
        released = [(number, False) for number in dict.fromkeys(self._held.values())]
        self._held.clear()
        return released
