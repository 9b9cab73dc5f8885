"""The guest's end of a keyboard.

with partition.open_keyboard("keyboard0") as keyboard:
    while (stroke := keyboard.read()) is not None:
        text += keyboard.typed(stroke)
"""

from typing import Final

from bus.native import Channel
from partitions.display.conversation import Conversation, DisplayClosedError
from partitions.display.keyboard_wire import (
    VERSION,
    KeyboardLeds,
    KeyboardRequest,
    KeyboardResponse,
    KeyFlags,
    Keystroke,
    ToKeyboardGuest,
    decode_for_guest,
)
from partitions.emulated.scan_codes import KEYS

_PLAIN: Final = {number: name for name, number in KEYS.items() if len(name) == 1}
_OTHER: Final = {KEYS["enter"]: "\n", KEYS["backspace"]: "\b", KEYS["tab"]: "\t", 0xE01C: "\n"}
_WITH_SHIFT: Final = dict(zip("1234567890-=[]\\;'`,./", '!@#$%^&*()_+{}|:"~<>?', strict=True))
_SURROGATES: Final = range(0xD800, 0xE000)  # of UTF-16
_SHIFTS: Final = (KEYS["shift"], KEYS["right shift"])


class Keyboard:
    """Agreed on a version from the start. One thread uses it."""

    def __init__(self, channel: Channel) -> None:
        """DisplayClosedError: the host knows no such version, or does not answer."""
        self._conversation: Final[Conversation[ToKeyboardGuest]] = Conversation(channel, decode_for_guest)
        self._shifts: set[int] = set()
        self._conversation.send(KeyboardRequest(VERSION).encode())
        if not self._conversation.wait_for(KeyboardResponse).accepted:
            raise DisplayClosedError("the host does not know this version of the keyboard")
        self.strokes = 0

    @property
    def malformed(self) -> int:
        return self._conversation.malformed

    def read(self, timeout_s: float | None = None) -> Keystroke | None:
        """The next key that goes down or up. None: none did, for so long. DisplayClosedError."""
        while (message := self._conversation.next(timeout_s)) is not None:
            if isinstance(message, Keystroke):
                self.strokes += 1
                return message
        return None

    def typed(self, stroke: Keystroke) -> str:
        """What that types on a US keyboard: mostly nothing, or a character. Remembers Shift."""
        if stroke.flags & KeyFlags.UNICODE:
            is_half = stroke.make_code in _SURROGATES  # of a character that is no key's; alone it is no text
            return "" if stroke.is_break or is_half else chr(stroke.make_code)
        if stroke.key in _SHIFTS:
            (self._shifts.discard if stroke.is_break else self._shifts.add)(stroke.key)
        if stroke.is_break:
            return ""
        if (other := _OTHER.get(stroke.key)) is not None:
            return other
        plain = _PLAIN.get(stroke.key, "")
        return _WITH_SHIFT.get(plain, plain.upper()) if self._shifts else plain

    def light(self, leds: int) -> None:
        """1 scroll lock, 2 num lock, 4 caps lock."""
        self._conversation.send(KeyboardLeds(leds).encode())
