"""What a guest's bus asks of whatever it offers: a disk, a network, a driver partition that has one."""

from typing import Protocol
from uuid import UUID

from bus.native import Channel, GpaMap
from bus.seam import Seam
from partitions.stack.served_channel import Service


class OfferedDevice(Protocol):
    """What the VMBus server needs of a device of any class."""

    name: str

    @property
    def interface(self) -> UUID: ...
    def open(self, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam) -> Service: ...
    def close(self) -> None: ...
