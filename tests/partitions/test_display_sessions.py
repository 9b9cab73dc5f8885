"""The host's sessions, keysyms, and the RFB session: what is legal when, and what a successor knows."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus import guids
from bus.channel_messages import OfferFlags
from partitions.display.display_error import DisplayError
from partitions.display.keyboard_session import KEYS_DOWN_MAX, KeyboardSession
from partitions.display.keyboard_wire import VERSION as KEYBOARD_VERSION
from partitions.display.keyboard_wire import KeyboardLeds, KeyboardRequest, Keystroke
from partitions.display.keyboard_wire import decode_for_guest as keyboard_message
from partitions.display.keysyms import KEYS_HELD_MAX, SHIFT, ViewerKeys, key_of
from partitions.display.mouse_session import MouseSession
from partitions.display.mouse_wire import VERSION as MOUSE_VERSION
from partitions.display.mouse_wire import Buttons, DeviceInfoAck, MouseRequest
from partitions.display.pixel_format import MAPPED, PixelFormat
from partitions.display.rectangle import Rectangle
from partitions.display.rfb_session import Began, Event, Phase, RfbSession, Send
from partitions.display.rfb_wire import (
    CUT_TEXT_BYTES_MAX,
    ENCODINGS_MAX,
    Encoding,
    KeyEvent,
    PointerEvent,
    RfbError,
    UpdateRequest,
)
from partitions.display.video_session import RECORD_BYTES, VRAM_BYTES_MAX, VideoSession
from partitions.display.video_wire import (
    VERSIONS,
    Dirt,
    Output,
    Situation,
    VersionRequest,
    VramLocation,
)
from partitions.emulated.scan_codes import KEYS
from partitions.stack.framing import framing_of_interface

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)


def agreed_keyboard() -> KeyboardSession:
    session = KeyboardSession()
    assert session.receive(KeyboardRequest(KEYBOARD_VERSION).encode())
    return session


def shown() -> VideoSession:
    session = VideoSession(800, 600)
    session.receive(VersionRequest(VERSIONS[0]).encode())
    session.receive(VramLocation(1, 0x100000).encode())
    session.receive(Situation(2, (Output(True, 0, 32, 640, 480, 2560),)).encode())
    return session


def test_nothing_is_said_to_a_guest_that_has_not_agreed() -> None:
    assert KeyboardSession().press(KEYS["a"], True) == []
    with pytest.raises(DisplayError):
        KeyboardSession().receive(KeyboardLeds(1).encode())
    assert MouseSession().move(Buttons.LEFT, 1, 1) == []
    with pytest.raises(DisplayError):
        MouseSession().receive(DeviceInfoAck().encode())
    for message in (VramLocation(1, 0), Dirt(0, ()), Situation(1, ())):
        with pytest.raises(DisplayError):
            VideoSession(800, 600).receive(message.encode())
    assert not KeyboardSession().receive(KeyboardRequest(1).encode())[0][4]
    assert MouseSession().receive(MouseRequest(1).encode())[0][-1] == 0


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from([*KEYS.values(), *range(1, 0x58)]), st.booleans()), max_size=60))
def test_a_guest_sees_every_key_go_up_that_it_saw_go_down(changes: list[tuple[int, bool]]) -> None:
    session = agreed_keyboard()
    down: set[int] = set()

    def apply(messages: list[bytes]) -> None:
        for data in messages:
            stroke = keyboard_message(data)
            assert isinstance(stroke, Keystroke)
            (down.discard if stroke.is_break else down.add)(stroke.key)

    for key, pressed in changes:
        apply(session.press(key, pressed))
        assert len(down) <= KEYS_DOWN_MAX
    record = session.to_record()
    assert len(record) <= RECORD_BYTES
    successor = KeyboardSession.from_record(record.ljust(RECORD_BYTES, b"\0"))
    assert successor == session
    apply(successor.let_go())
    assert down == set()


def test_a_mouse_reports_once_its_descriptors_are_known_and_what_is_new() -> None:
    session = MouseSession()
    assert len(session.receive(MouseRequest(MOUSE_VERSION).encode())) == 2
    assert session.move(Buttons(0), 1, 2) == []
    assert session.receive(DeviceInfoAck().encode()) == []
    assert len(session.move(Buttons.LEFT, 1, 2)) == 1
    assert session.move(Buttons.LEFT, 1, 2) == []
    assert len(session.move(Buttons.LEFT, 1, 2, wheel=1)) == 1
    assert len(session.to_record()) <= RECORD_BYTES
    successor = MouseSession.from_record(session.to_record())
    assert successor == session
    assert len(successor.let_go()) == 1
    assert successor.buttons == Buttons(0)


OUTPUTS = st.builds(
    Output,
    st.booleans(),
    st.sampled_from([0, 4096]) | U32,
    st.sampled_from([32, 16]),
    st.integers(0, 900) | U32,
    st.integers(0, 700) | U32,
    st.sampled_from([3200, 3600]) | U32,
)
MESSAGES = st.one_of(
    st.builds(VersionRequest, st.sampled_from([*VERSIONS, 7])),
    st.builds(VramLocation, U64, st.none() | U64),
    st.builds(Situation, U64, st.lists(OUTPUTS, max_size=2).map(tuple)),
    st.builds(
        Dirt, st.integers(0, 1), st.lists(st.builds(Rectangle, *[st.integers(-9, 999)] * 4)).map(tuple)
    ),
)


@settings(max_examples=40)
@given(st.lists(MESSAGES, max_size=12))
def test_whatever_a_guest_says_its_screen_lies_within_the_limits(messages: list[VersionRequest]) -> None:
    session = VideoSession(800, 600)
    for message in messages:
        before = VideoSession.from_record(800, 600, session.to_record())
        assert before == session  # so a successor knows all there is to know
        try:
            outcome = session.receive(message.encode())
        except DisplayError:
            assert session == before
            continue
        if (one := session.output) is not None:
            assert max(one.width / 800, one.height / 600) <= 1
            assert one.width * 4 <= one.pitch
            assert one.vram_bytes <= VRAM_BYTES_MAX
            assert all(not part.is_empty for part in outcome.dirt)
            assert all(Rectangle(0, 0, one.width, one.height).holds(part) for part in outcome.dirt)
        else:
            assert outcome.dirt == ()


@pytest.mark.parametrize(
    "output",
    [
        Output(True, 0, 32, 801, 600, 3204),
        Output(True, 0, 32, 800, 601, 3200),
        Output(True, 0, 32, 15, 600, 3200),
        Output(True, 0, 16, 800, 600, 3200),
        Output(True, 0, 32, 800, 600, 3199),
        Output(True, VRAM_BYTES_MAX - 3200 * 600 + 1, 32, 800, 600, 3200),
    ],
)
def test_a_screen_beyond_the_limits_is_refused_and_the_old_one_stays(output: Output) -> None:
    session = shown()
    for outputs in ((output,), (), (output, output)):
        with pytest.raises(DisplayError):
            session.receive(Situation(3, outputs).encode())
    assert session == shown()


def test_dirt_beyond_the_screen_is_cut_off() -> None:
    far = Rectangle(-(2**31), 470, 2**31 - 1, 2**31 - 1)
    beside, inside_out = Rectangle(640, 0, 700, 480), Rectangle(9, 9, 3, 3)
    dirt = shown().receive(Dirt(0, (far, beside, inside_out)).encode()).dirt
    assert dirt == (Rectangle(0, 470, 640, 480),)
    with pytest.raises(DisplayError):
        shown().receive(Dirt(1, ()).encode())


def test_so_many_keys_at_once_and_no_more() -> None:
    session = agreed_keyboard()
    for key in range(1, KEYS_DOWN_MAX + 1):
        assert len(session.press(key, True)) == 1
    assert session.press(KEYS_DOWN_MAX + 1, True) == []
    assert session.press(KEYS_DOWN_MAX + 1, False) == []
    assert len(session.press(1, True)) == 1  # a key that repeats itself
    assert len(session.let_go()) == KEYS_DOWN_MAX


def test_a_new_version_and_a_new_place_show_nothing_until_told() -> None:
    session = shown()
    assert session.receive(Dirt(0, (Rectangle(0, 0, 1, 1),)).encode()).dirt
    session.receive(VramLocation(3, 0).encode())
    assert session.output is None
    assert shown().receive(Situation(4, (Output(False, 0, 32, 640, 480, 2560),)).encode()).changed


def test_offers_say_which_packets_have_a_pipe_header() -> None:
    assert framing_of_interface(guids.KEYBOARD) == {}
    for interface in (guids.MOUSE, guids.VIDEO):
        assert framing_of_interface(interface)["flags"] == OfferFlags.NAMED_PIPE


# -- keys


def test_every_character_of_ascii_is_a_key_and_shift_belongs_to_some() -> None:
    for code in range(0x20, 0x7F):
        assert key_of(code) is not None, chr(code)
    keys = ViewerKeys()
    assert keys.change(ord("A"), True) == [(SHIFT, True), (KEYS["a"], True), (SHIFT, False)]
    assert keys.change(ord("A"), False) == [(KEYS["a"], False)]
    assert keys.change(0xFFE1, True) == [(SHIFT, True)]  # a viewer that sends Shift by itself
    assert keys.change(ord("?"), True) == [(KEYS["/"], True)]
    assert keys.change(ord("?"), False) == [(KEYS["/"], False)]
    assert keys.change(0x1234567, True) == []
    assert keys.unknown == 1
    assert keys.let_go() == [(SHIFT, False)]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0x20, 0x7E) | st.integers(0xFF00, 0xFFFF), st.booleans()), max_size=80))
def test_a_viewer_that_leaves_holds_no_key(changes: list[tuple[int, bool]]) -> None:
    keys = ViewerKeys()
    down: list[int] = []
    for keysym, pressed in changes:
        for number, goes_down in keys.change(keysym, pressed):
            down = [one for one in down if one != number] + ([number] if goes_down else [])
        assert len(down) <= KEYS_HELD_MAX + 1
    for number, goes_down in keys.let_go():
        assert not goes_down
        down.remove(number)
    assert [one for one in down if one != SHIFT] == []


# -- viewers


def session_of(minor: int = 8) -> RfbSession:
    session = RfbSession("painter", 64, 48)
    events = session.receive(f"RFB 003.{minor:03}\n".encode())
    assert len(events) == 1
    if minor >= 7:
        session.receive(b"\1")
    assert isinstance(session.receive(b"\1")[-1], Began)
    return session


@pytest.mark.parametrize(
    ("minor", "expected"),
    [
        (3, ["00000001", None]),
        (5, ["00000001", None]),
        (7, ["0101", None]),
        (8, ["0101", "00000000", None]),
        (889, ["0101", "00000000", None]),
    ],
)
def test_the_handshake_of_each_version(minor: int, expected: list[str | None]) -> None:
    """Byte by byte, as slow as a client can be."""
    session = RfbSession("painter", 64, 48)
    sent: list[Event] = []
    said = f"RFB 003.{minor:03}\n".encode() + (b"\1" if minor >= 7 else b"") + b"\1"
    for byte in said:
        sent += session.receive(bytes([byte]))
    assert isinstance(sent.pop(), Began)
    found = [one.data.hex() if isinstance(one, Send) else "?" for one in sent]
    assert found[:-1] == [one for one in expected if one is not None]
    assert found[-1] == "00400030" + PixelFormat().encode().hex() + "00000007" + b"painter".hex()


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\n", b"RFB 004.008\n", b"RFB 003.008\n\2", b"RFB 003.008\n\1\1\7"]
)
def test_what_is_no_viewer_is_sent_away(said: bytes) -> None:
    with pytest.raises(RfbError):
        RfbSession("painter", 64, 48).receive(said)


@pytest.mark.parametrize(
    "said",
    [
        struct.pack(">B3xI", 6, CUT_TEXT_BYTES_MAX + 1),
        struct.pack(">BxH", 2, ENCODINGS_MAX + 1),
        b"\0\0\0\0" + bytes([24, 24, 0, 1]) + bytes(12),
        b"\0\0\0\0" + bytes([16, 16, 0, 0]) + bytes(12),
        struct.pack(">B3xBBBBHHHBBB3x", 0, 32, 24, 0, 1, 255, 255, 254, 16, 8, 0),
        struct.pack(">B3xBBBBHHHBBB3x", 0, 16, 16, 0, 1, 255, 255, 255, 16, 8, 0),
        b"\1",
    ],
)
def test_a_viewer_that_asks_for_what_cannot_be_is_sent_away(said: bytes) -> None:
    """At once: what it announces is not waited for, and takes no memory."""
    with pytest.raises(RfbError):
        session_of().receive(said)


def test_who_is_refused_is_told_why_and_nothing_else() -> None:
    session = RfbSession("painter", 64, 48, refused="full")
    assert session.receive(b"RFB 003.008\n" + b"\1\1") == [Send(b"\0\0\0\0\4full")]
    assert session.phase is Phase.REFUSED


def test_what_a_viewer_says_means_what_it_means() -> None:
    session = session_of()
    wanted = [7, 16, -223, 6, 0]
    session.receive(struct.pack(">BxH5i", 2, 5, *wanted))
    assert (session.encoding, session.may_resize) == (Encoding.ZRLE, True)
    session.receive(struct.pack(">BxH2i", 2, 2, 0, 16))
    assert (session.encoding, session.may_resize) == (Encoding.RAW, False)
    said = struct.pack(">BBHHHH", 3, 1, 1, 2, 30, 40) + struct.pack(">BB2xI", 4, 1, 0x61)
    said += struct.pack(">B3xI", 6, 3) + b"abc" + struct.pack(">BBHH", 5, 4, 9, 8)
    assert session.receive(said) == [
        UpdateRequest(True, Rectangle(1, 2, 31, 42)),
        KeyEvent(True, 0x61),
        PointerEvent(4, 9, 8),
    ]
    mapped = bytes([8, 8, 0, 0]) + bytes(12)
    (colours,) = session.receive(b"\0\0\0\0" + mapped)
    assert isinstance(colours, Send)
    assert session.pixel_format is MAPPED
