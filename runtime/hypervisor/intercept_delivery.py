"""How a parent learns of its child's access: a message into a slot of its SIM page; and what becomes of it when one of
them dies.

There is at most one message for a suspended VP, so what waits for a slot is paid by the pages of those VPs.
"""

from __future__ import annotations

import struct
from typing import Final

from bus.intercept_messages import (
    INTERCEPT_SINT,
    InterceptAccess,
    InterceptHeader,
    MemoryIntercept,
    PortIntercept,
)
from bus.synic import MessageType
from runtime.abi import InterceptType
from runtime.hypervisor import interrupts
from runtime.hypervisor.intercept_state import RAX, RCX, RDI, RFLAGS, RIP, RSI
from runtime.hypervisor.machine import Machine
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.virtual_processor import VirtualProcessor

_MESSAGE_TYPE: Final = struct.Struct("<I")  # first in a slot of a SIM page
_OF_INTERCEPTS: Final = frozenset(
    (MessageType.UNMAPPED_GPA, MessageType.GPA_INTERCEPT, MessageType.X64_IO_PORT_INTERCEPT)
)


def tell(machine: Machine, child: Partition, vp: VirtualProcessor) -> None:
    """The VP is suspended at its access, and waits for its parent to answer."""
    assert child.parent is not None
    parent = machine.partitions[child.parent]
    if (teller := teller_of(parent, child)) is not None:
        teller.intercept.waiting.append((child.id, vp.index))
        deliver(machine, parent, teller)


def teller_of(parent: Partition, child: Partition) -> VirtualProcessor | None:
    """The parent's VP that gets this child's messages."""
    return parent.vps.get(child.intercepts.vp) or parent.vps.get(0)


def deliver(machine: Machine, parent: Partition, vp: VirtualProcessor) -> None:
    """Put the next waiting message into the VP's SIM page if its slot is free; otherwise the slot's pending flag
    gets us called again, at its end-of-message."""
    waiting, delivered = vp.intercept.waiting, False
    while waiting and vp.takes_messages:
        child_id, index = waiting[0]
        child = machine.partitions[child_id]
        kind, payload = _message(child, child.vps[index])
        if not machine.synic.synic_post(vp.sim_page, INTERCEPT_SINT, kind, child_id, payload):
            break
        waiting.popleft()
        delivered = True
    if delivered and interrupts.is_loud(vp, INTERCEPT_SINT):
        interrupts.raise_sint(machine, parent, vp, INTERCEPT_SINT)


def _message(child: Partition, vp: VirtualProcessor) -> tuple[MessageType, bytes]:
    access, registers = vp.intercept.access, vp.intercept.registers
    assert access is not None
    header = InterceptHeader(
        vp.index,
        len(access.instruction),
        InterceptAccess.WRITE if access.write else InterceptAccess.READ,
        registers[RIP],
        registers[RFLAGS],
    )
    if access.type is InterceptType.MMIO:
        kind = MessageType.GPA_INTERCEPT if child.intercepts.catch(access) else MessageType.UNMAPPED_GPA
        return kind, MemoryIntercept(header, access.address, access.address, access.instruction).encode()
    message = PortIntercept(
        header,
        access.address,
        access.size,
        access.is_string,
        access.is_string,
        access.instruction,
        registers[RAX],
        registers[RCX],
        registers[RSI],
        registers[RDI],
    )
    return MessageType.X64_IO_PORT_INTERCEPT, message.encode()


def forget(machine: Machine, partition: Partition) -> None:
    """Its process has ended or will: nobody waits for the answers any more. A message that its parent has already
    taken leads to an answer that is refused."""
    for vp in partition.vps.values():
        if vp.intercept.access is not None:
            take_back(machine, partition, vp)
            vp.intercept.access = None


def take_back(machine: Machine, partition: Partition, vp: VirtualProcessor) -> None:
    """The message that still waits for its parent's slot, if it does."""
    if partition.parent is None:
        return
    for teller in machine.partitions[partition.parent].vps.values():
        if (partition.id, vp.index) in teller.intercept.waiting:
            teller.intercept.waiting.remove((partition.id, vp.index))


def deliver_again(machine: Machine, parent: Partition) -> None:
    """A parent's process has ended and another one will go on: it learns of every access that was not answered.

    No process of the parent runs, so what stands in its slots is ours to take back.
    """
    for vp in parent.vps.values():
        (kind,) = _MESSAGE_TYPE.unpack_from(vp.sim_page, 0)  # of SINT 0, which comes first
        if kind in _OF_INTERCEPTS:
            _MESSAGE_TYPE.pack_into(vp.sim_page, 0, 0)
        vp.intercept.waiting.clear()
    for child in (machine.partitions[child] for child in parent.children):
        teller = teller_of(parent, child)
        for vp in child.vps.values():
            if teller is not None and vp.intercept.access is not None:
                teller.intercept.waiting.append((child.id, vp.index))
    for vp in parent.vps.values():
        deliver(machine, parent, vp)
