"""What the machine keeps of a port and of a connection: `ports` says how they come and go."""

from __future__ import annotations

from dataclasses import dataclass, field

from runtime.abi import PortType, Route
from runtime.hypervisor.interrupt_counts import InterruptCounts


@dataclass(slots=True)
class Port:
    """Owned by the partition in whose table it stands."""

    id: int
    type: PortType
    sint: int
    vp: int  # VP_ANY: message ports only
    base_flag: int
    flag_count: int  # 0 for a message port
    connection_partition: int  # who may connect
    connection: int | None = None  # its id there
    buffers_used: int = 0  # message buffers, of MESSAGE_BUFFERS_PER_PORT
    withheld: int = (
        0  # messages that were posted and, by a fault on purpose, not queued; less those queued twice
    )
    doorbell: bool = False  # someone claimed it, so it exists
    endpoint: int | None = None  # whose second end waits for the owner
    counts: InterruptCounts = field(default_factory=InterruptCounts)  # but for those of a route that is there


@dataclass(slots=True)
class Connection:
    """Owned by the partition in whose table it stands."""

    id: int
    route: Route
    port_partition: int
    port: int | None  # None: the port is gone
    sender_route: int | None = None  # the broker's route, once claimed
    sender_flag: int = 0
