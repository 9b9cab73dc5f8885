"""Messages of keyboard, mouse, video and RFB, there and back; and that no bytes bring a decoder down."""

import contextlib
import struct
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from bus.packets import encode_pipe
from partitions.display import keyboard_wire, mouse_wire, rfb_wire, video_wire
from partitions.display.display_error import DisplayError
from partitions.display.keyboard_wire import (
    KeyboardLeds,
    KeyboardRequest,
    KeyboardResponse,
    KeyFlags,
    Keystroke,
)
from partitions.display.mouse_wire import (
    POSITION_MAX,
    REPORT_DESCRIPTOR,
    Buttons,
    DeviceInfo,
    DeviceInfoAck,
    MouseReport,
    MouseRequest,
    MouseResponse,
    to_absolute,
    to_pixel,
)
from partitions.display.pixel_format import MAPPED, NATIVE, PixelFormat, PixelFormatError
from partitions.display.rectangle import RECTANGLES_MAX, Rectangle, Region, whole
from partitions.display.rfb_wire import RfbError
from partitions.display.video_wire import (
    BiosInfo,
    BiosInfoRequest,
    Capabilities,
    CapabilityRequest,
    Dirt,
    FeatureChange,
    Output,
    PointerPosition,
    PointerShape,
    ResolutionRequest,
    Resolutions,
    Situation,
    SituationAck,
    VersionRequest,
    VersionResponse,
    VramLocation,
    VramLocationAck,
)

U8, U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
I32 = st.integers(-(2**31), 2**31 - 1)
FLAGS = st.booleans()
RECTANGLES = st.builds(Rectangle, I32, I32, I32, I32)
OUTPUTS = st.builds(Output, FLAGS, U32, U8, U32, U32, U32)

TO_KEYBOARD_HOST = st.builds(KeyboardRequest, U32) | st.builds(KeyboardLeds, U16)
TO_KEYBOARD_GUEST = st.builds(KeyboardResponse, FLAGS) | st.builds(
    Keystroke, st.integers(0, 0x7F), st.sampled_from([KeyFlags(bits) for bits in range(16)])
)
TO_MOUSE_HOST = st.builds(MouseRequest, U32) | st.just(DeviceInfoAck())
TO_MOUSE_GUEST = (
    st.builds(MouseResponse, U32, FLAGS)
    | st.builds(DeviceInfo, U16, U16, U16, st.binary(min_size=1, max_size=128))
    | st.builds(
        MouseReport,
        st.sampled_from([Buttons(bits) for bits in range(8)]),
        st.integers(0, POSITION_MAX),
        st.integers(0, POSITION_MAX),
        st.integers(-POSITION_MAX, POSITION_MAX),
    )
)
TO_VIDEO_HOST = st.one_of(
    st.builds(VersionRequest, U32),
    st.builds(VramLocation, U64, st.none() | U64),
    st.builds(Situation, U64, st.lists(OUTPUTS, max_size=4).map(tuple)),
    st.builds(PointerPosition, FLAGS, U8, I32, I32),
    st.builds(
        PointerShape, U8, FLAGS, st.integers(0, 96), st.integers(0, 96), U32, U32, st.binary(max_size=64)
    ),
    st.builds(Dirt, U8, st.lists(RECTANGLES, max_size=9).map(tuple)),
    st.just(BiosInfoRequest()),
    st.builds(ResolutionRequest, U8),
    st.just(CapabilityRequest()),
)
TO_VIDEO_GUEST = st.one_of(
    st.builds(VersionResponse, U32, FLAGS, U8),
    st.builds(VramLocationAck, U64),
    st.builds(SituationAck, U64),
    st.builds(FeatureChange, FLAGS, FLAGS, FLAGS, FLAGS),
    st.builds(BiosInfo, U32),
    st.builds(
        Resolutions,
        st.lists(st.tuples(U16, U16), min_size=1, max_size=8).map(tuple),
        st.just(0),
        st.binary(min_size=128, max_size=128),
    ),
    st.builds(Capabilities, U32),
)
Decoder = Callable[[bytes], object]
CODECS: list[tuple[st.SearchStrategy[object], Decoder]] = [
    (TO_KEYBOARD_HOST, keyboard_wire.decode_for_host),
    (TO_KEYBOARD_GUEST, keyboard_wire.decode_for_guest),
    (TO_MOUSE_HOST, mouse_wire.decode_for_host),
    (TO_MOUSE_GUEST, mouse_wire.decode_for_guest),
    (TO_VIDEO_HOST, video_wire.decode_for_host),
    (TO_VIDEO_GUEST, video_wire.decode_for_guest),
]


@settings(max_examples=60)
@given(st.data(), st.sampled_from(CODECS), st.binary(max_size=7))
def test_a_message_there_and_back_whatever_padding_follows(
    data: st.DataObject, codec: tuple[st.SearchStrategy[object], Decoder], padding: bytes
) -> None:
    messages, decode = codec
    message = data.draw(messages)
    encoded = message.encode()  # type: ignore[attr-defined]
    assert decode(encoded + padding) == message


@settings(max_examples=60)
@given(st.data(), st.sampled_from(CODECS), st.booleans())
def test_no_bytes_do_more_to_a_decoder_than_make_it_refuse(
    data: st.DataObject, codec: tuple[st.SearchStrategy[object], Decoder], framed: bool
) -> None:
    body = struct.pack("<II", data.draw(st.integers(0, 20)), data.draw(U32)) + data.draw(
        st.binary(max_size=300)
    )
    payload = encode_pipe(body) if framed else data.draw(st.binary(max_size=40))
    with contextlib.suppress(DisplayError):
        codec[1](payload)


def test_the_vectors_of_the_specification() -> None:
    """Bytes as the tables of the wire formats have them, made by hand."""
    assert KeyboardRequest(0x0001_0000).encode().hex(" ") == "01 00 00 00 00 00 01 00"
    stroke = Keystroke(0x1D, KeyFlags.E0 | KeyFlags.BREAK)
    assert stroke.encode().hex(" ") == "03 00 00 00 1d 00 00 00 06 00 00 00"
    report = MouseReport(Buttons.RIGHT, 1, 0x7FFF, -1).encode()
    assert report.hex(" ") == "01 00 00 00 0f 00 00 00 04 00 00 00 0f 00 00 00 02 01 00 ff 7f ff ff"
    assert [hex(one) for one in video_wire.VERSIONS] == ["0x50003", "0x40003", "0x30003", "0x20003", "0x3"]
    dirt = Dirt(0, (Rectangle(1, 2, 3, 4),)).encode()
    assert dirt[8:].hex(" ") == "0a 00 00 00 1a 00 00 00 00 01" + " 01 00 00 00 02 00 00 00" + (
        " 03 00 00 00 04 00 00 00"
    )
    assert len(DeviceInfo().encode()) == 8 + 8 + 169


def test_a_report_has_the_bits_that_the_report_descriptor_says() -> None:
    """The descriptor is read as a HID layer does; its input fields must fill the report of 7 bytes."""
    size = count = bits = at = 0
    while at < len(REPORT_DESCRIPTOR):
        prefix = REPORT_DESCRIPTOR[at]
        length = (0, 1, 2, 4)[prefix & 3]
        value = int.from_bytes(REPORT_DESCRIPTOR[at + 1 : at + 1 + length], "little")
        match prefix & 0xFC:
            case 0x74:
                size = value
            case 0x94:
                count = value
            case 0x80:
                bits += size * count
        at += 1 + length
    assert bits == 7 * 8


@settings(max_examples=40)
@given(st.integers(1, 4096), st.data())
def test_a_pixel_is_the_same_pixel_after_the_mouses_scale(size: int, data: st.DataObject) -> None:
    pixel = data.draw(st.integers(0, size - 1))
    assert to_pixel(to_absolute(pixel, size), size) == pixel


# -- regions


@settings(max_examples=40)
@given(st.lists(st.builds(Rectangle, *[st.integers(-5, 25)] * 4), max_size=40))
def test_a_region_forgets_no_pixel_and_stays_small(parts: list[Rectangle]) -> None:
    region, screen = Region(), whole(20, 20)
    for part in parts:
        region.add(part)
        assert len(region.parts) <= RECTANGLES_MAX
    taken = region.take(screen)
    assert all(screen.holds(one) and not one.is_empty for one in taken)
    for part in parts:
        for x in range(max(part.left, 0), min(part.right, 20)):
            for y in range(max(part.top, 0), min(part.bottom, 20)):
                pixel = Rectangle(x, y, x + 1, y + 1)
                assert any(one.holds(pixel) for one in taken)
    assert region.parts == ()


# -- pixels


@st.composite
def pixel_formats(draw: st.DrawFn) -> PixelFormat:
    bits = draw(st.sampled_from([8, 16, 32]))
    places = []
    for _ in range(3):
        width = draw(st.integers(0, min(bits, 16)))
        places.append((2**width - 1, draw(st.integers(0, bits - width))))
    (red, red_at), (green, green_at), (blue, blue_at) = places
    return PixelFormat(
        bits, draw(st.sampled_from([8, 16, 24, 32])), draw(FLAGS), True, red, green, blue, red_at, green_at,
        blue_at,
    )  # fmt: skip


def by_the_book(source: bytes, wanted: PixelFormat) -> int:
    """RFC 6143, 7.4: each colour scaled to its range and shifted to its place."""
    value = 0
    for place, most, shift in (
        (0, wanted.blue_max, wanted.blue_shift),
        (1, wanted.green_max, wanted.green_shift),
        (2, wanted.red_max, wanted.red_shift),
    ):
        value |= (source[place] * most + 127) // 255 << shift
    return value


@settings(max_examples=40)
@given(st.binary(min_size=4, max_size=80), pixel_formats())
def test_pixels_are_what_the_format_says(data: bytes, wanted: PixelFormat) -> None:
    data = data[: len(data) // 4 * 4]
    order = "big" if wanted.big_endian else "little"
    assert PixelFormat.decode(wanted.encode()) == wanted
    expected = [by_the_book(data[at : at + 4], wanted) for at in range(0, len(data), 4)]
    if not wanted.is_native:
        size = wanted.pixel_bytes
        made = wanted.convert(data)
        found = [int.from_bytes(made[at : at + size], order) for at in range(0, len(made), size)]  # type: ignore[arg-type]
        assert found == expected
    compact, step = wanted.compact(data), len(wanted.compact_bytes)
    whole_pixels = [value.to_bytes(wanted.pixel_bytes, order) for value in expected]  # type: ignore[arg-type]
    assert compact == b"".join(bytes(one[place] for place in wanted.compact_bytes) for one in whole_pixels)
    assert step in (1, 2, 3, 4)


def test_the_formats_of_our_own() -> None:
    pixel = bytes([0x10, 0x80, 0xFF, 0x55])
    assert NATIVE.is_native
    assert NATIVE.convert(pixel) is pixel
    assert NATIVE.compact(pixel) == pixel[:3]
    assert len(rfb_wire.colour_map(MAPPED)) == 6 + 256 * 6


@settings(max_examples=40)
@given(st.binary(min_size=16, max_size=16))
def test_a_format_that_cannot_be_is_refused_and_no_other(data: bytes) -> None:
    try:
        wanted = PixelFormat.decode(data)
    except PixelFormatError:
        return
    if wanted.true_colour:
        assert len(wanted.convert(bytes(range(8)))) == 2 * wanted.pixel_bytes


@settings(max_examples=60)
@given(st.integers(0, 9), st.binary(max_size=60))
def test_no_viewers_bytes_do_more_than_end_its_connection(number: int, rest: bytes) -> None:
    data = bytearray([number]) + rest
    before = len(data)
    try:
        message = rfb_wire.take_message(data)
    except RfbError:
        return
    assert (message is None) == (len(data) == before)
