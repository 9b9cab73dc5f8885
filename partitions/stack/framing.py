"""What an offer says of its channel's packets, by what is offered."""

from typing import Any, Final, Protocol, runtime_checkable
from uuid import UUID

from bus import guids
from bus.channel_messages import OfferFlags, PipeMode, pipe_user_data
from partitions.integration import services
from partitions.serial import wire as serial
from partitions.stack.offered_device import OfferedDevice

PIPED: Final = frozenset({guids.MOUSE, guids.VIDEO})  # the keyboard's packets have no pipe header


@runtime_checkable
class FramedDevice(Protocol):
    """An OfferedDevice of which the interface alone does not tell."""

    @property
    def framing(self) -> dict[str, Any]: ...


def framing_of(device: OfferedDevice) -> dict[str, Any]:
    """As OfferParameters has it; nothing for packets without a frame of their own."""
    if isinstance(device, FramedDevice):
        return device.framing
    return framing_of_interface(device.interface)


def framing_of_interface(interface: UUID) -> dict[str, Any]:
    if interface in PIPED:
        return {"flags": OfferFlags.NAMED_PIPE, "user_data": pipe_user_data(PipeMode.MESSAGE)}
    return serial.framing_of(interface) | services.framing_of(interface)
