"""The i8042 and its keyboard: commands, scan codes in both sets, and accesses that make no sense."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitions.emulated.keyboard import (
    ACK,
    COMMAND,
    DATA,
    KEYBOARD_BYTES_MAX,
    RESEND,
    STATUS_OUTPUT,
    KeyboardController,
)
from partitions.emulated.scan_codes import KEYS, key_bytes, translated


def _drain(controller: KeyboardController) -> bytes:
    found = bytearray()
    while controller.read(COMMAND, 1) & STATUS_OUTPUT:
        found.append(controller.read(DATA, 1))
    return bytes(found)


def _command(controller: KeyboardController, *values: int) -> bytes:
    controller.write(COMMAND, 1, values[0])
    for value in values[1:]:
        controller.write(DATA, 1, value)
    return _drain(controller)


def _keyboard(controller: KeyboardController, *values: int) -> bytes:
    """Its answers, each taken before the next byte is sent."""
    answers = b""
    for value in values:
        controller.write(DATA, 1, value)
        answers += _drain(controller)
    return answers


def test_a_pc_firmware_finds_a_controller_and_a_keyboard() -> None:
    controller = KeyboardController()
    assert _command(controller, 0xAA) == b"\x55"
    assert _command(controller, 0xAB) == b"\x00"
    assert _command(controller, 0x20) == b"\x45"
    _command(controller, 0x60, 0x05)  # interrupts, no translation
    assert _command(controller, 0x20) == b"\x05"
    assert _keyboard(controller, 0xFF) == bytes([ACK, 0xAA])
    assert _keyboard(controller, 0xF2) == bytes([ACK, 0xAB, 0x83])
    assert _keyboard(controller, 0xEE) == b"\xee"
    assert _keyboard(controller, 0xED, 0x04) == bytes([ACK, ACK])
    assert controller.leds == 4
    assert _keyboard(controller, 0x55) == bytes([RESEND])
    assert _command(controller, 0xA9) != b"\x00"  # no mouse


@pytest.mark.parametrize("name", list(KEYS))
def test_a_key_says_the_same_in_set_1_translated_set_2_and_set_1_of_the_keyboard(name: str) -> None:
    """The controller's translation of set 2 is set 1: the tables agree in both directions."""
    key = KEYS[name]
    for pressed in (True, False):
        translating, plain, first = KeyboardController(), KeyboardController(), KeyboardController()
        for controller in (plain, first):
            _command(controller, 0x60, 0x05)
        assert _keyboard(first, 0xF0, 1) == bytes([ACK, ACK])
        for controller in (translating, plain, first):
            assert controller.press(key, pressed)
        expected = key_bytes(key, pressed, 1)
        assert _drain(translating) == expected
        assert _drain(first) == expected
        assert _drain(plain) == key_bytes(key, pressed, 2)
    codes = key_bytes(key, True, 2)
    assert bytes(map(translated, codes)) == key_bytes(key, True, 1)


def test_known_scan_codes() -> None:
    """A few that every PC programmer has seen."""
    assert key_bytes(KEYS["a"], True, 2) == b"\x1c"
    assert key_bytes(KEYS["a"], False, 2) == b"\xf0\x1c"
    assert key_bytes(KEYS["escape"], True, 2) == b"\x76"
    assert key_bytes(KEYS["f7"], True, 2) == b"\x83"
    assert key_bytes(KEYS["enter"], True, 1) == b"\x1c"
    assert key_bytes(KEYS["up"], False, 1) == b"\xe0\xc8"
    assert key_bytes(KEYS["up"], False, 2) == b"\xe0\xf0\x75"


def test_a_full_keyboard_says_so_once_and_loses_no_half_of_a_key() -> None:
    controller = KeyboardController()
    _command(controller, 0x60, 0x05)
    pressed = [controller.press(KEYS["a"]) for _ in range(KEYBOARD_BYTES_MAX + 5)]
    assert pressed == [True] * (KEYBOARD_BYTES_MAX - 1) + [False] * 6
    assert _drain(controller) == b"\x1c" * (KEYBOARD_BYTES_MAX - 1) + b"\x00"


def test_the_reset_and_a20_lines() -> None:
    controller = KeyboardController()
    lines = [controller.a20]
    _command(controller, 0xDD)
    lines.append(controller.a20)
    assert _command(controller, 0xD0)[0] & 0x03 == 0x01
    _command(controller, 0xD1, 0x03)
    lines.append(controller.a20)
    assert lines == [True, False, True]
    assert not controller.take_reset()
    for values in ((0xFE,), (0xF0,), (0xD1, 0x02)):
        _command(controller, *values)
        assert controller.take_reset()
        assert not controller.take_reset()
    _command(controller, 0xFF)  # pulses nothing
    assert not controller.take_reset()


def test_each_byte_interrupts_if_it_may() -> None:
    controller = KeyboardController()
    controller.press(KEYS["up"])
    assert controller.take_interrupt()
    assert not controller.take_interrupt()
    controller.read(DATA, 1)
    assert controller.take_interrupt()  # for the second byte
    controller.read(DATA, 1)
    assert not controller.take_interrupt()
    _command(controller, 0x60, 0x44)
    controller.press(KEYS["a"])
    assert not controller.take_interrupt()
    controller.write(COMMAND, 1, 0xAD)  # the keyboard is off: its bytes wait
    assert not controller.read(COMMAND, 1) & STATUS_OUTPUT
    controller.write(COMMAND, 1, 0xAE)
    assert _drain(controller) == b"\x1e"


def test_scanning_can_be_switched_off() -> None:
    controller = KeyboardController()
    assert _keyboard(controller, 0xF5) == bytes([ACK])
    assert controller.press(KEYS["a"])
    assert _drain(controller) == b""
    assert _keyboard(controller, 0xF4) == bytes([ACK])
    controller.press(KEYS["a"])
    assert _drain(controller) == b"\x1e"


_ACCESS = st.tuples(st.integers(0, 1), st.booleans(), st.integers(0, 255), st.integers(-1, 90))


@given(st.lists(_ACCESS, max_size=60))
@settings(max_examples=200, deadline=None)
def test_garbage_is_answered_and_a_successor_answers_the_same(
    accesses: list[tuple[int, bool, int, int]],
) -> None:
    """Two controllers, one of which is replaced by its restored self after every access."""
    controller, successor = KeyboardController(), KeyboardController()
    for offset, is_write, value, key in accesses:
        keys = [each for each in KEYS.values() if each == key]
        for each in keys:
            assert controller.press(each) == successor.press(each)
        if is_write:
            controller.write(offset, 1, value)
            successor.write(offset, 1, value)
        else:
            byte = controller.read(offset, 1)
            assert byte == successor.read(offset, 1)
            assert 0 <= byte <= 255
        assert controller.save() == successor.save()
        assert controller.take_reset() == successor.take_reset()
        replacement = KeyboardController()
        replacement.restore(successor.save())
        successor = replacement
