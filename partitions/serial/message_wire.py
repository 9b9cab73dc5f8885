"""A serial line without rings: bytes as calls and replies, each one packet of a SOCK_SEQPACKET socket.

    head (16 bytes) | bytes

A client has two connections. On the first it says WRITE, and is told how many of the bytes the driver took: the others
it writes again, a little later. On the second it keeps one READ, which is answered when there are bytes. All integers
are little-endian.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final

from partitions.serial.wire import PIECE_BYTES_MAX

WRITE_BYTES_MAX: Final = 16 << 10  # in one call
_HEAD: Final = struct.Struct(
    "<BBHIQ"
)  # kind, whether it was sent before, 0, a number of bytes, a call's number
MESSAGE_BYTES_MAX: Final = _HEAD.size + WRITE_BYTES_MAX
assert _HEAD.size == 16
assert PIECE_BYTES_MAX <= WRITE_BYTES_MAX


class Kind(IntEnum):
    WRITE = 1
    READ = 2
    WRITTEN = 129
    PIECE = 130


class MalformedCall(ValueError):
    """Not one of these. Nothing was done for it."""


@dataclass(frozen=True, slots=True)
class Write:
    KIND: ClassVar[Kind] = Kind.WRITE

    number: int  # of the call; of one that is sent again, the same
    data: bytes
    again: bool = False  # a server died with it: what it noted of this number is done

    def encode(self) -> bytes:
        return _HEAD.pack(self.KIND, self.again, 0, len(self.data), self.number) + self.data


@dataclass(frozen=True, slots=True)
class Read:
    KIND: ClassVar[Kind] = Kind.READ

    taken: int  # the number of the last piece that has got where it is to go; 0: of none

    def encode(self) -> bytes:
        return _HEAD.pack(self.KIND, 0, 0, 0, self.taken)


@dataclass(frozen=True, slots=True)
class Written:
    KIND: ClassVar[Kind] = Kind.WRITTEN

    number: int
    taken: int

    def encode(self) -> bytes:
        return _HEAD.pack(self.KIND, 0, 0, self.taken, self.number)


@dataclass(frozen=True, slots=True)
class Piece:
    KIND: ClassVar[Kind] = Kind.PIECE

    number: int  # never 0, and of one piece alone, whatever server sent it
    data: bytes

    def encode(self) -> bytes:
        return _HEAD.pack(self.KIND, 0, 0, len(self.data), self.number) + self.data


def decode_call(message: memoryview) -> Write | Read:
    """What a server got. MalformedCall."""
    kind, again, length, number, data = _split(message)
    if kind == Kind.WRITE and 0 < length == len(data):
        return Write(number, bytes(data), bool(again))
    if kind == Kind.READ and length == len(data) == again == 0:
        return Read(number)
    raise MalformedCall(f"call {kind}, {length} bytes in {len(data)}")


def decode_reply(message: memoryview) -> Written | Piece:
    """What a client got. MalformedCall."""
    kind, again, length, number, data = _split(message)
    if kind == Kind.WRITTEN and length <= WRITE_BYTES_MAX and not data and not again:
        return Written(number, length)
    if kind == Kind.PIECE and 0 < length == len(data) <= PIECE_BYTES_MAX and number and not again:
        return Piece(number, bytes(data))
    raise MalformedCall(f"reply {kind}, {length} bytes in {len(data)}")


def _split(message: memoryview) -> tuple[int, int, int, int, memoryview]:
    if not _HEAD.size <= len(message) <= MESSAGE_BYTES_MAX:
        raise MalformedCall(f"{len(message)} bytes")
    kind, again, zero, length, number = _HEAD.unpack_from(message)
    if again > 1 or zero:
        raise MalformedCall(f"{again} and {zero} in a head")
    return kind, again, length, number, message[_HEAD.size :]
