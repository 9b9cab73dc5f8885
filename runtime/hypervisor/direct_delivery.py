"""Messages and events that a parent puts straight into a VP of its child, without port or connection.

There is no queue behind them: a slot that is taken refuses the message, and the parent tries again.

Source: Linux include/hyperv/hvgdk_mini.h, HVCALL_SIGNAL_EVENT_DIRECT and HVCALL_POST_MESSAGE_DIRECT.
"""

from __future__ import annotations

from typing import Final

from runtime.abi import FLAGS_PER_SINT, SINT_MASKED, SINTS_PER_VP, HvStatus
from runtime.hypervisor.interrupts import is_loud, raise_sint
from runtime.hypervisor.machine import Call
from runtime.hypervisor.replies import DONE, Refused, Reply
from runtime.hypervisor.virtual_processor import VirtualProcessor

_MESSAGE_SLOT_BYTES: Final = 256  # of the SIM page; its first four bytes are the type, 0 for an empty one


def signal_event_direct(call: Call, *, vp: int, sint: int, flag: int) -> Reply:
    processor = _processor(call, vp, sint)
    if flag >= FLAGS_PER_SINT:
        raise Refused(HvStatus.INVALID_PARAMETER)
    if not processor.takes_events or processor.sints[sint] & SINT_MASKED:
        raise Refused(HvStatus.INVALID_SYNIC_STATE)
    newly = call.machine.synic.flag_set(processor.sief_page, sint * FLAGS_PER_SINT + flag)
    if newly and is_loud(processor, sint):
        raise_sint(call.machine, call.target, processor, sint)
    return Reply(values={"newly_signaled": int(newly)})


def post_message_direct(call: Call, *, vp: int, sint: int, type: int, payload: bytes) -> Reply:
    machine = call.machine
    processor = _processor(call, vp, sint)
    if type == 0:
        raise Refused(HvStatus.INVALID_PARAMETER)
    if not processor.takes_messages:
        raise Refused(HvStatus.INVALID_SYNIC_STATE)
    if processor.queues[sint]:  # what waits was there first
        raise Refused(HvStatus.INSUFFICIENT_BUFFERS)
    at = sint * _MESSAGE_SLOT_BYTES
    # Asked before the post, which would mark a full slot: the guest owes an end-of-message to nobody here.
    if any(processor.sim_page[at : at + 4]):
        raise Refused(HvStatus.INSUFFICIENT_BUFFERS)
    if not machine.synic.synic_post(processor.sim_page, sint, type, 0, payload):
        raise Refused(HvStatus.INSUFFICIENT_BUFFERS)
    if is_loud(processor, sint):
        raise_sint(machine, call.target, processor, sint)
    return DONE


def _processor(call: Call, vp: int, sint: int) -> VirtualProcessor:
    if (processor := call.target.vps.get(vp)) is None:
        raise Refused(HvStatus.INVALID_VP_INDEX)
    if not 1 <= sint < SINTS_PER_VP:  # SINT 0 is the hypervisor's
        raise Refused(HvStatus.INVALID_PARAMETER)
    return processor
