"""What a serial line's channel is: an interface of ours, and packets of a byte pipe (bus.byte_pipe) both ways."""

from typing import Any, Final
from uuid import UUID

from bus.channel_messages import OfferFlags, PipeMode, pipe_user_data

# Ours: Hyper-V has serial lines only as ports.
SERIAL_INTERFACE: Final = UUID("8f6b1c52-4d3e-4b0a-9a51-736572690001")
PIECE_BYTES_MAX: Final = 4096  # what we put into one packet; up to MAX_PIPE_BYTES are taken
_PIPE_USER_DATA: Final = pipe_user_data(PipeMode.BYTE)


def framing_of(interface: UUID) -> dict[str, Any]:
    """What an offer of the interface says of its packets, as OfferParameters has it."""
    if interface != SERIAL_INTERFACE:
        return {}
    return {"flags": OfferFlags.NAMED_PIPE, "user_data": _PIPE_USER_DATA}
