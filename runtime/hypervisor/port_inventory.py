"""Ports, who is connected to them, and what became of their interrupts, for people: one page at a time."""

from __future__ import annotations

from typing import Final

from runtime.abi import ID_24_BIT_MAX, PortType
from runtime.hypervisor.machine import Machine
from runtime.hypervisor.port import Port
from runtime.hypervisor.ports import counts_of

PORTS_PER_LIST: Final = 128  # so that a page fits into a packet
_PORT_BITS: Final = ID_24_BIT_MAX.bit_length()


def list_ports(machine: Machine, after: int = 0, owner: int | None = None) -> dict[str, object]:
    """{"rows": by ascending key, "more": whether to ask again from the last one's key}.

    Args:
        owner: the ports of this partition alone.
    """
    keys = sorted(
        key
        for partition in machine.partitions.values()
        if owner in (None, partition.id)
        for port in partition.ports
        if (key := (partition.id << _PORT_BITS | port) + 1) > after
    )
    page = keys[:PORTS_PER_LIST]
    return {"rows": [_row(machine, key) for key in page], "more": len(keys) > len(page)}


def _row(machine: Machine, key: int) -> dict[str, object]:
    partition = machine.partitions[key - 1 >> _PORT_BITS]
    port = partition.ports[key - 1 & ID_24_BIT_MAX]
    counts = counts_of(machine, port)
    return {
        "key": key,
        "partition": partition.id,
        "port": port.id,
        "type": port.type.name.lower(),
        "sint": port.sint,
        "vp": port.vp,
        "for": port.connection_partition,
        "connection": port.connection,
        "route": _route(machine, port),
        "sent": counts.sent,
        "merged": counts.merged,
        "suppressed": counts.suppressed,
        "delivered": counts.delivered,
        "waiting": port.buffers_used,
        "doorbell": port.doorbell,
    }


def _route(machine: Machine, port: Port) -> str | None:
    """How events come. By the direct one they do not come through us, and are not counted."""
    if port.connection is None or port.type is not PortType.EVENT:
        return None
    return machine.partitions[port.connection_partition].connections[port.connection].route.name.lower()
