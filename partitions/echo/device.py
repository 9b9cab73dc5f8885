"""An echo as the root offers it: no backend, and a VSP for each channel that is opened to it."""

from typing import Final
from uuid import UUID

from bus.native import Channel, GpaMap
from bus.seam import Seam
from partitions.echo.vsp import EchoVsp

# Ours: Hyper-V has no such device.
ECHO_INTERFACE: Final = UUID("8f6b1c52-4d3e-4b0a-9a51-6563686f0001")


class EchoDevice:
    """An OfferedDevice. Any number of partitions may open it."""

    interface: Final[UUID] = ECHO_INTERFACE

    def __init__(self, name: str) -> None:
        self.name = name

    def open(self, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam) -> EchoVsp:
        return EchoVsp(channel, gpa_map)

    def close(self) -> None:
        """There is nothing behind it."""
