"""Defects that can be planted into the state machine, one at a time, to see that the simulator finds them.

Each is a mistake that somebody could make: a line forgotten, a check left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MappingProxyType, ModuleType
from typing import Any, Final
from unittest.mock import patch

from runtime.hypervisor import gpa, heartbeat, partitions, pools, ports, synic
from runtime.hypervisor.machine import Machine
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.pool import Pool
from runtime.hypervisor.port import Port
from runtime.hypervisor.program import Process
from runtime.hypervisor.replies import Reply

_MODULES: Final = (gpa, heartbeat, partitions, pools, ports, synic)


@contextmanager
def planted(name: str) -> Iterator[None]:
    """While the block runs, the state machine has this defect. KeyError: there is none of that name."""
    with ExitStack() as stack:
        for module, attribute, value in DEFECTS[name]():
            stack.enter_context(patch.object(module, attribute, value))
        yield


_Change = tuple[Any, str, Any]


def _everywhere(module: ModuleType, attribute: str, value: Any) -> list[_Change]:
    """In its module, and wherever it was imported from there."""
    original = getattr(module, attribute)
    return [(each, attribute, value) for each in _MODULES if getattr(each, attribute, None) is original]


def _lost_refund() -> list[_Change]:
    """The end of a connection does not give its page back."""
    original = ports.release_connection

    def release_connection(machine: Machine, owner: Partition, connection_id: int) -> None:
        original(machine, owner, connection_id)
        owner.pool.available -= 1
        owner.pool.in_use += 1

    return _everywhere(ports, "release_connection", release_connection)


def _pages_from_nowhere() -> list[_Change]:
    """A withdrawal adds to one pool and does not take from the other."""
    original = Pool.give

    def give(self: Pool, other: Pool, pages: int) -> None:
        original(self, other, pages)
        if pages == 13:
            self.available += 1

    return [(Pool, "give", give)]


def _doubled_at_end_of_message() -> list[_Change]:
    """A message that waited is delivered, and left in the queue."""
    original = synic.deliver

    def deliver(machine: Machine, owner: Partition, vp: Any, sint: int) -> None:
        first = vp.queues[sint][0] if len(vp.queues[sint]) > 1 else None
        waiting = len(vp.queues[sint])
        original(machine, owner, vp, sint)
        if first is not None and len(vp.queues[sint]) < waiting and first.port in owner.ports:
            vp.queues[sint].appendleft(first)
            owner.ports[first.port].buffers_used += 1

    return _everywhere(synic, "deliver", deliver)


def _lost_message() -> list[_Change]:
    """A queue of four forgets its last."""
    original = synic.deliver

    def deliver(machine: Machine, owner: Partition, vp: Any, sint: int) -> None:
        original(machine, owner, vp, sint)
        if len(vp.queues[sint]) >= 4:
            owner.ports[vp.queues[sint].pop().port].buffers_used -= 1

    return _everywhere(synic, "deliver", deliver)


def _out_of_order() -> list[_Change]:
    """The newest message overtakes the one before it."""
    original = synic.deliver

    def deliver(machine: Machine, owner: Partition, vp: Any, sint: int) -> None:
        queue = vp.queues[sint]
        if len(queue) == 3:
            queue.append(queue[-2])
            del queue[-3]
        original(machine, owner, vp, sint)

    return _everywhere(synic, "deliver", deliver)


def _silent_delivery() -> list[_Change]:
    """A message at end-of-message comes without its interrupt."""
    original = synic.end_of_message

    def end_of_message(machine: Machine, owner: Partition, vp: Any) -> None:
        kept = len(machine.effects)
        original(machine, owner, vp)
        del machine.effects[kept:]

    return _everywhere(synic, "end_of_message", end_of_message)


def _dangling_connection() -> list[_Change]:
    """A port's end does not tell its connection."""
    original = ports.release_port

    def release_port(machine: Machine, owner: Partition, port_id: int) -> None:
        port: Port = owner.ports[port_id]
        if port.connection is not None and not port.doorbell:
            port.connection = None
        original(machine, owner, port_id)

    return _everywhere(ports, "release_port", release_port)


def _orphan_kept() -> list[_Change]:
    """A dead partition whose parent died before it stays in the tree for ever."""
    original = partitions._settle

    def settle(machine: Machine, partition: Partition) -> None:
        was_orphaned, partition.orphaned = partition.orphaned, partition.orphaned and not partition.ports
        if partition.process is Process.ENDED:
            partition.orphaned = False
        original(machine, partition)
        if partition.id in machine.partitions:
            partition.orphaned = was_orphaned

    return [(partitions, "_settle", settle)]


def _slot_freed_while_mapped() -> list[_Change]:
    """Memory goes with its owner, though others map it still."""

    def release_space(machine: Machine, partition: Partition) -> None:
        for entry in list(partition.gpa.entries.values()):
            if entry.own:
                machine.slots[entry.slot].mappers.clear()
            gpa._drop(machine, partition, entry)

    return _everywhere(gpa, "release_space", release_space)


def _refusal_that_takes() -> list[_Change]:
    """A call that the host has no memory for has already charged for it."""
    original = gpa._map_new

    def map_new(call: Any, *args: Any) -> Reply:
        try:
            return original(call, *args)
        except OSError:
            call.target.pool.charge(1)
            raise

    return [(gpa, "_map_new", map_new)]


def _promise_outlives_process() -> list[_Change]:
    """A dead process's heartbeat is still expected."""
    return [(heartbeat, "forget", lambda partition: None)]


def _stranger_paid() -> list[_Change]:
    """Whoever disconnects pays a page to the newest partition, which it may never have heard of."""
    original = ports.release_connection

    def release_connection(machine: Machine, owner: Partition, connection_id: int) -> None:
        original(machine, owner, connection_id)
        newest = max(dict.keys(machine.partitions))
        other = machine.partitions[newest]
        if other is not owner and owner.pool.available > 1:
            owner.pool.give(other.pool, 1)

    return _everywhere(ports, "release_connection", release_connection)


DEFECTS: Final[Mapping[str, Callable[[], list[_Change]]]] = MappingProxyType(
    {
        "lost-refund": _lost_refund,
        "pages-from-nowhere": _pages_from_nowhere,
        "message-doubled": _doubled_at_end_of_message,
        "message-lost": _lost_message,
        "message-out-of-order": _out_of_order,
        "silent-delivery": _silent_delivery,
        "dangling-connection": _dangling_connection,
        "orphan-kept": _orphan_kept,
        "slot-freed-while-mapped": _slot_freed_while_mapped,
        "refusal-that-takes": _refusal_that_takes,
        "promise-outlives-process": _promise_outlives_process,
        "stranger-paid": _stranger_paid,
    }
)
