"""A viewer of a screen that knows what it has seen: raw pixels, over the screen's Unix socket. Blocking."""

import socket
import struct
from pathlib import Path
from typing import Final, Self

from bus.native import monotonic_ns
from runtime.exits import CommandError
from runtime.measure.devices.path_walk import ClientMoments

PATIENCE_S: Final = 10.0
_VERSION: Final = b"RFB 003.008\n"
_INIT: Final = struct.Struct(">HH16sI")
_HEAD: Final = struct.Struct(">BxH")
_RECTANGLE: Final = struct.Struct(">HHHHi")
_PIXEL_BYTES: Final = 4


class Viewer:
    """Use it in a `with` block. CommandError: what came is no update; OSError: nothing came, or it is gone."""

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._said_at = self._waited_ns = 0  # when it said its last, and how long it has waited since then
        try:
            self._sock.settimeout(PATIENCE_S)
            self._sock.connect(str(path))
            self._read(len(_VERSION))
            self._sock.sendall(_VERSION)
            if 1 not in self._read(self._read(1)[0]):
                raise CommandError("the screen wants a password, or takes no more viewers")
            self._sock.sendall(b"\1")
            self._read(4)
            self._sock.sendall(b"\1")
            self.width, self.height, _, length = _INIT.unpack(self._read(_INIT.size))
            self._read(length)
        except BaseException:
            self._sock.close()
            raise
        self.pixels = bytearray(self.width * self.height * _PIXEL_BYTES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def _read(self, count: int) -> bytearray:
        data = bytearray(count)
        view, at = memoryview(data), 0
        while at < count:
            begun = monotonic_ns()
            got = self._sock.recv_into(view[at:])
            self._waited_ns += monotonic_ns() - begun
            if not got:
                raise ConnectionResetError("the screen has closed the connection")
            at += got
        return data

    def _say(self, message: bytes) -> None:
        self._said_at, self._waited_ns = monotonic_ns(), 0
        self._sock.sendall(message)

    def moments(self) -> ClientMoments:
        """Of what it said last and has seen by now. Its own are those in which it did not wait."""
        now = monotonic_ns()
        return ClientMoments(self._said_at, now, now - self._said_at - self._waited_ns)

    def key(self, keysym: int) -> None:
        """Down, and up again."""
        self._say(struct.pack(">BB2xIBB2xI", 4, 1, keysym, 4, 0, keysym))

    def point(self, x: int, y: int, buttons: int) -> None:
        self._say(struct.pack(">BBHH", 5, buttons, x, y))

    def ask(self, *, incremental: bool) -> None:
        self._say(struct.pack(">BBHHHH", 3, incremental, 0, 0, self.width, self.height))

    def update(self) -> tuple[int, bool]:
        """How many pixels came, and whether any of them is another one than before."""
        kind, rectangles = _HEAD.unpack(self._read(_HEAD.size))
        if kind != 0:
            raise CommandError(f"message {kind} in the place of an update")
        count, changed = 0, False
        for _ in range(rectangles):
            x, y, width, height, encoding = _RECTANGLE.unpack(self._read(_RECTANGLE.size))
            if encoding != 0 or x + width > self.width or y + height > self.height:
                raise CommandError(f"a rectangle of {width} x {height} at {x},{y}, encoding {encoding}")
            changed |= self._paint(x, y, width, height, self._read(width * height * _PIXEL_BYTES))
            count += width * height
        return count, changed

    def _paint(self, x: int, y: int, width: int, height: int, data: bytearray) -> bool:
        changed, row_bytes = False, width * _PIXEL_BYTES
        for row in range(height):
            at = ((y + row) * self.width + x) * _PIXEL_BYTES
            new = data[row * row_bytes : (row + 1) * row_bytes]
            if self.pixels[at : at + row_bytes] != new:
                self.pixels[at : at + row_bytes] = new
                changed = True
        return changed

    def until_changed(self) -> None:
        """An incremental update was asked for; ask on until one has other pixels."""
        ask = struct.pack(">BBHHHH", 3, 1, 0, 0, self.width, self.height)
        while not self.update()[1]:
            self._sock.sendall(ask)
