"""What holds between any two calls. Tests and simulators call this after every step."""

from __future__ import annotations

from collections import Counter

from runtime.abi import (
    CONNECTION_PAGES,
    CREATE_PARTITION_PAGES,
    DEVICE_DOMAIN_PAGES,
    INITIALIZE_PARTITION_PAGES,
    INTERCEPT_PAGES,
    INTERCEPTS_PER_PARTITION_MAX,
    MAPPING_PAGES,
    MESSAGE_BUFFERS_PER_PORT,
    PARTITION_DEPTH_MAX,
    PORT_PAGES,
    ROOT_PARTITION,
    SINTS_PER_VP,
    SLOTS_PER_PARTITION_MAX,
    STATS_PAGE_PAGES,
    VP_PAGES,
    PartitionState,
    PortType,
)
from runtime.hypervisor.machine import Machine
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.pool import Pool
from runtime.hypervisor.program import Process
from runtime.hypervisor.reference_time import moment_ns
from runtime.statistics import StatsObject


class InvariantBroken(AssertionError):
    """The hypervisor's own state contradicts itself: a bug here, whatever a caller did."""


def check_invariants(machine: Machine) -> None:
    """Raises: InvariantBroken."""
    total = sum(each.pool.available + each.pool.in_use for each in machine.partitions.values())
    _hold(total == machine.memory_pages, f"{total} pages of {machine.memory_pages}")
    for partition in machine.partitions.values():
        check_partition(machine, partition)
    _check_slots(machine)
    _check_timers(machine)


def check_partition(machine: Machine, partition: Partition) -> None:
    """What can be said of one alone: whoever knows which a step changed need not look at all.

    Raises: InvariantBroken.
    """
    _check_tree(machine, partition)
    _check_charges(partition)
    _check_space(machine, partition)
    _check_ports(machine, partition)
    _check_queues(partition)
    _check_intercepts(machine, partition)
    _check_devices(machine, partition)
    _check_statistics(machine, partition)
    if partition.state is PartitionState.FINALIZED:
        _check_empty(partition)


def _hold(condition: bool, what: str) -> None:
    if not condition:
        raise InvariantBroken(what)


def _check_tree(machine: Machine, partition: Partition) -> None:
    _hold(machine.partitions.get(partition.id) is partition, "stands under its id")
    _hold(0 < partition.id < machine.next_partition, "ids are not reused")
    _hold(partition.depth <= PARTITION_DEPTH_MAX, "depth")
    _hold(partition.children == sorted(set(partition.children)), "children ascend")
    for child_id in partition.children:
        child = machine.partitions[child_id]
        _hold(child.parent == partition.id and child.depth == partition.depth + 1, "a child knows its parent")
        if partition.state is not PartitionState.ACTIVE:
            _hold(child.orphaned and child.state is PartitionState.FINALIZING, "a dying one's subtree dies")
    if partition.parent is None:
        _hold(partition.id == ROOT_PARTITION, "one root")
    else:
        _hold(partition.id in machine.partitions[partition.parent].children, "a parent knows its child")
    if partition.process is Process.RUNNING:
        _hold(partition.pid is not None, "a process has a pid")
    if partition.heartbeat_due_ns is not None:
        _hold(partition.process is not Process.ENDED, "the dead promise nothing")
        timer_ns = partition.heartbeat_timer_ns
        _hold(
            timer_ns is not None and timer_ns <= partition.heartbeat_due_ns, "a promise is looked at in time"
        )
    if partition.process in (Process.STARTING, Process.RUNNING):
        _hold(partition.state in (PartitionState.ACTIVE, PartitionState.FINALIZING), "a process has a home")


def _check_charges(partition: Partition) -> None:
    pool = partition.pool
    _hold(pool.available >= 0 and pool.in_use >= 0, "no debts")
    initialized = partition.state in (PartitionState.ACTIVE, PartitionState.FINALIZING)
    never = partition.state is PartitionState.FINALIZING and pool.in_use == 0  # was never initialized
    due = (
        (INITIALIZE_PARTITION_PAGES if initialized and not never else 0)
        + CREATE_PARTITION_PAGES * len(partition.children)
        + VP_PAGES * len(partition.vps)
        + PORT_PAGES * len(partition.ports)
        + CONNECTION_PAGES * len(partition.connections)
        + STATS_PAGE_PAGES * len(partition.stats_pages)
        + sum(
            DEVICE_DOMAIN_PAGES + MAPPING_PAGES * len(each.slots)
            for each in partition.device_domains.values()
        )
        + INTERCEPT_PAGES * bool(partition.intercepts.table)
        + sum(entry.pages if entry.own else MAPPING_PAGES for entry in partition.gpa.entries.values())
    )
    _hold(pool.in_use == due, f"partition {partition.id}: {pool.in_use} pages in use, objects cost {due}")


def _check_space(machine: Machine, partition: Partition) -> None:
    space = partition.gpa
    _hold(space.bases == sorted(space.entries), "the index is the table")
    _hold(len(space.bases) <= SLOTS_PER_PARTITION_MAX, "table size")
    end = 0
    for base in space.bases:
        entry = space.entries[base]
        slot = machine.slots[entry.slot]
        _hold(entry.gpfn == base >= end, "slots do not overlap")
        _hold(entry.pages == slot.pages, "slots are mapped whole")
        if entry.own:
            _hold(slot.owner == partition.id, "who pays owns")
        else:
            _hold(slot.mappers.count((partition.id, base)) == 1, "a slot knows its mappers")
        end = entry.end


def _check_slots(machine: Machine) -> None:
    own = Counter[int]()
    mapped = Counter[int]()
    for partition in machine.partitions.values():
        for entry in partition.gpa.entries.values():
            (own if entry.own else mapped)[entry.slot] += 1
    for slot in machine.slots.values():
        _hold(slot.id < machine.next_slot, "slot ids are not reused")
        _hold(own[slot.id] == 1, "a slot stands once in its owner's table")
        _hold(mapped[slot.id] == len(slot.mappers), "mappers are entries")
    _hold(set(own) == set(machine.slots), "entries are of slots")


def _check_ports(machine: Machine, partition: Partition) -> None:
    for port in partition.ports.values():
        _hold(0 <= port.buffers_used <= MESSAGE_BUFFERS_PER_PORT, "message buffers")
        _hold(port.type is PortType.MESSAGE or port.buffers_used == 0, "events need no buffers")
        if port.connection is not None:
            connection = machine.partitions[port.connection_partition].connections[port.connection]
            _hold(
                (connection.port_partition, connection.port) == (partition.id, port.id),
                "a port and its connection agree",
            )
    for connection in partition.connections.values():
        found = machine.port_behind(connection)
        if found is None:
            _hold(connection.sender_route is None, "no route to a port that is gone")
            continue
        owner, port = found
        _hold(
            (port.connection_partition, port.connection) == (partition.id, connection.id),
            "a connection and its port agree",
        )
        _hold(connection.sender_route is None or port.doorbell, "a route has a doorbell")
        _hold(owner is not partition, "nobody connects to itself")


def _check_queues(partition: Partition) -> None:
    waiting = [
        (vp.index, message)
        for vp in partition.vps.values()
        for queue in vp.queues
        if queue
        for message in queue
    ]
    queued: dict[int, int] = {}
    timers: dict[tuple[int, int], int] = {}
    if waiting:  # seldom, and simulators call this often
        queued = Counter(message.port for _, message in waiting if message.timer is None)
        timers = Counter((vp, message.timer) for vp, message in waiting if message.timer is not None)
    for vp in partition.vps.values():
        for index, timer in enumerate(vp.timers):
            _hold(timers.pop((vp.index, index), 0) == timer.waits, "a timer has one message buffer")
    _hold(not timers, "messages of timers")
    for vp in partition.vps.values():
        _hold(len(vp.queues) == SINTS_PER_VP and len(vp.sints) == SINTS_PER_VP, "16 SINTs")
    for port in partition.ports.values():
        _hold(queued.pop(port.id, 0) == port.buffers_used, "buffers are queued messages")
        counts = port.counts
        done = counts.merged + counts.suppressed + counts.delivered
        _hold(counts.sent == done + port.buffers_used, "what was sent is accounted for")
    _hold(not queued, "messages of ports that are gone")


def _check_timers(machine: Machine) -> None:
    due = {
        (partition.id, vp.index, index): moment_ns(partition, timer.fires_at)
        for partition in machine.partitions.values()
        for vp in partition.vps.values()
        for index, timer in enumerate(vp.timers)
        if timer.fires_at is not None and partition.frozen_ns is None
    }
    _hold(len(machine.timers) == len(due), "no timer is due that is not there")
    for key, due_ns in due.items():
        set_ns = machine.timers.due_ns(key)
        _hold(set_ns is not None and set_ns >= due_ns, "a timer is looked at, and not before it is due")


def _check_intercepts(machine: Machine, partition: Partition) -> None:
    _hold(len(partition.intercepts.table) <= INTERCEPTS_PER_PARTITION_MAX, "intercepts")
    waiting = [entry for vp in partition.vps.values() for entry in vp.intercept.waiting]
    _hold(len(waiting) == len(set(waiting)), "one message for a suspended VP")
    for child_id, index in waiting:
        child = machine.partitions.get(child_id)
        _hold(child is not None and child.parent == partition.id, "a parent is told of its own children")
        vp = child.vps.get(index) if child is not None else None
        _hold(
            vp is not None and vp.intercept.access is not None, "a message of a VP that waits for its answer"
        )
    if partition.state is not PartitionState.ACTIVE or partition.process is Process.ENDED:
        suspended = [vp for vp in partition.vps.values() if vp.intercept.access is not None]
        _hold(not suspended, "the dead wait for nothing")


def _check_devices(machine: Machine, partition: Partition) -> None:
    for number, domain in partition.device_domains.items():
        for slot in domain.slots:
            _hold(machine.slots[slot].owner == partition.id, "a domain lists its owner's slots")
        for device in domain.devices:
            _hold(machine.partitions[device].device_domain == (partition.id, number), "a device is attached")
    if partition.device_domain is None:
        return
    owner = machine.partitions.get(partition.device_domain[0])
    found = owner.device_domains.get(partition.device_domain[1]) if owner is not None else None
    if found is not None:
        _hold(found.devices.count(partition.id) == 1, "a domain knows its devices")
    for entry in partition.gpa.entries.values():
        if not entry.own:
            allowed = found.slots.get(entry.slot, 0) if found is not None else 0
            _hold(not entry.access & ~int(allowed), "a device has nothing but what its domain lists")


def _check_statistics(machine: Machine, partition: Partition) -> None:
    for key in partition.stats_pages:
        if key.partition:
            about = machine.partitions.get(key.partition)
            _hold(about is not None, "a page is about somebody who is there")
            assert about is not None
            _hold(
                key.kind is not StatsObject.VP or key.index in about.vps, "a page is about a VP that is there"
            )
    _hold(machine.statistics_timer or not partition.stats_pages, "pages are kept current")


def _check_empty(partition: Partition) -> None:
    _hold(partition.pool == Pool(), "a dead one holds no pages")
    _hold(
        not partition.stats_pages and not partition.device_domains, "a dead one has mapped and lists nothing"
    )
    held = (partition.children, partition.vps, partition.ports, partition.connections, partition.gpa.entries)
    _hold(
        not any(held) and not partition.files and not partition.watched_children, "a dead one holds nothing"
    )
    _hold(partition.process in (Process.NONE, Process.ENDED), "a dead one runs nothing")
