"""Message endpoints: a pair of sockets between the owner of a connection and the owner of its event port.

For partitions that talk by synchronous send, receive and reply, as a microkernel's do: the host's kernel copies the
message, and nobody else stands in between. The connection is the capability. Whoever holds it asks for a pair and gets
one end at once; the other waits here, and the port's owner is signalled and claims it. So a client may send before its
server runs, or runs again: the message waits in the socket.
"""

from __future__ import annotations

from runtime.abi import SINT_MASKED, HvStatus, PortType
from runtime.hypervisor import synic
from runtime.hypervisor.effects import CloseEndpoint
from runtime.hypervisor.interrupts import is_loud
from runtime.hypervisor.machine import Call, Machine
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.port import Port
from runtime.hypervisor.replies import EndpointHandle, Refused, Reply


def claim_endpoint(call: Call, *, port: int | None, connection: int | None) -> Reply:
    if (port is None) == (connection is None):
        raise Refused(HvStatus.INVALID_PARAMETER)
    if port is not None:
        return _claim_waiting(call, port)
    assert connection is not None
    return _connect(call, connection)


def _claim_waiting(call: Call, port_id: int) -> Reply:
    port = call.caller.ports.get(port_id)
    if port is None or port.type is not PortType.EVENT:
        raise Refused(HvStatus.INVALID_PORT_ID)
    call.machine.served_for = port.connection_partition  # who wants to be served, and might ask without end
    if port.endpoint is None:
        raise Refused(HvStatus.NO_DATA)
    endpoint, port.endpoint = port.endpoint, None
    return Reply(handles=(EndpointHandle(endpoint, waiting=True),))


def _connect(call: Call, connection_id: int) -> Reply:
    machine = call.machine
    owner, port = synic.connected_port(call, connection_id, PortType.EVENT)
    endpoint = machine.next_endpoint
    machine.resources.create_endpoint(endpoint)
    machine.next_endpoint += 1
    drop_endpoint(machine, port)  # whoever asked for that one asks again
    port.endpoint = endpoint
    _signal(machine, owner, port)
    return Reply(handles=(EndpointHandle(endpoint, waiting=False),))


def _signal(machine: Machine, owner: Partition, port: Port) -> None:
    """As SIGNAL_EVENT does, of the port's first flag; an owner that takes no events yet looks when it comes."""
    vp = owner.vps.get(port.vp)
    if vp is None or not vp.takes_events or vp.sints[port.sint] & SINT_MASKED:
        return
    fresh = machine.synic.flag_set(vp.sief_page, synic.flag_bit(port, 0))
    loud = is_loud(vp, port.sint)
    port.counts.sent += 1
    port.counts.count(fresh=fresh, loud=loud)
    if loud:  # whether it was set before says nothing: who waits for endpoints looks at its doorbell alone
        synic.interrupt(machine, owner, vp, port)


def drop_endpoint(machine: Machine, port: Port) -> None:
    if port.endpoint is not None:
        machine.effects.append(CloseEndpoint(port.endpoint))
        port.endpoint = None
