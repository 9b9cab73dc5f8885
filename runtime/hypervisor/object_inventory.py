"""What the kernel's numbers in /proc stand for: each object that the hypervisor made, whose it is, who may have it.

/proc says of a descriptor that it is memory with inode 362665, or an eventfd with id 12. Here is what these are. For
people and for `partvisor authority`, which compares this with what every process really holds: one page at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runtime.abi import ROOT_PARTITION, MapFlags

if TYPE_CHECKING:
    from runtime.hypervisor.broker import Broker
    from runtime.hypervisor.machine import Machine

OBJECTS_PER_LIST: Final = 48  # so that a page fits into a packet
_MAPPERS_MAX: Final = 16  # of one slot, in the list; a slot of a channel has one

_EVENTFDS: Final = ("line", "doorbell", "kick", "watch")


def list_objects(broker: Broker, after: int = 0) -> dict[str, object]:
    """{"rows": [...], "more": bool}. Rows are counted from 1, in an order that stays while nothing is made or ends.

    `number` is the inode of memory and of our own end of a socket, or the id of an eventfd.
    """
    rows: list[dict[str, object]] = []
    for index, (kind, key, fd) in enumerate(_all(broker), 1):
        if index <= after:
            continue
        if len(rows) == OBJECTS_PER_LIST:
            return {"rows": rows, "more": True}
        row = {"key": index, "kind": kind, "number": _number(kind, fd)}
        rows.append(row | _meaning(broker.hypervisor.machine, kind, key))
    return {"rows": rows, "more": False}


def list_processes(broker: Broker) -> dict[str, object]:
    """The processes of ours that are no partition's: {role: pid}."""
    zygote, standby = broker.zygote.pid, broker.standby.pid
    found: dict[str, object] = {"hypervisor": os.getpid()}
    if zygote is not None:
        found["zygote"] = zygote
    if standby is not None:
        found["standby"] = standby
    return found


def _all(broker: Broker) -> Iterator[tuple[str, tuple[int, ...], int]]:
    yield from broker.host.objects()
    for partition, fd in broker._sockets.descriptors():
        yield "hypercalls", (partition,), fd
    if broker._console_fd is not None:
        yield "console", (), broker._console_fd
    if (zygote := broker.zygote.current) is not None:
        yield "zygote", (), zygote.socket.fileno()
    if (waiting := broker.standby.descriptor) is not None:
        yield "standby", (), waiting


def _number(kind: str, fd: int) -> int:
    if kind not in _EVENTFDS:
        return os.fstat(fd).st_ino
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "eventfd-id":
            return int(value)
    return 0  # a kernel before 5.2


def _meaning(machine: Machine, kind: str, key: tuple[int, ...]) -> dict[str, object]:
    match kind, key:
        case "slot", (slot,):
            return _slot(machine, slot)
        case (("sim" | "sief" | "line" | "vectors"), (partition, vp)):
            return {"owner": partition, "vp": vp}
        case "doorbell", (partition, port):
            return {"owner": partition, "port": port, "from": _sender(machine, partition, port)}
        case "kick", (route,):
            return _kick(machine, route)
        case "statistics", (page,):
            owners = [
                mapper.id
                for mapper in machine.partitions.values()
                if any(one.id == page for one in mapper.stats_pages.values())
            ]
            return {"owner": owners[0] if owners else ROOT_PARTITION}
        case _, (partition, *_):
            return {"owner": partition}
    return {}


def _slot(machine: Machine, number: int) -> dict[str, object]:
    slot = machine.slots[number]
    gpfn = next(
        (
            entry.gpfn
            for entry in machine.partitions[slot.owner].gpa.entries.values()
            if entry.slot == number and entry.own
        ),
        0,
    )
    mappers = []
    for partition, at in slot.mappers[:_MAPPERS_MAX]:
        entry = machine.partitions[partition].gpa.entries[at]
        mappers.append([partition, "rw" if entry.access & MapFlags.WRITE else "r"])
    return {"owner": slot.owner, "gpfn": gpfn, "pages": slot.pages, "mappers": mappers}


def _sender(machine: Machine, partition: int, port: int) -> int:
    return machine.partitions[partition].ports[port].connection_partition


def _kick(machine: Machine, route: int) -> dict[str, object]:
    """What a sender writes to, by the hypervisor's route; it rings the port behind."""
    for sender in machine.partitions.values():
        for connection in sender.connections.values():
            if connection.sender_route == route:
                return {"owner": connection.port_partition, "port": connection.port, "from": sender.id}
    return {}
