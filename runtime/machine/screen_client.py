"""A viewer that looks once: what a partition's screen shows now. Blocking."""

import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.exits import CommandError, ExitCode

ANSWER_SECONDS_MAX: Final = 10.0
PIXELS_MAX: Final = 4096 * 4096  # of a screen
_VERSION: Final = b"RFB 003.008\n"
_INIT: Final = struct.Struct(">HH16sI")
_RECTANGLE: Final = struct.Struct(">HHHHi")
_NAME_BYTES_MAX: Final = 4096
_RAW: Final = 0
_PIXEL_BYTES: Final = 4  # blue, green, red, nothing: as the server has them by itself


class NoScreen(CommandError):
    """The screen is there, and does not answer as it should."""

    exit_code = ExitCode.NO_ANSWER


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen."""

    name: str
    width: int
    height: int
    pixels: bytes  # red, green and blue, row by row

    def pixel(self, x: int, y: int) -> int:
        """0xRRGGBB."""
        at = (y * self.width + x) * 3
        return int.from_bytes(self.pixels[at : at + 3], "big")


def look_at(path: Path) -> Look:
    """Raises NoScreen."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(ANSWER_SECONDS_MAX)
            sock.connect(str(path))
            return _look(_Connection(sock))
    except TimeoutError as error:
        problem = f"the screen does not answer within {ANSWER_SECONDS_MAX:.0f} s: is the root alive (partvisor list)?"
        raise NoScreen(problem) from error
    except (OSError, ValueError, struct.error) as error:
        raise NoScreen(f"the screen at {path} can't be looked at: {error}") from error


class _Connection:
    """Every wait together is bounded."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._deadline = sock, time.monotonic() + ANSWER_SECONDS_MAX

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            if (left := self._deadline - time.monotonic()) <= 0:
                raise TimeoutError
            self._sock.settimeout(left)
            piece = self._sock.recv(count - len(data))
            if not piece:
                raise ConnectionResetError("it has closed the connection")
            data += piece
        return bytes(data)


def _look(connection: _Connection) -> Look:
    connection.read(len(_VERSION))
    connection.send(_VERSION)
    if not (count := connection.read(1)[0]):
        length = int.from_bytes(connection.read(4), "big")
        raise ValueError(connection.read(min(length, _NAME_BYTES_MAX)).decode(errors="replace"))
    if 1 not in connection.read(count):
        raise ValueError("it wants a password")
    connection.send(b"\1")
    connection.read(4)
    connection.send(b"\1")  # others may stay
    width, height, _, length = _INIT.unpack(connection.read(_INIT.size))
    if width * height > PIXELS_MAX or length > _NAME_BYTES_MAX:
        raise ValueError(f"{width} x {height} pixels, a name of {length} bytes")
    name = connection.read(length).decode(errors="replace")
    connection.send(struct.pack(">BxHi", 2, 1, _RAW) + struct.pack(">BBHHHH", 3, 0, 0, 0, width, height))
    screen = bytearray(width * height * _PIXEL_BYTES)
    kind, rectangles = struct.unpack(">BxH", connection.read(4))
    if kind != 0:
        raise ValueError(f"message {kind} in the place of an update")
    for _ in range(rectangles):
        _paint(connection, screen, width, height)
    pixels = bytearray(width * height * 3)
    for place in range(3):
        pixels[place::3] = screen[2 - place :: _PIXEL_BYTES]
    return Look(name, width, height, bytes(pixels))


def _paint(connection: _Connection, screen: bytearray, width: int, height: int) -> None:
    x, y, part_width, part_height, encoding = _RECTANGLE.unpack(connection.read(_RECTANGLE.size))
    if encoding != _RAW or x + part_width > width or y + part_height > height:
        raise ValueError(f"a rectangle of {part_width} x {part_height} at {x},{y}, encoding {encoding}")
    row_bytes = part_width * _PIXEL_BYTES
    data = connection.read(row_bytes * part_height)
    for row in range(part_height):
        at = ((y + row) * width + x) * _PIXEL_BYTES
        screen[at : at + row_bytes] = data[row * row_bytes : (row + 1) * row_bytes]
