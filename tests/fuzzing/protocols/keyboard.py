"""The synthetic keyboard: what a guest says beside keys that a viewer presses; what a host may send."""

from contextlib import suppress
from copy import deepcopy
from typing import Final

from partitions.display.conversation import DisplayClosedError
from partitions.display.display_error import DisplayError
from partitions.display.keyboard import Keyboard
from partitions.display.keyboard_session import KEYS_DOWN_MAX, KeyboardSession
from partitions.display.keyboard_wire import (
    VERSION,
    KeyboardLeds,
    KeyboardRequest,
    KeyboardResponse,
    KeyFlags,
    Keystroke,
    decode_for_guest,
)
from tests.fuzzing.pieces import cut, join
from tests.fuzzing.scripted_channel import INBAND_MARK, ScriptedChannel
from tests.fuzzing.targets import Side, target

_SAYS, _PRESSES, _LETS_GO = range(3)  # what a piece is, by its first byte
_KEYS: Final = (0x1E, 0x2A, 0xE01D, 0x7F)


def _guest_seeds() -> list[bytes]:
    def says(message: KeyboardRequest | KeyboardLeds) -> bytes:
        return bytes([_SAYS]) + message.encode()

    keys = [bytes([_PRESSES, key, pressed]) for key in range(20) for pressed in (1, 1)]
    asked = says(KeyboardRequest(VERSION))
    return [
        join([asked, says(KeyboardLeds(7)), *keys, bytes([_LETS_GO]), asked]),
        join([says(KeyboardRequest(1)), *keys[:2], asked]),
    ]


@target("keyboard", Side.HOST, _guest_seeds)
def host(data: bytes) -> None:
    """A refused message changes nothing; the guest is told of each key that goes up, and only of those it has down."""
    session, down = KeyboardSession(), set[int]()
    for piece in cut(data):
        if not piece:
            continue
        before, told = deepcopy(session), []
        match piece[0] % 3:
            case 0:
                try:
                    told = session.receive(piece[1:])
                except DisplayError:
                    assert session == before, "a refused message changed something"
                    continue
                if isinstance(decode_for_guest(told[0]) if told else None, KeyboardResponse):
                    down.clear()  # the guest begins again, and knows of no key
            case 1 if len(piece) > 2:
                key = piece[1] if piece[1] < 0x80 else _KEYS[piece[1] % len(_KEYS)]
                told = session.press(key, bool(piece[2] & 1))
            case 2:
                told = session.let_go()
                assert not session.agreed or not session.down
        for payload in told:
            message = decode_for_guest(payload)
            if isinstance(message, Keystroke):
                assert session.agreed
                assert not message.is_break or message.key in down
                (down.discard if message.is_break else down.add)(message.key)
        assert len(session.down) <= KEYS_DOWN_MAX
        assert set(session.down) == down
        heir = KeyboardSession.from_record(session.to_record())
        assert (heir.agreed, heir.down) == (session.agreed, session.down)


def _host_seeds() -> list[bytes]:
    said = [
        KeyboardResponse(True).encode(),
        Keystroke.of_key(0x2A, True).encode(),
        Keystroke.of_key(0x1E, True).encode(),
        Keystroke.of_key(0x1E, False).encode(),
        Keystroke(0xD800, KeyFlags.UNICODE).encode(),
        Keystroke.of_key(0xE01C, True).encode(),
    ]
    return [join([INBAND_MARK + one for one in said])]


@target("keyboard", Side.GUEST, _host_seeds)
def guest(data: bytes) -> None:
    pieces = list(cut(data))
    script, channel = ScriptedChannel.of(pieces)
    with suppress(DisplayClosedError):
        keyboard = Keyboard(channel)
        with suppress(DisplayClosedError):
            while (stroke := keyboard.read()) is not None:
                typed = keyboard.typed(stroke)
                assert len(typed) <= 1
                assert not typed or not stroke.is_break
                typed.encode()  # it is text
        assert 1 + keyboard.strokes + keyboard.malformed <= script.given
    assert len(script.sent) == 1
