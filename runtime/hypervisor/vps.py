"""Virtual processors: the life of each. Their registers are `registers`' business.

Source: TLFS, HvCallCreateVp, HvCallStartVirtualProcessor; SynIC MSRs at reset.
"""

from __future__ import annotations

from runtime.abi import TIMERS_PER_VP, VP_ANY, VP_PAGES, VPS_PER_PARTITION_MAX, HvStatus
from runtime.hypervisor import reference_time
from runtime.hypervisor.effects import CloseVp, LoadDriver, SetReferencePage, SpawnPartition
from runtime.hypervisor.machine import Call, Machine
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.program import Process
from runtime.hypervisor.replies import DONE, Refused, Reply, VpHandle
from runtime.hypervisor.statistics import release_pages_about
from runtime.hypervisor.virtual_processor import VirtualProcessor


def create_vp(call: Call, *, vp: int) -> Reply:
    machine, target = call.machine, call.target
    if vp >= VPS_PER_PARTITION_MAX:
        raise Refused(HvStatus.INVALID_VP_INDEX)
    if vp in target.vps:
        raise Refused(HvStatus.OBJECT_IN_USE)
    target.pool.require(VP_PAGES)
    add_vp(machine, target, vp)
    return Reply(handles=(VpHandle(target.id, vp),) if target is call.caller else ())


def add_vp(machine: Machine, target: Partition, index: int) -> VirtualProcessor:
    """May raise OSError, and has then changed nothing."""
    sim_page, sief_page = machine.resources.create_vp(target.id, index)
    target.pool.charge(VP_PAGES)
    target.vps[index] = vp = VirtualProcessor(index, sim_page, sief_page)
    return vp


def delete_vp(call: Call, *, vp: int) -> Reply:
    machine, target = call.machine, call.target
    processor = find_vp(target, vp)
    if vp == 0 and target.process in (Process.STARTING, Process.RUNNING):
        raise Refused(HvStatus.INVALID_VP_STATE)
    if any(port.vp == vp for port in target.ports.values()) or any(
        message.timer is None for queue in processor.queues for message in queue
    ):
        raise Refused(HvStatus.OBJECT_IN_USE)
    if processor.intercept.access is not None:
        raise Refused(HvStatus.INVALID_VP_STATE)
    if processor.intercept.waiting:
        raise Refused(HvStatus.OBJECT_IN_USE)
    release_vp(machine, target, vp)
    return DONE


def release_vp(machine: Machine, target: Partition, index: int) -> None:
    stop_timers(machine, target, target.vps[index])
    release_pages_about(machine, target.id, index)
    del target.vps[index]
    target.pool.refund(VP_PAGES)
    machine.effects.append(CloseVp(target.id, index))


def start_virtual_processor(call: Call, *, vp: int) -> Reply:
    machine, target = call.machine, call.target
    processor = find_vp(target, vp)
    if vp == 0:
        if not target.may_start:
            raise Refused(HvStatus.INVALID_VP_STATE)
        if target.program is None:
            raise Refused(HvStatus.OPERATION_DENIED)
        target.process, target.exit_status, target.is_loaded = Process.STARTING, None, False
        machine.effects.append(SpawnPartition(target.id, machine.path(target), target.program.module))
    elif processor.running or target.process not in (Process.STARTING, Process.RUNNING):
        raise Refused(HvStatus.INVALID_VP_STATE)
    processor.running = True
    return DONE


def load_driver(call: Call) -> Reply:
    """VP 0 of a driver partition, as threads of the hypervisor's own process: nothing stands between it and us."""
    machine, target = call.machine, call.target
    processor = find_vp(target, 0)
    if not machine.loads_drivers:
        raise Refused(HvStatus.OPERATION_DENIED)
    if not target.may_start:
        raise Refused(HvStatus.INVALID_VP_STATE)
    if target.program is None or not target.outlives_process:
        raise Refused(HvStatus.OPERATION_DENIED)
    target.process, target.exit_status, target.is_loaded = Process.STARTING, None, True
    machine.effects.append(LoadDriver(target.id, machine.path(target), target.program.module))
    processor.running = True
    return DONE


def find_vp(target: Partition, index: int) -> VirtualProcessor:
    if index == VP_ANY or (vp := target.vps.get(index)) is None:
        raise Refused(HvStatus.INVALID_VP_INDEX)
    return vp


def process_ended(machine: Machine, target: Partition) -> None:
    """Its VPs run no more: nobody waits for their timers."""
    target.guest.crash_reports = 0
    for vp in target.vps.values():
        stop_timers(machine, target, vp)
        vp.thread = 0


def stop_timers(machine: Machine, target: Partition, vp: VirtualProcessor) -> None:
    for index, timer in enumerate(vp.timers):
        timer.stop()
        arm_timer(machine, target, vp, index)


def arm_timer(machine: Machine, owner: Partition, vp: VirtualProcessor, index: int) -> None:
    """After any change of a timer: when is it due now?"""
    fires_at = vp.timers[index].fires_at
    due_ns = None
    if fires_at is not None and owner.frozen_ns is None:
        due_ns = reference_time.moment_ns(owner, fires_at)
    machine.timers.set((owner.id, vp.index, index), due_ns)


def clock_changed(machine: Machine, owner: Partition) -> None:
    """Its reference time was stopped, set or let go: timers and the page of its clock follow."""
    for vp in owner.vps.values():
        for index in range(TIMERS_PER_VP):
            arm_timer(machine, owner, vp, index)
    if owner.has_reference_page:
        created_ns = None if owner.frozen_ns is not None else owner.created_ns
        machine.effects.append(SetReferencePage(owner.id, created_ns, owner.drift))
