"""Partitions: the tree, the life of each, and what is left when one dies.

    Uninitialized --Initialize--> Active --Finalize, or its process ends--> Finalizing --> Finalized

Finalizing takes the whole subtree: ports and connections at once, memory when the process that used it has
been reaped. Then all its pages go back to its parent's pool, and a record with the exit status is left for
the parent to read and delete.

Source: TLFS 2.0, "Partition Management"; HvCallCreatePartition and its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from runtime.abi import (
    ADDRESS_BITS_MAX,
    CREATE_PARTITION_PAGES,
    DEFAULT_PRIVILEGES,
    EXIT_RETIRED,
    INITIALIZE_PARTITION_PAGES,
    PARTITION_DEPTH_MAX,
    PARTITIONS_MAX,
    ROOT_PARTITION,
    ExitStatus,
    HvStatus,
    PartitionProperty,
    PartitionState,
    Privilege,
)
from runtime.hypervisor import heartbeat, intercept_delivery, intercepts
from runtime.hypervisor.device_domains import DeviceDomain, detach, release_domains
from runtime.hypervisor.effects import (
    Announce,
    CloseReferencePage,
    CloseWatch,
    DropFiles,
    KillPartition,
    RaiseWatch,
    SuspendPartition,
)
from runtime.hypervisor.gpa import release_space
from runtime.hypervisor.gpa_space import GpaSpace
from runtime.hypervisor.intercept_state import Intercepts
from runtime.hypervisor.pools import Pool
from runtime.hypervisor.ports import Connection, Port, release_connection, release_port
from runtime.hypervisor.programs import Process, Program
from runtime.hypervisor.reference_time import Drift
from runtime.hypervisor.replies import DONE, FilesHandle, Refused, Reply, VpHandle, WatchHandle
from runtime.hypervisor.statistics import StatsKey, StatsPage, release_pages_about, release_pages_of
from runtime.hypervisor.synthetic_timers import TIMER_BURST, TIMER_GRID_NS, TIMER_SPACING_NS, Pace
from runtime.hypervisor.vps import GuestRegisters, VirtualProcessor, process_ended, release_vp

if TYPE_CHECKING:
    from runtime.hypervisor.machine import Call, Machine


_ALIVE: Final = (Process.STARTING, Process.RUNNING)


@dataclass(slots=True)
class Partition:
    id: int
    parent: int | None  # None: the root
    depth: int
    created_ns: int
    state: PartitionState = PartitionState.UNINITIALIZED
    privileges: Privilege = DEFAULT_PRIVILEGES
    properties: dict[PartitionProperty, int] = field(default_factory=dict)  # those with another value
    pool: Pool = field(default_factory=Pool)
    children: list[int] = field(default_factory=list)  # ascending
    orphaned: bool = False  # its parent is going: nobody will delete it, so it goes by itself
    program: Program | None = None
    files: int = 0  # descriptors kept for its birth
    process: Process = Process.NONE
    is_loaded: bool = False  # what stands for its process is a thread of ours: nobody ends it alone
    pid: int | None = None
    exit_status: ExitStatus | None = None
    failure: str | None = None  # why we had to kill it
    heartbeat_within_ms: int = 0
    heartbeat_due_ns: int | None = None  # None: nothing was promised
    heartbeat_timer_ns: int | None = None  # when its one timer comes; None: there is none
    held_since_ns: int | None = None  # the scheduler has stopped it until it is its turn
    watched_children: bool = False  # has claimed the eventfd of WATCH_CHILDREN
    gpa: GpaSpace = field(default_factory=GpaSpace)
    vps: dict[int, VirtualProcessor] = field(default_factory=dict)
    guest: GuestRegisters = field(default_factory=GuestRegisters)
    has_reference_page: bool = False
    timer_pace: Pace = field(default_factory=lambda: Pace(TIMER_SPACING_NS, TIMER_BURST, TIMER_GRID_NS))
    intercepts: Intercepts = field(default_factory=Intercepts)
    ports: dict[int, Port] = field(default_factory=dict)
    connections: dict[int, Connection] = field(default_factory=dict)
    suspended: bool = False  # its process is stopped until the parent, or the operator, lets it go on
    pause_froze: bool = False  # it is paused, and its time stands still because of that
    frozen_ns: int | None = None  # since when its reference time stands still
    drift: Drift | None = None  # a fault on purpose: its reference time runs wrong
    address_bits: int = ADDRESS_BITS_MAX
    device_domains: dict[int, DeviceDomain] = field(default_factory=dict)
    device_domain: tuple[int, int] | None = None  # (owner, domain) that it is attached to as a device
    stats_pages: dict[StatsKey, StatsPage] = field(default_factory=dict)  # that it has mapped

    @property
    def name(self) -> str:
        return self.program.name if self.program is not None else f"partition-{self.id}"

    @property
    def outlives_process(self) -> bool:
        """Its memory, ports and connections stay where they are for the next process, as the root's do."""
        return bool(self.properties.get(PartitionProperty.OUTLIVES_PROCESS))

    @property
    def may_start(self) -> bool:
        """Whether VP 0 can be given a process."""
        return self.process is Process.NONE or (self.process is Process.ENDED and self.outlives_process)


def create_partition(call: Call, *, flags: int) -> Reply:
    machine, caller = call.machine, call.caller
    if flags:
        raise Refused(HvStatus.INVALID_PARAMETER)  # each asks for a feature of real processors
    if caller.depth >= PARTITION_DEPTH_MAX:
        raise Refused(HvStatus.PARTITION_TOO_DEEP)
    if len(machine.partitions) >= PARTITIONS_MAX:
        raise Refused(HvStatus.NO_RESOURCES)
    caller.pool.require(CREATE_PARTITION_PAGES)
    caller.pool.charge(CREATE_PARTITION_PAGES)
    child = Partition(machine.next_partition, caller.id, caller.depth + 1, machine.now_ns)
    machine.next_partition += 1
    machine.partitions[child.id] = child
    caller.children.append(child.id)
    machine.effects.append(Announce("partition.created", {"id": child.id, "parent": caller.id}))
    return Reply(values={"partition": child.id})


def initialize_partition(call: Call) -> Reply:
    call.target.pool.require(INITIALIZE_PARTITION_PAGES)
    call.target.pool.charge(INITIALIZE_PARTITION_PAGES)
    call.target.state = PartitionState.ACTIVE
    _tell_parent(call.machine, call.target)
    return DONE


def finalize_partition(call: Call) -> Reply:
    _begin_finalizing(call.machine, call.target)
    _settle(call.machine, call.target)
    return Reply(values={"state": int(call.target.state)})


def delete_partition(call: Call) -> Reply:
    target = call.target
    if target.state is PartitionState.UNINITIALIZED and target.pool.available:
        raise Refused(HvStatus.OPERATION_DENIED)  # withdraw first
    _remove(call.machine, target)
    return DONE


def get_partition_id(call: Call) -> Reply:
    return Reply(values={"partition": call.caller.id})


def get_next_child_partition(call: Call, *, previous: int) -> Reply:
    following = (child for child in call.target.children if child > previous)
    return Reply(values={"partition": next(following, 0)})


def watch_children(call: Call) -> Reply:
    caller = call.caller
    if not caller.watched_children:
        call.machine.resources.create_watch(caller.id)
        caller.watched_children = True
    return Reply(handles=(WatchHandle(caller.id),))


def get_birth(call: Call) -> Reply:
    caller = call.caller
    vps = sorted(caller.vps)
    handles: tuple[VpHandle | FilesHandle, ...] = tuple(VpHandle(caller.id, vp) for vp in vps)
    files = caller.files
    caller.files = 0
    values: dict[str, object] = {
        "partition": caller.id,
        "name": caller.name,
        "program": caller.program.module if caller.program is not None else "",
        "args": caller.program.args if caller.program is not None else {},
        "vps": vps,
        "files": files,
    }
    return Reply(values=values, handles=(*handles, FilesHandle(caller.id)) if files else handles)


# -- what the loop reports ---------------------------------------------------------------------------------


def process_started(machine: Machine, partition: Partition, pid: int) -> None:
    assert partition.process is Process.STARTING
    partition.process, partition.pid = Process.RUNNING, pid
    machine.scheduling_version += 1
    partition.exit_status = partition.failure = None
    fields = {"id": partition.id, "name": machine.path(partition), "pid": pid, "at_ns": machine.now_ns}
    if partition.id == ROOT_PARTITION:
        machine.root_leaves = False
        fields["generation"] = machine.root_generation
    if partition.id == ROOT_PARTITION or partition.outlives_process:
        heartbeat.promise(machine, partition, heartbeat.TAKE_OVER_MS_MAX)
    machine.effects.append(Announce("partition.started", fields))
    if partition.suspended:
        machine.effects.append(SuspendPartition(partition.id, True))
    _tell_parent(machine, partition)


def process_exited(machine: Machine, partition: Partition, status: ExitStatus | None, reason: str) -> None:
    """Its process is reaped, or never came to be. status None: another process is its parent (the root)."""
    assert partition.process in _ALIVE
    partition.process, partition.pid, partition.exit_status = Process.ENDED, None, status
    partition.held_since_ns = None
    machine.scheduling_version += 1
    heartbeat.forget(partition)
    process_ended(machine, partition)
    intercept_delivery.forget(machine, partition)
    reason = partition.failure or reason
    fields: dict[str, object] = {
        "id": partition.id,
        "name": machine.path(partition),
        "reason": reason,
        "at_ns": machine.now_ns,
    }
    if status is not None:
        fields |= {"code": status.code, "signal": status.signal}
    machine.effects.append(Announce("partition.exited", fields))
    if partition.id == ROOT_PARTITION:
        # Of the first root, the platform's child, we never see the exit code: its last word must do.
        planned = machine.root_leaves if status is None else status.code == EXIT_RETIRED
        machine.root_failed(reason, planned=planned)
        if partition.process is Process.STARTING:
            intercept_delivery.deliver_again(machine, partition)
        return
    if partition.outlives_process and partition.state is PartitionState.ACTIVE:
        _drop_files(machine, partition)  # this process did not ask for them; the next one gets its own
        intercept_delivery.deliver_again(machine, partition)
        _tell_parent(machine, partition)
        return
    _begin_finalizing(machine, partition)
    _settle(machine, partition)


# -- the way down ------------------------------------------------------------------------------------------


def finalize_children(machine: Machine, partition: Partition) -> None:
    """Nobody will delete them: each goes by itself once its process is reaped."""
    for child in [machine.partitions[child] for child in partition.children]:
        child.orphaned = True
        _begin_finalizing(machine, child)
        _settle(machine, child)


def _begin_finalizing(machine: Machine, partition: Partition) -> None:
    """Cut it and all below off from everyone else, and have their processes killed."""
    finalize_children(machine, partition)
    if partition.state in (PartitionState.FINALIZING, PartitionState.FINALIZED):
        return
    partition.state = PartitionState.FINALIZING
    for connection in list(partition.connections):
        release_connection(machine, partition, connection)
    for port in list(partition.ports):
        release_port(machine, partition, port)
    process_ended(machine, partition)
    intercept_delivery.forget(machine, partition)
    if partition.process in _ALIVE:
        machine.effects.append(KillPartition(partition.id))
    _tell_parent(machine, partition)


def _settle(machine: Machine, partition: Partition) -> None:
    """Complete what waits for processes to be reaped, from here upwards."""
    if partition.state is PartitionState.FINALIZING:
        if partition.process in _ALIVE or partition.children:
            return
        _release(machine, partition)
        partition.state = PartitionState.FINALIZED
        _tell_parent(machine, partition)
    if partition.state is PartitionState.FINALIZED and partition.orphaned:
        assert partition.parent is not None
        parent = machine.partitions[partition.parent]
        _remove(machine, partition)
        _settle(machine, parent)


def _release(machine: Machine, partition: Partition) -> None:
    """Nothing runs any more: everything it had becomes pages of its parent."""
    release_objects(machine, partition)
    for vp in list(partition.vps):
        release_vp(machine, partition, vp)
    assert partition.parent is not None
    if partition.pool.in_use:  # 0: it was never initialized
        partition.pool.refund(INITIALIZE_PARTITION_PAGES)
    assert partition.pool.in_use == 0
    partition.pool.give(machine.partitions[partition.parent].pool, partition.pool.available)


def release_objects(machine: Machine, partition: Partition) -> None:
    """All but its VPs, ports and connections."""
    detach(machine, partition)
    release_domains(partition)
    release_space(machine, partition)
    release_pages_of(machine, partition)
    intercepts.release(partition)
    _drop_files(machine, partition)
    if partition.has_reference_page:
        machine.effects.append(CloseReferencePage(partition.id))
        partition.has_reference_page = False
    if partition.watched_children:
        machine.effects.append(CloseWatch(partition.id))
        partition.watched_children = False


def _remove(machine: Machine, partition: Partition) -> None:
    assert partition.parent is not None
    assert partition.pool == Pool()
    assert not partition.children
    fields = {"id": partition.id, "name": machine.path(partition)}
    _drop_files(machine, partition)
    detach(machine, partition)
    release_pages_about(machine, partition.id)
    machine.calls_of.pop(partition.id, None)
    parent = machine.partitions[partition.parent]
    parent.children.remove(partition.id)
    parent.pool.refund(CREATE_PARTITION_PAGES)
    del machine.partitions[partition.id]
    machine.effects.append(Announce("partition.deleted", fields))


def _drop_files(machine: Machine, partition: Partition) -> None:
    if partition.files:
        machine.effects.append(DropFiles(partition.id))
        partition.files = 0


def _tell_parent(machine: Machine, partition: Partition) -> None:
    if partition.parent is not None and machine.partitions[partition.parent].watched_children:
        machine.effects.append(RaiseWatch(partition.parent))
