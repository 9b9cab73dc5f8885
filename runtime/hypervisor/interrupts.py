"""Vectors: what a VP's interrupt line was raised for.

A processor has a register of 256 requested vectors; a process gets a page of 256 bits, if it asks for it. A bit is
set before the line is raised, and the VP clears it before it acts. There is no in-service register: every
interrupt ends itself (auto-EOI), and what is requested twice before the VP looks is one interrupt.

Source: TLFS, HvCallAssertVirtualInterrupt; SINTx and STIMERx registers.
"""

from __future__ import annotations

from typing import Final

from runtime.abi import SINT_MASKED, SINT_POLLING, VECTOR_MIN, VECTORS, HvStatus, OverlayPage, Privilege
from runtime.hypervisor.effects import RaiseLine, SetReferencePage
from runtime.hypervisor.machine import Call, Machine
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.replies import DONE, InterruptPageHandle, ReferencePageHandle, Refused, Reply
from runtime.hypervisor.virtual_processor import VirtualProcessor

_FIXED: Final = 0  # interrupt type; the others need a real local APIC
QUIET: Final = SINT_MASKED | SINT_POLLING


def is_loud(vp: VirtualProcessor, sint: int) -> bool:
    """Whether a SINT interrupts at all."""
    return not vp.sints[sint] & QUIET


def raise_sint(machine: Machine, owner: Partition, vp: VirtualProcessor, sint: int) -> None:
    """The interrupt of a SINT that is loud. The line is raised each time: who does not use vectors looks at slots
    and flags."""
    _request(machine, vp, vp.sints[sint] & 0xFF)
    machine.effects.append(RaiseLine(owner.id, vp.index))


def request_vector(machine: Machine, owner: Partition, vp: VirtualProcessor, vector: int) -> None:
    """A vector by itself. Once the VP looks at its page, a vector that it has not seen yet merges with this one."""
    if _request(machine, vp, vector) or vp.interrupt_page is None:
        machine.effects.append(RaiseLine(owner.id, vp.index))


def _request(machine: Machine, vp: VirtualProcessor, vector: int) -> bool:
    """True: it was not requested yet."""
    if vp.interrupt_page is not None:
        return machine.synic.flag_set(vp.interrupt_page, vector)
    is_new = not vp.requested >> vector & 1
    vp.requested |= 1 << vector
    return is_new


def assert_virtual_interrupt(call: Call, *, vp: int, vector: int, type: int) -> Reply:
    processor = call.target.vps.get(vp)
    if processor is None:
        raise Refused(HvStatus.INVALID_VP_INDEX)
    if type != _FIXED or not VECTOR_MIN <= vector < VECTORS:
        raise Refused(HvStatus.INVALID_PARAMETER)
    call.machine.served_for = call.target.id
    request_vector(call.machine, call.target, processor, vector)
    return DONE


def claim_overlay_page(call: Call, *, page: int, vp: int) -> Reply:
    """Of the caller itself."""
    machine, caller = call.machine, call.caller
    if page == OverlayPage.REFERENCE_TSC:
        if not caller.privileges & Privilege.ACCESS_REFERENCE_TSC:
            raise Refused(HvStatus.ACCESS_DENIED)
        if vp:
            raise Refused(HvStatus.INVALID_PARAMETER)
        if not caller.has_reference_page:
            created_ns = None if caller.frozen_ns is not None else caller.created_ns
            machine.resources.create_reference_page(caller.id, created_ns)
            caller.has_reference_page = True
            if caller.drift is not None:
                machine.effects.append(SetReferencePage(caller.id, created_ns, caller.drift))
        return Reply(handles=(ReferencePageHandle(caller.id),))
    if page != OverlayPage.INTERRUPTS:
        raise Refused(HvStatus.INVALID_PARAMETER)
    processor = caller.vps.get(vp)
    if processor is None:
        raise Refused(HvStatus.INVALID_VP_INDEX)
    if processor.interrupt_page is None:
        processor.interrupt_page = machine.resources.create_interrupt_page(caller.id, vp)
        requested, processor.requested = processor.requested, 0
        for vector in range(VECTORS):
            if requested >> vector & 1:
                request_vector(machine, caller, processor, vector)
    return Reply(handles=(InterruptPageHandle(caller.id, vp),))
