"""The synthetic interrupt controller's hypervisor side: message queues of a VP, and event flags.

A message goes into its SINT's slot of the SIM page if that is empty; otherwise it waits in order, the slot
gets its pending flag, and the next is tried at the guest's end-of-message, at another post to that SINT, or when
the guest switches its SynIC on. A timer's messages wait in the same queues.

Source: TLFS "Inter-Partition Communication", sections SynIC message flags and message delivery.
"""

from __future__ import annotations

from bus.synic import HYPERVISOR_MESSAGE, TimerExpired
from runtime.abi import (
    FLAGS_PER_SINT,
    MESSAGE_BUFFERS_PER_PORT,
    SINT_MASKED,
    SINTS_PER_VP,
    VP_ANY,
    HvStatus,
    PortType,
)
from runtime.hypervisor import intercept_delivery, reference_time
from runtime.hypervisor.effects import RingDoorbell
from runtime.hypervisor.interrupts import is_loud, raise_sint
from runtime.hypervisor.machine import Call, Machine
from runtime.hypervisor.message import Message
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.port import Port
from runtime.hypervisor.replies import DONE, Refused, Reply
from runtime.hypervisor.virtual_processor import VirtualProcessor
from runtime.hypervisor.vps import arm_timer


def post_message(call: Call, *, connection: int, type: int, payload: bytes) -> Reply:
    machine = call.machine
    owner, port = connected_port(call, connection, PortType.MESSAGE)
    machine.works_for(call.caller, owner)
    if type == 0 or type & HYPERVISOR_MESSAGE:
        raise Refused(HvStatus.INVALID_PARAMETER)
    vp = vp_of(owner, port)
    if vp is None:
        raise Refused(HvStatus.INVALID_VP_INDEX)
    if not vp.takes_messages:
        raise Refused(HvStatus.INVALID_SYNIC_STATE)
    deliver(machine, owner, vp, port.sint)  # the guest may have emptied its slot since; this frees a buffer
    if port.buffers_used >= MESSAGE_BUFFERS_PER_PORT:
        raise Refused(HvStatus.INSUFFICIENT_BUFFERS)
    message = Message(port.id, type, payload)
    if machine.faults is not None and machine.faults.meets_message(owner, port, message):
        return DONE
    enqueue(machine, owner, vp, message)
    return DONE


def enqueue(machine: Machine, owner: Partition, vp: VirtualProcessor, message: Message) -> None:
    """A message of a port that has a buffer for it."""
    port = owner.ports[message.port]
    port.buffers_used += 1
    port.counts.sent += 1
    vp.queues[port.sint].append(message)
    deliver(machine, owner, vp, port.sint)


def signal_event(call: Call, *, connection: int, flag: int) -> Reply:
    owner, port = connected_port(call, connection, PortType.EVENT)
    if flag >= port.flag_count:
        raise Refused(HvStatus.INVALID_PARAMETER)
    vp = owner.vps.get(port.vp)
    if vp is None:
        raise Refused(HvStatus.INVALID_VP_INDEX)
    if not vp.takes_events or vp.sints[port.sint] & SINT_MASKED:
        raise Refused(HvStatus.INVALID_SYNIC_STATE)
    fresh, loud = call.machine.synic.flag_set(vp.sief_page, flag_bit(port, flag)), is_loud(vp, port.sint)
    port.counts.sent += 1
    port.counts.count(fresh=fresh, loud=loud)
    if fresh and loud:
        interrupt(call.machine, owner, vp, port)
    return DONE


def interrupt(machine: Machine, owner: Partition, vp: VirtualProcessor, port: Port) -> None:
    """Of an event. A port has a line of its own once anyone claimed it, as an MSI-X vector has."""
    if port.doorbell:
        machine.effects.append(RingDoorbell(owner.id, port.id))
    else:
        raise_sint(machine, owner, vp, port.sint)


def flag_bit(port: Port, flag: int) -> int:
    """Bit in the SIEF page of a flag that counts from the port's base."""
    return port.sint * FLAGS_PER_SINT + port.base_flag + flag


def flag_is_set(vp: VirtualProcessor, bit: int) -> bool:
    return bool(vp.sief_page[bit // 8] >> bit % 8 & 1)


def connected_port(call: Call, connection_id: int, port_type: PortType) -> tuple[Partition, Port]:
    """What a connection of the caller's leads to, and whose it is."""
    connection = call.caller.connections.get(connection_id)
    if connection is None:
        raise Refused(HvStatus.INVALID_CONNECTION_ID)
    found = call.machine.port_behind(connection)
    if found is None or found[1].type is not port_type:
        raise Refused(HvStatus.INVALID_PORT_ID)
    return found


def vp_of(owner: Partition, port: Port) -> VirtualProcessor | None:
    """Where a message port's next message goes: of any, the least busy one."""
    if port.vp != VP_ANY:
        return owner.vps.get(port.vp)
    able = [vp for vp in owner.vps.values() if vp.takes_messages]
    return min(able or owner.vps.values(), key=lambda vp: (len(vp.queues[port.sint]), vp.index), default=None)


def deliver(machine: Machine, owner: Partition, vp: VirtualProcessor, sint: int) -> None:
    """Move waiting messages of one SINT into the SIM page, as many as it takes: one, or more if a guest on
    another processor empties the slot meanwhile. Bounded by the queue."""
    queue, loud, delivered = vp.queues[sint], is_loud(vp, sint), False
    while queue and vp.takes_messages:
        message = queue[0]
        payload = message.payload
        if message.timer is not None:
            now = reference_time.read(machine, owner)
            payload = TimerExpired(message.timer, message.expired, now).encode()
        # False sets the slot's pending flag, so the guest owes an end-of-message and we get another chance.
        if not machine.synic.synic_post(vp.sim_page, sint, message.type, message.port, payload):
            break
        queue.popleft()
        if message.timer is not None:
            vp.timers[message.timer].delivered()
            arm_timer(machine, owner, vp, message.timer)
        else:
            port = owner.ports[message.port]
            port.buffers_used -= 1
            port.counts.count(fresh=not delivered, loud=loud)
        delivered = True
    if delivered and loud:
        raise_sint(machine, owner, vp, sint)


def end_of_message(machine: Machine, owner: Partition, vp: VirtualProcessor) -> None:
    for sint in range(SINTS_PER_VP):
        deliver(machine, owner, vp, sint)
    intercept_delivery.deliver(machine, owner, vp)


def drop_messages(owner: Partition, port: Port) -> None:
    """Deleting a port drops what it queued; the rest keeps its order."""
    for vp in owner.vps.values():
        queue = vp.queues[port.sint]
        kept = [message for message in queue if message.timer is not None or message.port != port.id]
        queue.clear()
        queue.extend(kept)
    port.buffers_used = 0
