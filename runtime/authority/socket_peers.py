"""Who is at the other end of each Unix socket: the kernel's socket diagnosis, which anybody may ask.

A socket belongs to the network namespace of who made it; only those of our own are told.

Source: linux/unix_diag.h, linux/sock_diag.h, sock_diag(7).
"""

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST_DUMP: Final = 0x301
_DONE: Final = 3
_ERROR: Final = 2
_SHOW_NAME_AND_PEER: Final = 0x1 | 0x4
_NAME: Final = 0
_PEER: Final = 2
_ANY: Final = 0xFFFFFFFF
_HEADER: Final = struct.Struct("<IHHII")  # length, type, flags, sequence, pid
_REQUEST: Final = struct.Struct(
    "<BBHIIIII"
)  # family, protocol, padding, states, inode, show, two words of cookie
_MESSAGE: Final = struct.Struct("<BBBBIII")  # family, type, state, padding, inode, two words of cookie
_ATTRIBUTE: Final = struct.Struct("<HH")  # length, type
_BUFFER_BYTES: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class SocketFacts:
    peer: int | None  # its inode
    path: str | None  # that it, or who accepted it, is bound to


def read_sockets() -> dict[int, SocketFacts]:
    """Of every Unix socket, by inode. Raises OSError: the kernel does not tell."""
    found: dict[int, SocketFacts] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as link:
        body = _REQUEST.pack(socket.AF_UNIX, 0, 0, _ANY, 0, _SHOW_NAME_AND_PEER, _ANY, _ANY)
        length = _HEADER.size + len(body)
        link.send(_HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0) + body)
        while True:
            data, at = link.recv(_BUFFER_BYTES), 0
            while at < len(data):
                length, kind, *_ = _HEADER.unpack_from(data, at)
                if kind == _DONE:
                    return found
                if kind == _ERROR:
                    raise OSError("the kernel tells nothing of Unix sockets")
                inode = _MESSAGE.unpack_from(data, at + _HEADER.size)[4]
                facts = dict(_attributes(data, at + _HEADER.size + _MESSAGE.size, at + length))
                peer = int.from_bytes(facts[_PEER], "little") if _PEER in facts else None
                name = facts.get(_NAME, b"").rstrip(b"\0").decode(errors="replace")
                found[inode] = SocketFacts(peer, name or None)
                at += (length + 3) & ~3


def _attributes(data: bytes, at: int, end: int) -> Iterator[tuple[int, bytes]]:
    while at < end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        yield kind, data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
