"""A VNC viewer for tests: every encoding that the server has, pixels in the server's own format. Blocking."""

import socket
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

WAIT_S = 20.0
RAW, ZLIB, ZRLE, DESKTOP_SIZE = 0, 6, 16, -223


@dataclass
class RfbClient:
    sock: socket.socket
    width: int = 0
    height: int = 0
    name: str = ""
    pixels: bytearray = field(default_factory=bytearray)  # four bytes each: blue, green, red, nothing
    bytes_read: int = 0
    _inflate: dict[int, "zlib._Decompress"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sock.settimeout(WAIT_S)
        assert self.read(12) == b"RFB 003.008\n"
        self.sock.sendall(b"RFB 003.008\n")
        assert self.read(2) == b"\1\1"
        self.sock.sendall(b"\1")
        assert self.read(4) == bytes(4)
        self.sock.sendall(b"\1")
        self.width, self.height, _, length = struct.unpack(">HH16sI", self.read(24))
        self.name = self.read(length).decode()
        self.pixels = bytearray(self.width * self.height * 4)

    def __enter__(self) -> "RfbClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = self.sock.recv(count - len(data))
            if not piece:
                raise ConnectionResetError
            data += piece
        self.bytes_read += count
        return bytes(data)

    def set_encodings(self, encodings: Sequence[int]) -> None:
        self.sock.sendall(struct.pack(f">BxH{len(encodings)}i", 2, len(encodings), *encodings))

    def ask(self, *, incremental: bool = True) -> None:
        self.sock.sendall(struct.pack(">BBHHHH", 3, incremental, 0, 0, self.width, self.height))

    def key(self, keysym: int, pressed: bool) -> None:
        self.sock.sendall(struct.pack(">BB2xI", 4, pressed, keysym))

    def type(self, text: str) -> None:
        for character in text:
            self.key(ord(character), True)
            self.key(ord(character), False)

    def point(self, x: int, y: int, buttons: int = 0) -> None:
        self.sock.sendall(struct.pack(">BBHH", 5, buttons, x, y))

    def update(self) -> list[tuple[int, int, int, int]]:
        """The next one, painted; its rectangles as (x, y, width, height)."""
        kind, count = struct.unpack(">BxH", self.read(4))
        assert kind == 0
        rectangles = []
        for _ in range(count):
            x, y, width, height, encoding = struct.unpack(">HHHHi", self.read(12))
            rectangles.append((x, y, width, height))
            if encoding == DESKTOP_SIZE:
                self.width, self.height = width, height
                self.pixels = bytearray(width * height * 4)
            else:
                self._paint(x, y, width, height, self._decode(width, height, encoding))
        return rectangles

    def _decode(self, width: int, height: int, encoding: int) -> bytes:
        if encoding == RAW:
            return self.read(width * height * 4)
        stream = self._inflate.setdefault(encoding, zlib.decompressobj())
        data = stream.decompress(self.read(int.from_bytes(self.read(4), "big")))
        return data if encoding == ZLIB else _untiled(data, width, height)

    def _paint(self, x: int, y: int, width: int, height: int, data: bytes) -> None:
        assert len(data) == width * height * 4
        for row in range(height):
            at = ((y + row) * self.width + x) * 4
            self.pixels[at : at + width * 4] = data[row * width * 4 : (row + 1) * width * 4]

    def pixel(self, x: int, y: int) -> int:
        at = (y * self.width + x) * 4
        return int.from_bytes(self.pixels[at : at + 3], "little")

    def until(self, x: int, y: int, colour: int) -> None:
        """Look until that pixel has that colour. Fails by the socket's timeout."""
        while self.pixel(x, y) != colour:
            self.ask()
            self.update()


def _untiled(data: bytes, width: int, height: int) -> bytes:
    """ZRLE's tiles of one colour and raw ones, with pixels of three bytes."""
    out, at = bytearray(width * height * 4), 0
    for top in range(0, height, 64):
        for left in range(0, width, 64):
            across, down = min(64, width - left), min(64, height - top)
            kind, at = data[at], at + 1
            count = 3 if kind == 1 else across * down * 3
            assert kind in (0, 1)
            tile = data[at : at + count] * (across * down if kind == 1 else 1)
            at += count
            for row in range(down):
                start = ((top + row) * width + left) * 4
                for plane in range(3):
                    line = tile[row * across * 3 : (row + 1) * across * 3]
                    out[start + plane : start + across * 4 : 4] = line[plane::3]
    assert at == len(data)
    return bytes(out)
