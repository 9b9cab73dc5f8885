"""What the machine keeps of a device domain: `device_domains` says what it is for."""

from __future__ import annotations

from dataclasses import dataclass, field

from runtime.abi import MapFlags


@dataclass(slots=True)
class DeviceDomain:
    """Owned by the partition in whose table it stands."""

    id: int
    slots: dict[int, MapFlags] = field(default_factory=dict)  # the owner's own slots, and the most access
    devices: list[int] = field(default_factory=list)  # partitions attached, ascending
