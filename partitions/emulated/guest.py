"""A child whose devices its parent emulates."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bus.native import ServiceBudget
from partitions.emulated.devices import PartitionDevices
from partitions.emulated.direct import DirectServer
from partitions.storage.device import DiskDevice


@dataclass(slots=True)
class EmulatedGuest:
    """Under its host's lock, but for its ends."""

    partition: int
    name: str
    devices: PartitionDevices
    disks: Mapping[str, DiskDevice]
    direct: DirectServer | None
    budget: ServiceBudget
    running: set[int] = field(default_factory=set)  # devices whose request is with a thread, by place
    saved: list[tuple[str, bytes]] | None = None  # what `save` has said last
