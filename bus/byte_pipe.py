"""A byte pipe's data packets: {u32 type, u32 length} and the bytes, in-band packets both ways. No completions.

The framing is bus.packets', as on channels whose offer says named pipe. Serial lines and stream sockets are such pipes.

Source: openvmm vm/devices/vmbus/vmbus_async/src/pipe.rs.
"""

from bus.packets import (
    DESCRIPTOR_BYTES,
    PIPE_HEADER_BYTES,
    TRAILER_BYTES,
    PacketError,
    PipeType,
    decode_pipe,
    encode_pipe,
)


def encode_piece(data: bytes) -> bytes:
    return encode_pipe(data)


def decode_piece(payload: bytes) -> bytes:
    """The bytes of a data packet; none is the end of the stream. PacketError: it is no data packet."""
    kind, data = decode_pipe(payload)
    if kind is not PipeType.DATA:
        raise PacketError(f"pipe type {kind.name}")
    return data


def ring_bytes_of(piece_bytes: int) -> int:
    """What a packet with so many bytes takes of a ring."""
    return DESCRIPTOR_BYTES + -(-(PIPE_HEADER_BYTES + piece_bytes) // 8) * 8 + TRAILER_BYTES
