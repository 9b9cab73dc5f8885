"""Viewers on real sockets: what they see is what is shown, what is sent is what changed, none waits for another."""

import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitions.display.devices import KeyboardDevice, MouseDevice, VideoDevice
from partitions.display.framebuffer import Picture
from partitions.display.mouse_wire import Buttons, to_pixel
from partitions.display.rectangle import Rectangle
from partitions.display.rfb_viewer import Screen
from partitions.display.screens import CONNECTIONS_MAX, VIEWERS_MAX, Screens, screens_of
from partitions.machine_plan import DevicePlan
from tests.partitions.rfb_client import DESKTOP_SIZE, RAW, WAIT_S, ZLIB, ZRLE, RfbClient
from tests.patience import until

WIDTH, HEIGHT = 200, 150


class Shown:
    """A screen with pixels of ours, and what came from its viewers."""

    def __init__(self) -> None:
        plan = DevicePlan("screen0", "video", None, None, None, False, 512, width=WIDTH, height=HEIGHT)
        self.video = VideoDevice(plan)
        self.keys: list[tuple[int, bool]] = []
        self.moves: list[tuple[Buttons, int, int, int]] = []
        keyboard, mouse = KeyboardDevice(plan), MouseDevice(plan)
        keyboard.press = lambda *key: self.keys.append(key)  # type: ignore[method-assign]
        mouse.move = lambda *move: self.moves.append(move)  # type: ignore[method-assign]
        self.log: list[tuple[str, dict[str, Any]]] = []
        screen = Screen("painter", self.video, keyboard, mouse)
        self.screens = Screens({"painter": screen}, lambda kind, **more: self.log.append((kind, more)))
        self.pixels = bytearray(WIDTH * HEIGHT * 4)
        self.show(WIDTH, HEIGHT)

    def show(self, width: int, height: int) -> None:
        self.pixels = bytearray(random.Random(width).randbytes(width * height * 4))
        view = memoryview(self.pixels).toreadonly()
        self.size = width, height
        self.video.framebuffer.show(Picture(width, height, width * 4, view))

    def paint(self, part: Rectangle, colour: int) -> None:
        row = colour.to_bytes(4, "little") * part.width
        for y in range(part.top, part.bottom):
            at = (y * self.size[0] + part.left) * 4
            self.pixels[at : at + len(row)] = row
        self.video.framebuffer.damage([part])

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self.screens.admit("painter", theirs.detach())
        return ours

    @contextmanager
    def viewer(self) -> Iterator[RfbClient]:
        with RfbClient(self.connect()) as client:
            yield client

    def left(self) -> list[str]:
        return [str(more["reason"]) for kind, more in self.log if kind == "screen.viewer_left"]


@pytest.fixture(scope="module")
def shown() -> Shown:
    return Shown()


def colours(pixels: bytes | bytearray) -> list[bytes]:
    """Without the byte that means nothing, which ZRLE does not send."""
    return [bytes(pixels[plane::4]) for plane in range(3)]


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([RAW, ZLIB, ZRLE]),
    st.lists(
        st.tuples(
            st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1), st.integers(1, 90), st.integers(1, 90)
        ),
        max_size=5,
    ),
)
def test_a_viewer_sees_what_is_shown_and_is_sent_what_has_changed(
    encoding: int, parts: list[tuple[int, int, int, int]]
) -> None:
    screen = Shown()
    with screen.viewer() as viewer:
        assert (viewer.width, viewer.height, viewer.name) == (WIDTH, HEIGHT, "painter")
        viewer.set_encodings([encoding])
        viewer.ask(incremental=False)
        viewer.update()
        assert colours(viewer.pixels) == colours(screen.pixels)
        for number, (x, y, width, height) in enumerate(parts):
            part = Rectangle(x, y, min(x + width, WIDTH), min(y + height, HEIGHT))
            screen.paint(part, 0x0102_0300 + number)
            viewer.ask()
            for left, top, across, down in viewer.update():
                assert part.holds(Rectangle(left, top, left + across, top + down))
            assert colours(viewer.pixels) == colours(screen.pixels)


def test_a_viewer_that_does_not_read_stops_nobody() -> None:
    """It asks for everything and reads nothing: more than a socket holds. Another sees each change meanwhile."""
    shown, changed = Shown(), Rectangle(0, 0, 40, 20)
    shown.show(1000, 500)
    with shown.viewer() as slow, shown.viewer() as quick:
        for _ in range(50):
            slow.ask(incremental=False)
        quick.ask()
        quick.update()
        for number in range(30):
            shown.paint(changed, number)
            quick.ask()
            quick.update()
            assert quick.pixel(1, 1) == number
        assert slow.bytes_read < 100  # it has not begun
        shown.paint(Rectangle(5, 5, 6, 6), 0xABCDEF)
        slow.until(5, 5, 0xABCDEF)  # and what it missed is there when it comes to it
        assert colours(slow.pixels) == colours(shown.pixels)


def test_keys_and_positions_arrive_and_go_up_with_the_viewer(shown: Shown) -> None:
    shown.keys.clear()
    shown.moves.clear()
    with shown.viewer() as viewer:
        viewer.key(ord("a"), True)
        viewer.point(199, 0, 0b100)
        viewer.point(199, 0, 0b01100)
        until(lambda: len(shown.keys) == 1 and len(shown.moves) == 2)
        buttons, x, y, _ = shown.moves[0]
        assert (buttons, to_pixel(x, WIDTH), to_pixel(y, HEIGHT)) == (Buttons.RIGHT, 199, 0)
        assert [wheel for *_, wheel in shown.moves] == [0, 1]
    until(lambda: len(shown.keys) == 2 and len(shown.moves) == 3)
    assert shown.keys == [(0x1E, True), (0x1E, False)]
    assert shown.moves[-1][0] == Buttons(0)


def test_another_size_is_told_to_who_can_be_told() -> None:
    screen = Shown()
    with screen.viewer() as able, screen.viewer() as unable:
        able.set_encodings([RAW, DESKTOP_SIZE])
        for one in (able, unable):
            one.ask()
            one.update()
        screen.show(64, 32)
        able.ask()
        assert able.update() == [(0, 0, 64, 32)]
        able.ask()
        able.update()
        assert colours(able.pixels) == colours(screen.pixels)
        unable.ask()
        with pytest.raises(ConnectionResetError):
            unable.update()
        until(lambda: any("another size" in reason for reason in screen.left()))


def test_a_screen_that_is_taken_away_is_black(shown: Shown) -> None:
    with shown.viewer() as viewer:
        shown.video.framebuffer.show(None)
        viewer.ask()
        viewer.update()
        assert not any(viewer.pixels)
    shown.show(WIDTH, HEIGHT)


def test_so_many_viewers_and_no_more(shown: Shown) -> None:
    until(lambda: shown.screens._viewers == 0)
    first = [RfbClient(shown.connect()) for _ in range(VIEWERS_MAX)]
    more = [shown.connect() for _ in range(CONNECTIONS_MAX - VIEWERS_MAX)]
    try:
        until(lambda: shown.screens._viewers == CONNECTIONS_MAX)
        with shown.connect() as beyond:
            beyond.settimeout(WAIT_S)
            assert beyond.recv(1) == b""
        greeting = b"RFB 003.008\n"
        more[0].sendall(greeting)
        assert more[0].recv(len(greeting), socket.MSG_WAITALL) == greeting
        reason = more[0].recv(100)
        assert reason[:1] == b"\0"
        assert b"viewers" in reason
        first[0].ask(incremental=False)
        first[0].update()
    finally:
        for sock in (*more, *(one.sock for one in first)):
            sock.close()
    until(lambda: shown.screens._viewers == 0)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(
        st.binary(max_size=40)
        | st.builds(lambda number, rest: bytes([number]) + rest, st.integers(0, 7), st.binary(max_size=24)),
        max_size=8,
    )
)
def test_a_hostile_viewer_ends_its_own_connection_alone(shown: Shown, said: list[bytes]) -> None:
    with shown.viewer() as honest, shown.connect() as hostile:
        hostile.sendall(b"RFB 003.008\n\1\1" + b"".join(said))
        shown.paint(Rectangle(0, 0, 9, 9), len(said))
        honest.ask(incremental=False)
        honest.update()
        assert colours(honest.pixels) == colours(shown.pixels)
    assert not any("Error:" in reason for reason in shown.left())  # none was a defect of ours


def test_who_looks_at_nothing_is_let_go_of(shown: Shown) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        shown.screens.admit("nobody", theirs.detach())
        ours.settimeout(WAIT_S)
        assert ours.recv(1) == b""


def test_a_partitions_screen_has_its_own_keyboard_and_mouse() -> None:
    plan = DevicePlan("a", "video", None, None, None, False, 512)
    devices = {
        "a": VideoDevice(plan),
        "k": KeyboardDevice(replace(plan, name="k")),
        "m": MouseDevice(replace(plan, name="m")),
        "b": VideoDevice(replace(plan, name="b")),
    }
    tables: list[dict[str, Any]] = [
        {"name": "one", "device": [{"name": "a"}, {"name": "k"}, {"name": "m"}]},
        {"name": "two", "device": [{"name": "b"}]},
        {"name": "three"},
    ]
    found = screens_of(tables, devices)
    assert sorted(found) == ["one", "two"]
    assert found["one"].keyboard is devices["k"]
    assert found["one"].mouse is devices["m"]
    assert (found["two"].keyboard, found["two"].mouse) == (None, None)


def test_damage_from_many_threads_is_seen(shown: Shown) -> None:
    with shown.viewer() as viewer:
        viewer.ask()
        viewer.update()

        def paint(row: int) -> None:
            for x in range(WIDTH):
                shown.paint(Rectangle(x, row, x + 1, row + 1), 0x77)

        threads = [threading.Thread(target=paint, args=(row,)) for row in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for row in range(4):
            for x in (0, WIDTH - 1):
                viewer.until(x, row, 0x77)
        assert colours(viewer.pixels) == colours(shown.pixels)


def test_a_colour_map_and_sixteen_bits(shown: Shown) -> None:
    with shown.viewer() as viewer:
        format_565 = struct.pack(">BBBBHHHBBB3x", 16, 16, 0, 1, 31, 63, 31, 11, 5, 0)
        viewer.sock.sendall(b"\0\0\0\0" + format_565)
        shown.paint(Rectangle(0, 0, WIDTH, HEIGHT), 0xFF0000)
        viewer.ask(incremental=False)
        _, count = struct.unpack(">BxH", viewer.read(4))
        for _ in range(count):
            _, _, width, height, _ = struct.unpack(">HHHHi", viewer.read(12))
            assert viewer.read(width * height * 2) == struct.pack("<H", 31 << 11) * (width * height)
        viewer.sock.sendall(b"\0\0\0\0" + bytes([8, 8, 0, 0]) + bytes(12))
        assert len(viewer.read(6 + 256 * 6)) == 1542
