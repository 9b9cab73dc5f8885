"""hv_sock on the wire: how a stream is offered, and its packets: {u32 type, u32 length} and bytes, in-band both ways.

A packet without bytes is the end of its direction. A channel that is taken away, or closed, without it is a reset.

Sources: Linux net/vmw_vsock/hyperv_transport.c; openvmm vm/devices/vmbus/vmbus_server/src/hvsock.rs.
"""

import struct
from typing import Any, Final
from uuid import UUID, uuid5

from bus.byte_pipe import encode_piece
from bus.channel_messages import OfferChannel, OfferFlags, PipeMode, pipe_user_data
from bus.guids import vsock_port, vsock_service
from bus.packets import MAX_PIPE_BYTES

PIECE_BYTES_MAX: Final = MAX_PIPE_BYTES  # of a packet; Linux takes in no more either
END: Final = encode_piece(b"")
LINGER_S: Final = 8.0  # after the ends of both directions, for the other side to let go; as Linux
_FLAGS: Final = OfferFlags.HV_SOCK | OfferFlags.NAMED_PIPE | OfferFlags.ENUMERATE_DEVICE_INTERFACE
_USER: Final = struct.Struct("<BBI16s2x")  # behind the pipe's type: accept, container, version, silo
_VERSION: Final = 1
_PARTITIONS: Final = UUID("6f6e6c79-7061-5274-a973-73747265616d")  # ours: what a silo's GUID is made from

assert _USER.size + 4 == 28


def service_of(service: int | UUID) -> UUID:
    """A port of the template, or a GUID of one's own. ValueError: no port."""
    return vsock_service(service) if isinstance(service, int) else service


def name_of(service: UUID) -> str:
    """As a host's program names it: the port, or the GUID."""
    port = vsock_port(service)
    return str(service) if port is None else str(port)


def parse_service(text: str) -> UUID:
    """ValueError."""
    return vsock_service(int(text)) if text.isdecimal() else UUID(text)


def silo_of(partition: str) -> UUID:
    """Whom a guest means: on the wire a container of the host's; here, another partition."""
    return uuid5(_PARTITIONS, partition)


def offer_of(*, accept: bool) -> dict[str, Any]:
    """What the offer of a stream says, as OfferParameters has it. `accept`: it is for a listener of the guest's."""
    return {
        "flags": _FLAGS,
        "user_data": pipe_user_data(PipeMode.BYTE, _USER.pack(accept, 0, _VERSION, bytes(16))),
    }


def is_stream(offer: OfferChannel) -> bool:
    return bool(offer.flags & OfferFlags.HV_SOCK)


def is_for_listener(offer: OfferChannel) -> bool:
    return is_stream(offer) and offer.user_data[4] != 0
