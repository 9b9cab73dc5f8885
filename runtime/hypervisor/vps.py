"""Virtual processors and the registers that we keep of them: the SynIC's.

Source: TLFS, HvCallCreateVp, HvCallStartVirtualProcessor, HvCallSetVpRegisters; SynIC MSRs at reset.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from runtime.abi import (
    SINT_AUTO_EOI,
    SINT_MASKED,
    SINT_POLLING,
    SINTS_PER_VP,
    VP_ANY,
    VP_PAGES,
    VPS_PER_PARTITION_MAX,
    HvStatus,
    RegisterName,
)
from runtime.hypervisor import synic
from runtime.hypervisor.effects import CloseVp, Page, SpawnPartition
from runtime.hypervisor.programs import Process
from runtime.hypervisor.replies import DONE, Refused, Reply, VpHandle

if TYPE_CHECKING:
    from runtime.hypervisor.machine import Call, Machine
    from runtime.hypervisor.partitions import Partition

_ENABLE: Final = 1
_PAGE_REGISTER_BITS: Final = _ENABLE | ((2**64 - 1) & ~0xFFF)  # enable, GPFN from bit 12
_SINT_BITS: Final = 0xFF | SINT_MASKED | SINT_AUTO_EOI | SINT_POLLING
_VECTOR_MIN: Final = 16
_SYNIC_VERSION: Final = 1
_READ_ONLY: Final = frozenset(
    {
        RegisterName.EXPLICIT_SUSPEND,
        RegisterName.VP_INDEX,
        RegisterName.TIME_REF_COUNT,
        RegisterName.SVERSION,
    }
)


@dataclass(slots=True)
class VirtualProcessor:
    """A thread of a partition's process, with a SynIC of its own."""

    index: int
    sim_page: Page
    sief_page: Page
    running: bool = False
    scontrol: int = 0
    simp: int = 0
    siefp: int = 0
    sints: list[int] = field(default_factory=lambda: [SINT_MASKED] * SINTS_PER_VP)
    queues: list[deque[synic.Message]] = field(default_factory=lambda: [deque() for _ in range(SINTS_PER_VP)])

    @property
    def takes_messages(self) -> bool:
        return bool(self.scontrol & self.simp & _ENABLE)

    @property
    def takes_events(self) -> bool:
        return bool(self.scontrol & self.siefp & _ENABLE)


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
    processor = _find(target, vp)
    if vp == 0 and target.process in (Process.STARTING, Process.RUNNING):
        raise Refused(HvStatus.INVALID_VP_STATE)
    if any(port.vp == vp for port in target.ports.values()) or any(processor.queues):
        raise Refused(HvStatus.OBJECT_IN_USE)
    release_vp(machine, target, vp)
    return DONE


def release_vp(machine: Machine, target: Partition, index: int) -> None:
    del target.vps[index]
    target.pool.refund(VP_PAGES)
    machine.effects.append(CloseVp(target.id, index))


def start_virtual_processor(call: Call, *, vp: int) -> Reply:
    machine, target = call.machine, call.target
    processor = _find(target, vp)
    if vp == 0:
        if target.process is not Process.NONE:
            raise Refused(HvStatus.INVALID_VP_STATE)
        if target.program is None:
            raise Refused(HvStatus.OPERATION_DENIED)
        target.process = Process.STARTING
        machine.effects.append(SpawnPartition(target.id, machine.path(target), target.program.module))
    elif processor.running or target.process not in (Process.STARTING, Process.RUNNING):
        raise Refused(HvStatus.INVALID_VP_STATE)
    processor.running = True
    return DONE


def _find(target: Partition, index: int) -> VirtualProcessor:
    if index == VP_ANY or (vp := target.vps.get(index)) is None:
        raise Refused(HvStatus.INVALID_VP_INDEX)
    return vp


# -- registers ---------------------------------------------------------------------------------------------


def get_vp_registers(call: Call, *, vp: int, names: list[int]) -> Reply:
    processor = _find(call.target, vp)
    return Reply(values={"values": [_read(call, processor, name) for name in names]})


def set_vp_registers(call: Call, *, vp: int, registers: list[tuple[int, int]]) -> Reply:
    processor = _find(call.target, vp)
    for name, value in registers:
        _check_write(name, value)
    for name, value in registers:
        _write(call, processor, name, value)
    return DONE


def _read(call: Call, vp: VirtualProcessor, name: int) -> int:
    if 0 <= name - RegisterName.SINT0 < SINTS_PER_VP:
        return vp.sints[name - RegisterName.SINT0]
    match name:
        case RegisterName.EXPLICIT_SUSPEND:
            return int(not vp.running)
        case RegisterName.VP_INDEX:
            return vp.index
        case RegisterName.TIME_REF_COUNT:
            return max(call.machine.now_ns - call.target.created_ns, 0) // 100
        case RegisterName.SCONTROL:
            return vp.scontrol
        case RegisterName.SVERSION:
            return _SYNIC_VERSION
        case RegisterName.SIEFP:
            return vp.siefp
        case RegisterName.SIMP:
            return vp.simp
        case RegisterName.EOM:
            return 0
        case _:
            raise Refused(HvStatus.UNKNOWN_REGISTER_NAME)


def _check_write(name: int, value: int) -> None:
    if name in _READ_ONLY:
        raise Refused(HvStatus.ACCESS_DENIED)
    if 0 <= name - RegisterName.SINT0 < SINTS_PER_VP:
        allowed = _SINT_BITS
        if value & 0xFF < _VECTOR_MIN and not value & SINT_MASKED:
            raise Refused(HvStatus.INVALID_REGISTER_VALUE)
    elif name == RegisterName.SCONTROL:
        allowed = _ENABLE
    elif name in (RegisterName.SIEFP, RegisterName.SIMP):
        allowed = _PAGE_REGISTER_BITS
    elif name == RegisterName.EOM:
        return
    else:
        raise Refused(HvStatus.UNKNOWN_REGISTER_NAME)
    if value & ~allowed:
        raise Refused(HvStatus.INVALID_REGISTER_VALUE)


def _write(call: Call, vp: VirtualProcessor, name: int, value: int) -> None:
    if 0 <= name - RegisterName.SINT0 < SINTS_PER_VP:
        vp.sints[name - RegisterName.SINT0] = value
    elif name == RegisterName.SCONTROL:
        vp.scontrol = value
    elif name == RegisterName.SIEFP:
        vp.siefp = value
    elif name == RegisterName.SIMP:
        vp.simp = value
    else:
        synic.end_of_message(call.machine, call.target, vp)
