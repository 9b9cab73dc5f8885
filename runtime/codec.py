"""The one encoding of control messages: strict msgpack in SOCK_SEQPACKET packets, with SCM_RIGHTS.

Every peer is hostile: each length has a limit, maps have text keys, extension types do not exist, and a
packet is whole or it is refused. Whatever descriptors came with a refused packet are closed.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgpack  # type: ignore[import-untyped]

PACKET_BYTES_MAX: Final = 64 * 1024
TEXT_BYTES_MAX: Final = 16 * 1024
BINARY_BYTES_MAX: Final = 16 * 1024
ARRAY_ELEMENTS_MAX: Final = 4096
MAP_ENTRIES_MAX: Final = 256
DEPTH_MAX: Final = 32
DESCRIPTORS_PER_PACKET_MAX: Final = 224  # 64 VPs x 3 + files; below the kernel's SCM_MAX_FD of 253

_DESCRIPTOR_BYTES: Final = array.array("i").itemsize
_LEAVES: Final = frozenset((int, str, bytes, bool, float, type(None)))  # types without elements
_TRUNCATED: Final = socket.MSG_TRUNC | socket.MSG_CTRUNC


class DecodeError(ValueError):
    """The peer's packet breaks a rule of this encoding. Nothing of it was used."""


class EncodeError(ValueError):
    """Our own message cannot be encoded within the limits. Nothing was sent."""


@dataclass(frozen=True, slots=True)
class Packet:
    """One received packet. Whoever receives it owns the descriptors."""

    data: bytes
    fds: list[int]


def encode(message: object) -> bytes:
    """Raises: EncodeError: a type or size that no peer would accept."""
    try:
        data: bytes = msgpack.packb(message, use_bin_type=True, strict_types=False)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise EncodeError(str(error)) from error
    if len(data) > PACKET_BYTES_MAX:
        raise EncodeError(f"{len(data)} bytes, at most {PACKET_BYTES_MAX}")
    return data


def decode(data: bytes) -> object:
    """Raises: DecodeError: not exactly one msgpack value within the limits."""
    if len(data) > PACKET_BYTES_MAX:
        raise DecodeError(f"{len(data)} bytes, at most {PACKET_BYTES_MAX}")
    try:
        message: object = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            use_list=True,
            timestamp=0,
            max_str_len=TEXT_BYTES_MAX,
            max_bin_len=BINARY_BYTES_MAX,
            max_array_len=ARRAY_ELEMENTS_MAX,
            max_map_len=MAP_ENTRIES_MAX,
            max_ext_len=0,
        )
    # msgpack's own errors are ValueErrors or plain Exceptions of its module, text errors are UnicodeErrors
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise DecodeError(f"{type(error).__name__}: {error}") from error
    _check(message, DEPTH_MAX)
    return message


def _check(value: object, depth_left: int) -> None:
    """What msgpack's options leave open: bytes as keys, deep nesting, extension objects of zero bytes."""
    if depth_left == 0:
        raise DecodeError(f"nested deeper than {DEPTH_MAX}")
    if type(value) is dict:
        for key, element in value.items():
            if type(key) is not str:
                raise DecodeError("a map key is not text")
            # Most are leaves: a call for each would be dear.
            if type(element) not in _LEAVES or depth_left == 1:
                _check(element, depth_left - 1)
    elif type(value) is list:
        for element in value:
            if type(element) not in _LEAVES or depth_left == 1:
                _check(element, depth_left - 1)
    elif type(value) not in _LEAVES:
        raise DecodeError(f"type {type(value).__name__} is not allowed")


def send_packet(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """Send one packet whole, or raise OSError (BlockingIOError on a full non-blocking socket).

    The descriptors stay ours. A dead peer is a BrokenPipeError, never a signal.
    """
    if len(fds) > DESCRIPTORS_PER_PACKET_MAX:
        raise EncodeError(f"{len(fds)} descriptors, at most {DESCRIPTORS_PER_PACKET_MAX}")
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def receive_packet(sock: socket.socket, fds_max: int = DESCRIPTORS_PER_PACKET_MAX) -> Packet | None:
    """Receive one packet; None: the peer closed its end (an empty packet says the same).

    Raises:
        DecodeError: truncated data or descriptors; what arrived is closed and the packet is gone.
        OSError: from the socket (BlockingIOError: nothing there).
    """
    space = socket.CMSG_SPACE(fds_max * _DESCRIPTOR_BYTES) if fds_max else 0
    data, ancillary, flags, _ = sock.recvmsg(PACKET_BYTES_MAX, space, socket.MSG_CMSG_CLOEXEC)
    if data and not ancillary and not flags & _TRUNCATED:  # as nearly all are
        return Packet(data, [])
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % _DESCRIPTOR_BYTES])
    received = list(fds)
    # MSG_CTRUNC: the kernel had more descriptors than room (it rounds room up, so count as well)
    if flags & _TRUNCATED or len(received) > fds_max:
        close_all(received)
        what = "data" if flags & socket.MSG_TRUNC else "descriptors"
        raise DecodeError(f"more {what} than this end takes")
    if not data:
        close_all(received)
        return None
    return Packet(data, received)


def send_message(sock: socket.socket, message: object, fds: Sequence[int] = ()) -> None:
    """`encode` and `send_packet`."""
    send_packet(sock, encode(message), fds)


def receive_message(
    sock: socket.socket, fds_max: int = DESCRIPTORS_PER_PACKET_MAX
) -> tuple[object, list[int]] | None:
    """`receive_packet` and `decode`. On DecodeError the descriptors are closed."""
    packet = receive_packet(sock, fds_max)
    if packet is None:
        return None
    try:
        return decode(packet.data), packet.fds
    except DecodeError:
        close_all(packet.fds)
        raise


def close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
