"""Intercepts: a port or memory access that a partition cannot make by itself, shown to its parent.

A process has no trap, so it says by a call what it wants to do; the call is not answered yet. Its VP is then
suspended, and its parent gets the message that the TLFS lays down for the instruction. The parent sets the VP's
registers and clears InterceptSuspend. If RIP is past the instruction, that is over, and the call gets its reply. If RIP
is where it was, the instruction is executed again, with RCX and the addresses as they are now: so a repeated string
access is answered in pieces.

Source: TLFS, HvCallInstallIntercept; "Intercepts", suspending and resuming a virtual processor.
"""

from __future__ import annotations

from typing import Final

from bus.intercept_messages import memory_instruction, port_instruction
from runtime.abi import (
    GPFN_MAX,
    INTERCEPT_PAGES,
    INTERCEPTS_PER_PARTITION_MAX,
    PAGE_BYTES,
    HvStatus,
    InterceptMask,
    InterceptType,
)
from runtime.hypervisor.effects import CompleteCall
from runtime.hypervisor.intercept_delivery import take_back, tell
from runtime.hypervisor.intercept_state import RAX, RCX, RDI, RDX, RIP, RSI, Access, Installed
from runtime.hypervisor.machine import Call, Machine
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.replies import DONE, Refused, Reply
from runtime.hypervisor.virtual_processor import VirtualProcessor

PENDING: Final = Reply(HvStatus.CALL_PENDING)  # to be answered later, by CompleteCall
_PORTS: Final = 0x1_0000
_PORT_SIZES: Final = (1, 2, 4)
_MEMORY_SIZES: Final = (1, 2, 4, 8)
_MASK: Final = InterceptMask.READ | InterceptMask.WRITE


# -- installing --------------------------------------------------------------------------------------------


def install_intercept(call: Call, *, access: int, type: int, parameter: int, vp: int) -> Reply:
    target, intercepts = call.target, call.target.intercepts
    if access & ~int(_MASK):
        raise Refused(HvStatus.INVALID_PARAMETER)
    if vp not in call.caller.vps:
        raise Refused(HvStatus.INVALID_VP_INDEX)
    kind, first, last = _range_of(type, parameter)
    others = [
        entry for entry in intercepts.table if (entry.type, entry.first, entry.last) != (kind, first, last)
    ]
    if not access:
        if len(others) == len(intercepts.table):
            raise Refused(HvStatus.NOT_FOUND)
        intercepts.table = others
        if not others:
            target.pool.refund(INTERCEPT_PAGES)
        return DONE
    if len(others) >= INTERCEPTS_PER_PARTITION_MAX:
        raise Refused(HvStatus.NO_RESOURCES)
    if not intercepts.table:
        target.pool.require(INTERCEPT_PAGES)
        target.pool.charge(INTERCEPT_PAGES)
    intercepts.table = [*others, Installed(kind, first, last, access)]
    intercepts.vp = vp
    return DONE


def _range_of(type_number: int, parameter: int) -> tuple[InterceptType, int, int]:
    match type_number:
        case InterceptType.IO_PORT:
            first = last = parameter
            end = _PORTS
        case InterceptType.IO_PORT_RANGE:
            first, last = parameter & 0xFFFF, parameter >> 16
            end = _PORTS
        case InterceptType.MMIO:
            first, more = parameter & GPFN_MAX, parameter >> 40
            last, end = first + more, GPFN_MAX + 1
        case _:
            raise Refused(HvStatus.INVALID_PARAMETER)  # of real processors
    if not first <= last < end:
        raise Refused(HvStatus.INVALID_PARAMETER)
    return InterceptType(type_number), first, last


# -- the child's access ------------------------------------------------------------------------------------


def access_port(
    call: Call, *, vp: int, port: int, size: int, write: int, value: int, count: int, gpa: int
) -> Reply:
    processor = _running(call.caller, vp)
    if size not in _PORT_SIZES or port + size > _PORTS or value >> 8 * size or (gpa and not count):
        raise Refused(HvStatus.INVALID_PARAMETER)
    registers, is_string = processor.intercept.registers, count > 0
    instruction = port_instruction(size=size, write=bool(write), string=is_string)
    access = Access(InterceptType.IO_PORT, bool(write), size, port, is_string, instruction, registers[RIP])
    registers[RDX] = port
    if is_string:
        registers[RCX], registers[RSI if write else RDI] = count, gpa
    elif write:
        registers[RAX] = value
    return _execute(call.machine, call.caller, processor, access)


def access_memory(call: Call, *, vp: int, gpa: int, size: int, write: int, value: int) -> Reply:
    caller, processor = call.caller, _running(call.caller, vp)
    if size not in _MEMORY_SIZES or gpa + size > (GPFN_MAX + 1) * PAGE_BYTES or value >> 8 * size:
        raise Refused(HvStatus.INVALID_PARAMETER)
    instruction = memory_instruction(size=size, write=bool(write))
    registers = processor.intercept.registers
    access = Access(InterceptType.MMIO, bool(write), size, gpa, False, instruction, registers[RIP])
    if not caller.intercepts.catch(access) and not _touches_a_hole(caller, access):
        raise Refused(HvStatus.INVALID_PARAMETER)  # it is the caller's own memory
    registers[RDI] = gpa
    if write:
        registers[RAX] = value
    return _execute(call.machine, caller, processor, access)


def _running(caller: Partition, index: int) -> VirtualProcessor:
    processor = caller.vps.get(index)
    if processor is None:
        raise Refused(HvStatus.INVALID_VP_INDEX)
    if not processor.running or processor.intercept.access is not None:
        raise Refused(HvStatus.INVALID_VP_STATE)
    return processor


def _touches_a_hole(partition: Partition, access: Access) -> bool:
    first, last = access.address // PAGE_BYTES, (access.address + access.size - 1) // PAGE_BYTES
    return any(not partition.gpa.touching(gpfn, 1) for gpfn in {first, last})


def _execute(machine: Machine, partition: Partition, processor: VirtualProcessor, access: Access) -> Reply:
    state = processor.intercept
    if partition.parent is None or not _is_intercepted(partition, processor, access):
        # Nobody is there: on a PC the bus reads as ones, and a write goes nowhere.
        state.access = None
        state.registers[RIP] = access.next_rip
        left = state.registers[RCX] if access.is_string else 0
        return Reply(values={"value": 0 if access.write else access.all_ones, "left": left})
    state.access = access
    tell(machine, partition, processor)
    return PENDING


def _is_intercepted(partition: Partition, processor: VirtualProcessor, access: Access) -> bool:
    if access.is_string and not processor.intercept.registers[RCX]:
        return False  # REP ends here
    if partition.intercepts.catch(access):
        return True
    return access.type is InterceptType.MMIO and _touches_a_hole(partition, access)


# -- the parent's answer -----------------------------------------------------------------------------------


def check_answer(call: Call, vp: VirtualProcessor, value: int) -> None:
    """Of a register that an intercept shows. Refused: for the VP's own partition, and while it is not suspended."""
    if call.target is call.caller:
        raise Refused(HvStatus.ACCESS_DENIED)
    if vp.intercept.access is None:
        raise Refused(HvStatus.INVALID_VP_STATE)


def resume(machine: Machine, partition: Partition, vp: VirtualProcessor) -> None:
    """InterceptSuspend is cleared, and goes on or not as RIP says. Nothing, if the same call did that already."""
    state = vp.intercept
    access, registers = state.access, state.registers
    if access is None:
        return
    machine.served_for = partition.id
    take_back(machine, partition, vp)
    state.access = None
    if registers[RIP] == access.rip:
        reply = _execute(machine, partition, vp, access)
    else:
        left = registers[RCX] if access.is_string else 0
        value = access.all_ones if access.is_string else registers[RAX] & access.all_ones
        reply = Reply(values={"value": 0 if access.write else value, "left": left})
    if reply is not PENDING:
        machine.effects.append(CompleteCall(partition.id, reply))


def register_intercept_result(call: Call, *, vp: int, type: int, value: int) -> Reply:
    processor = call.target.vps.get(vp)
    if processor is None:
        raise Refused(HvStatus.INVALID_VP_INDEX)
    access = processor.intercept.access
    if access is None:
        raise Refused(HvStatus.INVALID_VP_STATE)
    if type != access.type or access.is_string or value & ~access.all_ones:
        raise Refused(HvStatus.INVALID_PARAMETER)
    if not access.write:
        processor.intercept.registers[RAX] = value
    processor.intercept.registers[RIP] = access.next_rip
    resume(call.machine, call.target, processor)
    return DONE


def release(partition: Partition) -> None:
    """With everything else that it has."""
    if partition.intercepts.table:
        partition.pool.refund(INTERCEPT_PAGES)
        partition.intercepts.table = []
