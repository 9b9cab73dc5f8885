"""A byte pipe's data packets: {u32 type, u32 length} and the bytes, in-band packets both ways. No completions.

The framing is bus.packets', as on channels whose offer says named pipe; here is how a stream is cut.

Source: openvmm vm/devices/vmbus/vmbus_async/src/pipe.rs.
"""

from typing import Any, Final
from uuid import UUID

from bus.channel_messages import OfferFlags, PipeMode, pipe_user_data
from bus.packets import DESCRIPTOR_BYTES, PIPE_HEADER_BYTES, TRAILER_BYTES, PacketError, PipeType, decode_pipe
from bus.packets import encode_pipe as encode_piece

# Ours: Hyper-V has serial lines only as ports.
SERIAL_INTERFACE: Final = UUID("8f6b1c52-4d3e-4b0a-9a51-736572690001")
PIECE_BYTES_MAX: Final = 4096  # what we put into one packet; up to MAX_PIPE_BYTES are taken
_PIPE_USER_DATA: Final = pipe_user_data(PipeMode.BYTE)

__all__ = [
    "PIECE_BYTES_MAX",
    "SERIAL_INTERFACE",
    "decode_piece",
    "encode_piece",
    "framing_of",
    "ring_bytes_of",
]


def framing_of(interface: UUID) -> dict[str, Any]:
    """What an offer of the interface says of its packets, as OfferParameters has it."""
    if interface != SERIAL_INTERFACE:
        return {}
    return {"flags": OfferFlags.NAMED_PIPE, "user_data": _PIPE_USER_DATA}


def decode_piece(payload: bytes) -> bytes:
    """The bytes of a data packet; none is the end of the stream. PacketError: it is no data packet."""
    kind, data = decode_pipe(payload)
    if kind is not PipeType.DATA:
        raise PacketError(f"pipe type {kind.name}")
    return data


def ring_bytes_of(piece_bytes: int) -> int:
    """What a packet with so many bytes takes of a ring."""
    return DESCRIPTOR_BYTES + -(-(PIPE_HEADER_BYTES + piece_bytes) // 8) * 8 + TRAILER_BYTES
