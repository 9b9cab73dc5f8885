"""What the root says of a partition's devices: for `partvisor show` and the debugger."""

from typing import Any

from partitions.drivers.process import STATE_GPFN
from partitions.drivers.server_partition import ServerPartition
from partitions.drivers.state import STATE_PAGES
from partitions.placement import Devices, drivers_among
from partitions.stack.virtualization_stack import VirtualizationStack


def device_rows(name: str, devices: Devices, stack: VirtualizationStack | None) -> list[dict[str, Any]]:
    """A row for each device that the partition of that name has, or is."""
    drivers = drivers_among(devices)
    rows = [
        driver.inspect() | {"memory": [[STATE_GPFN, STATE_PAGES]]}
        for driver in drivers
        if driver.name == name
    ]
    rows += [row for server in drivers if isinstance(server, ServerPartition) for row in server.rows_of(name)]
    guests = stack.guests.values() if stack is not None else ()
    rows += [row for guest in guests if guest.name == name for row in guest.devices()]
    return rows
