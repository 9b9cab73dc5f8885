"""What the platform is told about partitions: plain maps for its `list` and `show`."""

from __future__ import annotations

from typing import Final

from runtime.hypervisor.machine import Machine
from runtime.hypervisor.partition import Partition

PARTITIONS_PER_LIST: Final = 64  # so that a reply of the longest names fits into a packet


def list_partitions(machine: Machine, after: int = 0) -> dict[str, object]:
    """{"partitions": rows by ascending id, "more": whether to ask again from the last one's id}."""
    ids = sorted(partition for partition in machine.partitions if partition > after)
    page = ids[:PARTITIONS_PER_LIST]
    return {
        "partitions": [_row(machine, machine.partitions[partition]) for partition in page],
        "more": len(ids) > len(page),
    }


def show_partition(machine: Machine, partition: Partition) -> dict[str, object]:
    entries = partition.gpa.entries.values()
    return _row(machine, partition) | {
        "depth": partition.depth,
        "children": partition.children[:PARTITIONS_PER_LIST],
        "privileges": int(partition.privileges),
        "pages_available": partition.pool.available,
        "pages_in_use": partition.pool.in_use,
        "slots": len(entries),
        "own_slot_pages": sum(entry.pages for entry in entries if entry.own),
        "mapped_slot_pages": sum(entry.pages for entry in entries if not entry.own),
        "vps": sorted(partition.vps),
        "ports": len(partition.ports),
        "connections": len(partition.connections),
        "messages_waiting": sum(port.buffers_used for port in partition.ports.values()),
        "intercepts": len(partition.intercepts.table),
        "suspended_vps": [vp.index for vp in partition.vps.values() if vp.intercept.access is not None],
        "module": partition.program.module if partition.program is not None else None,
    }


def _row(machine: Machine, partition: Partition) -> dict[str, object]:
    status = partition.exit_status
    return {
        "id": partition.id,
        "name": machine.path(partition),
        "parent": partition.parent,
        "state": partition.state.name.lower(),
        "pid": partition.pid,
        "process": "paused" if partition.suspended else partition.process.name.lower(),
        "exit": None if status is None else {"code": status.code, "signal": status.signal},
        "pages": partition.pool.available + partition.pool.in_use,
    }
