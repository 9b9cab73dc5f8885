"""The [[partition.emulated]] table of a config file: devices of a PC."""

import enum
from typing import Annotated, Final

from msgspec import Meta

from runtime.config.shape import Name, Shape
from runtime.config.sizes import PAGE_BYTES

EMULATED_MAX: Final = 16  # emulated devices of one partition
INPUT_CHARACTERS_MAX: Final = 128  # typed into a UART at boot; encoded, four times as many bytes at most


class InterceptWay(enum.StrEnum):
    """How a partition's port accesses reach whoever emulates its devices."""

    HYPERVISOR = "hypervisor"  # a message for each, as on a real machine
    DIRECT = "direct"  # a page that both share, and a doorbell each way


class EmulatedKind(enum.StrEnum):
    UART = "uart"
    KEYBOARD = "keyboard"
    RTC = "rtc"
    IDE = "ide"


PortNumber = Annotated[int, Meta(ge=1, le=0xFC00)]
InterruptLine = Annotated[int, Meta(ge=0, le=15)]
PageAddress = Annotated[int, Meta(ge=0, le=(1 << 52) - PAGE_BYTES)]
TypedText = Annotated[str, Meta(max_length=INPUT_CHARACTERS_MAX)]


class EmulatedDeviceConfig(Shape, frozen=True, kw_only=True):
    """[[partition.emulated]]: a device of a PC, for a program that knows of nothing but ports."""

    kind: EmulatedKind
    port: Annotated[
        PortNumber | None, Meta(description="The first of its ports; left out: where a PC has it.")
    ] = None
    irq: Annotated[InterruptLine | None, Meta(description="Its interrupt line; left out: as on a PC.")] = None
    mmio: Annotated[
        PageAddress | None,
        Meta(description="Of a UART: a page of the address space that begins with its registers, too."),
    ] = None
    device: Annotated[Name | None, Meta(description="Of an IDE disk: the [[root.device]] behind it.")] = None
    input: Annotated[TypedText | None, Meta(description="Of a UART: typed into it when it boots.")] = None
