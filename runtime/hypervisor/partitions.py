"""Partitions: the tree, the life of each, and what is left when one dies.

    Uninitialized --Initialize--> Active --Finalize, or its process ends--> Finalizing --> Finalized

Finalizing takes the whole subtree: ports and connections at once, memory when the process that used it has
been reaped. Then all its pages go back to its parent's pool, and a record with the exit status is left for
the parent to read and delete.

Source: TLFS 2.0, "Partition Management"; HvCallCreatePartition and its neighbours.
"""

from __future__ import annotations

from typing import Final

from runtime.abi import (
    CREATE_PARTITION_PAGES,
    EXIT_RETIRED,
    INITIALIZE_PARTITION_PAGES,
    PARTITION_DEPTH_MAX,
    PARTITIONS_MAX,
    ROOT_PARTITION,
    ExitStatus,
    HvStatus,
    PartitionState,
)
from runtime.hypervisor import heartbeat, intercept_delivery, intercepts
from runtime.hypervisor.device_domains import detach, release_domains
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
from runtime.hypervisor.machine import Call, Machine
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.pool import Pool
from runtime.hypervisor.ports import release_connection, release_port
from runtime.hypervisor.program import Process
from runtime.hypervisor.replies import DONE, FilesHandle, Refused, Reply, VpHandle, WatchHandle
from runtime.hypervisor.statistics import release_pages_about, release_pages_of
from runtime.hypervisor.vps import process_ended, release_vp

_ALIVE: Final = (Process.STARTING, Process.RUNNING)


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
