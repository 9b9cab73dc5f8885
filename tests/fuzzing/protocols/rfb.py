"""RFB: a hostile viewer at our server, a guest with keyboard and mouse behind it; a hostile server at our viewer."""

import random
import socket
import struct
from contextlib import suppress
from typing import Final

import trio
import trio.testing

from bus.native import GpaMap
from bus.seam import Seam
from partitions.display.channel_record import write_record
from partitions.display.devices import KeyboardDevice, MouseDevice, VideoDevice
from partitions.display.framebuffer import Picture
from partitions.display.keyboard_session import KeyboardSession
from partitions.display.mouse_session import MouseSession
from partitions.display.mouse_wire import Buttons
from partitions.display.pixel_format import NATIVE, PixelFormat
from partitions.display.rectangle import Rectangle, whole
from partitions.display.rfb_viewer import Screen, Viewer
from partitions.display.rfb_wire import (
    Encoding,
    RfbError,
    rectangle_head,
    security_types,
    server_init,
    update_head,
)
from partitions.machine_plan import DevicePlan
from runtime.machine.screen_client import PIXELS_MAX, _Connection, _look
from tests.fuzzing.pieces import cut, join
from tests.fuzzing.scripted_channel import ScriptedChannel
from tests.fuzzing.targets import Side, declare, target

_WIDTH, _HEIGHT = 80, 70  # more than one of ZRLE's tiles, each way
_VERSION: Final = b"RFB 003.008\n"
_UPDATE: Final = struct.pack(">BBHHHH", 3, 0, 0, 0, _WIDTH, _HEIGHT)
_NEWS: Final = struct.pack(">BBHHHH", 3, 1, 0, 0, _WIDTH, _HEIGHT)
_PIXELS: Final = random.Random(1).randbytes(_WIDTH * _HEIGHT * 4)

declare("rfb", Side.SERVER, Side.CLIENT)


def _encodings(*wanted: int) -> bytes:
    return struct.pack(f">BxH{len(wanted)}i", 2, len(wanted), *wanted)


def _pixels(wanted: PixelFormat) -> bytes:
    return struct.pack(">B3x", 0) + wanted.encode()


def _key(keysym: int, pressed: bool) -> bytes:
    return struct.pack(">BB2xI", 4, pressed, keysym)


def _point(buttons: int, x: int, y: int) -> bytes:
    return struct.pack(">BBHH", 5, buttons, x, y)


def _viewer_seeds() -> list[bytes]:
    begin = [_VERSION, b"\1", b"\1"]
    keys = [_key(keysym, pressed) for keysym in (0x41, 0x61, 0xFFE1, 0xFF0D) for pressed in (True, False)]
    points = [_point(1, 5, 5), _point(9, 79, 69), _point(0, 0, 0)]
    text = struct.pack(">B3xI", 6, 5) + b"hello"
    small = PixelFormat(16, 16, True, True, 31, 63, 31, 11, 5, 0)
    mapped = PixelFormat(8, 8, False, False, 0, 0, 0, 0, 0, 0)
    return [
        join([*begin, _encodings(16, -223, 0), _UPDATE, *keys, *points, text, _NEWS]),
        join([*begin, _pixels(small), _encodings(6, 0), _UPDATE, _key(0x62, True), _point(2, 9, 9), _NEWS]),
        join(
            [*begin, _pixels(mapped), _UPDATE, _pixels(PixelFormat(big_endian=True)), _encodings(16), _UPDATE]
        ),
        join([b"RFB 003.003\n", b"\1", _UPDATE]),
    ]


class _World:
    """A screen with pixels, and a guest that has agreed on everything."""

    def __init__(self) -> None:
        plan = DevicePlan("one", "video", None, None, None, False, 512, width=_WIDTH, height=_HEIGHT)
        self.video, self.keyboard, self.mouse = VideoDevice(plan), KeyboardDevice(plan), MouseDevice(plan)
        self.video.framebuffer.show(Picture(_WIDTH, _HEIGHT, _WIDTH * 4, memoryview(_PIXELS)))
        self.screen = Screen("guest", self.video, self.keyboard, self.mouse)
        keys, reports = KeyboardSession(agreed=True), MouseSession(agreed=True, acknowledged=True)
        _, channel = ScriptedChannel.of([])
        self.keys = self.keyboard.open(channel, GpaMap(), _record(keys.to_record()), Seam()).session
        self.reports = self.mouse.open(channel, GpaMap(), _record(reports.to_record()), Seam()).session


def _record(data: bytes) -> memoryview:
    record = memoryview(bytearray(64))
    write_record(record, data)
    return record


@target("rfb", Side.SERVER, _viewer_seeds)
def server(data: bytes) -> None:
    """Whatever it says: the connection goes on or ends, nothing of its keys, buttons and wishes is left behind."""
    world, pieces = _World(), list(cut(data))
    framebuffer = world.video.framebuffer

    async def main() -> None:
        ours, theirs = trio.testing.memory_stream_pair()
        viewer = Viewer(theirs, world.screen)

        async def look() -> None:
            try:
                await viewer.run()
            except* (RfbError, trio.BrokenResourceError):  # as Screens has it
                pass
            with suppress(trio.ClosedResourceError):
                await theirs.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            for number, piece in enumerate(pieces):
                with suppress(trio.BrokenResourceError):
                    await ours.send_all(piece)
                await trio.testing.wait_all_tasks_blocked()
                if number % 3 == 2:  # the guest draws, or shows another screen
                    framebuffer.damage([Rectangle(number % 60, 3, number % 60 + 9, 68)])
                if number % 16 == 15:
                    framebuffer.show(Picture(32, 24, 32 * 4, memoryview(_PIXELS)))
            await ours.aclose()

    trio.run(main)
    assert not framebuffer.watchers
    assert world.keys.down == []
    assert world.reports.buttons == Buttons(0)


def _server_seeds() -> list[bytes]:
    small = Rectangle(1, 1, 3, 2)
    pixels = bytes(range(4 * 4 * 3))
    begin = _VERSION + security_types(8) + bytes(4)
    init = server_init(4, 3, NATIVE, "a screen")
    picture = rectangle_head(whole(4, 3), Encoding.RAW) + pixels
    patch = rectangle_head(small, Encoding.RAW) + bytes(8)
    return [
        join([begin, init, update_head(2), picture, patch]),
        join([_VERSION, b"\0", struct.pack(">I", 4), b"full"]),
    ]


@target("rfb", Side.CLIENT, _server_seeds)
def client(data: bytes) -> None:
    """What it takes for a picture is one of the size that was said; of everything else it says what is wrong."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        theirs.sendall(b"".join(cut(data)))
        theirs.shutdown(socket.SHUT_WR)
        try:
            seen = _look(_Connection(ours))
        except (OSError, ValueError, struct.error):  # which `look_at` makes a NoScreen of
            return
    assert len(seen.pixels) == seen.width * seen.height * 3 <= PIXELS_MAX * 3
