"""What mouse and video have in common: a pipe's data packet, in it {u32 type, u32 size} and a body.

The size in the header is not looked at, as real peers disagree about what it counts: the pipe's length says it.
"""

import struct
from typing import Any, Final

from bus.packets import PacketError, PipeType, decode_pipe, encode_pipe
from partitions.display.display_error import DisplayError

_HEADER: Final = struct.Struct("<II")
HEADER_BYTES: Final = 8

assert _HEADER.size == HEADER_BYTES


def encode_piped(message_type: int, body: bytes) -> bytes:
    """As Linux counts: header and body."""
    return encode_pipe(_HEADER.pack(message_type, HEADER_BYTES + len(body)) + body)


def decode_piped(payload: bytes) -> tuple[int, bytes]:
    """Type and body. DisplayError."""
    try:
        kind, data = decode_pipe(payload)
    except PacketError as error:
        raise DisplayError(str(error)) from error
    if kind is not PipeType.DATA or len(data) < HEADER_BYTES:
        raise DisplayError(f"pipe message {kind.name} of {len(data)} bytes")
    return int(_HEADER.unpack_from(data)[0]), data[HEADER_BYTES:]


def fields(layout: struct.Struct, body: bytes, at: int = 0) -> tuple[Any, ...]:
    """DisplayError: there are not as many bytes."""
    if len(body) < at + layout.size:
        raise DisplayError(f"{len(body)} bytes of a body of {at + layout.size}")
    return layout.unpack_from(body, at)
