"""Ports, where messages and events arrive, and connections, from where they are sent.

One port has at most one connection, and names at its creation the partition that may make it: each side has
agreed. A port's end leaves its connection dangling (INVALID_PORT_ID) until that is disconnected; the end of a
connection leaves the port free to be connected again. So nobody's id changes its meaning behind their back.

Source: TLFS, HvCallCreatePort, HvCallConnectPort, HvCallDeletePort, HvCallDisconnectPort.
"""

from __future__ import annotations

from runtime.abi import (
    CONNECTION_PAGES,
    FLAGS_PER_SINT,
    ID_24_BIT_MAX,
    PORT_PAGES,
    SINTS_PER_VP,
    VP_ANY,
    VPS_PER_PARTITION_MAX,
    HvStatus,
    PartitionState,
    PortProperty,
    PortType,
    Route,
)
from runtime.hypervisor import synic
from runtime.hypervisor.effects import CloseDoorbell, CloseEndpoint, QuietRoute, RemoveRoute, RouteSpec
from runtime.hypervisor.interrupt_counts import InterruptCounts
from runtime.hypervisor.interrupts import QUIET, is_loud
from runtime.hypervisor.machine import Call, Machine
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.port import Connection, Port
from runtime.hypervisor.replies import DONE, DoorbellHandle, KickHandle, Refused, Reply
from runtime.hypervisor.virtual_processor import VirtualProcessor


def create_port(
    call: Call,
    *,
    port: int,
    connection_partition: int,
    type: int,
    sint: int,
    vp: int,
    base_flag: int,
    flag_count: int,
) -> Reply:
    target = call.target
    if port > ID_24_BIT_MAX or port in target.ports:
        raise Refused(HvStatus.INVALID_PORT_ID)
    other = call.machine.partition(call.caller, connection_partition)
    if other is target:
        raise Refused(HvStatus.INVALID_PARTITION_ID)
    if other.state is not PartitionState.ACTIVE:
        raise Refused(HvStatus.INVALID_PARTITION_STATE)
    if not 1 <= sint < SINTS_PER_VP:
        raise Refused(HvStatus.INVALID_PARAMETER)
    if type == PortType.MESSAGE:
        if base_flag or flag_count:
            raise Refused(HvStatus.INVALID_PARAMETER)
    elif type != PortType.EVENT or flag_count == 0 or base_flag + flag_count >= FLAGS_PER_SINT:
        raise Refused(HvStatus.INVALID_PARAMETER)
    if vp >= VPS_PER_PARTITION_MAX and not (vp == VP_ANY and type == PortType.MESSAGE):
        raise Refused(HvStatus.INVALID_VP_INDEX)
    call.machine.works_for(call.caller, other)
    target.pool.require(PORT_PAGES)
    target.pool.charge(PORT_PAGES)
    target.ports[port] = Port(port, PortType(type), sint, vp, base_flag, flag_count, other.id)
    return DONE


def delete_port(call: Call, *, port: int) -> Reply:
    if (found := call.target.ports.get(port)) is None:
        raise Refused(HvStatus.INVALID_PORT_ID)
    if (other := call.machine.partitions.get(found.connection_partition)) is not None:
        call.machine.works_for(call.caller, other)
    release_port(call.machine, call.target, port)
    return DONE


def get_port_property(call: Call, *, port: int, property: int) -> Reply:
    found = call.target.ports.get(port)
    if found is None:
        raise Refused(HvStatus.INVALID_PORT_ID)
    if property == PortProperty.TARGET_VP:
        return Reply(values={"value": found.vp})
    if property != PortProperty.POST_COUNT or found.type is not PortType.MESSAGE:
        raise Refused(HvStatus.UNKNOWN_PROPERTY)
    return Reply(values={"value": found.counts.sent + found.withheld})


def release_port(machine: Machine, owner: Partition, port_id: int) -> None:
    port = owner.ports[port_id]
    synic.drop_messages(owner, port)
    if port.connection is not None:
        connection = machine.partitions[port.connection_partition].connections[port.connection]
        _drop_route(machine, connection)
        connection.port = None
    if port.doorbell:
        machine.effects.append(CloseDoorbell(owner.id, port_id))
    if port.endpoint is not None:
        machine.effects.append(CloseEndpoint(port.endpoint))
    del owner.ports[port_id]
    owner.pool.refund(PORT_PAGES)


def connect_port(call: Call, *, connection: int, port_partition: int, port: int, route: int) -> Reply:
    target = call.target
    if connection > ID_24_BIT_MAX or connection in target.connections:
        raise Refused(HvStatus.INVALID_CONNECTION_ID)
    owner = call.machine.partition(call.caller, port_partition)
    if owner.state is not PartitionState.ACTIVE:
        raise Refused(HvStatus.INVALID_PARTITION_STATE)
    found = owner.ports.get(port)
    if found is None:
        raise Refused(HvStatus.INVALID_PORT_ID)
    if found.connection_partition != target.id:
        raise Refused(HvStatus.INVALID_PARTITION_ID)
    if found.connection is not None:
        raise Refused(HvStatus.INVALID_PORT_ID)
    if route not in (Route.BROKER, Route.DIRECT):
        raise Refused(HvStatus.INVALID_PARAMETER)
    call.machine.works_for(call.caller, owner)
    target.pool.require(CONNECTION_PAGES)
    target.pool.charge(CONNECTION_PAGES)
    target.connections[connection] = Connection(connection, Route(route), owner.id, port)
    found.connection = connection
    return DONE


def connect_port_deprecated(call: Call, *, connection: int, port_partition: int, port: int) -> Reply:
    return connect_port(
        call, connection=connection, port_partition=port_partition, port=port, route=Route.BROKER
    )


def disconnect_port(call: Call, *, connection: int) -> Reply:
    if (found := call.target.connections.get(connection)) is None:
        raise Refused(HvStatus.INVALID_CONNECTION_ID)
    if (owner := call.machine.partitions.get(found.port_partition)) is not None:
        call.machine.works_for(call.caller, owner)
    release_connection(call.machine, call.target, connection)
    return DONE


def release_connection(machine: Machine, owner: Partition, connection_id: int) -> None:
    connection = owner.connections.pop(connection_id)
    if (found := machine.port_behind(connection)) is not None:
        if connection.sender_route is not None:
            found[1].counts.add(machine.resources.route_counts(connection.sender_route))
        found[1].connection = None
    _drop_route(machine, connection)
    owner.pool.refund(CONNECTION_PAGES)


def _drop_route(machine: Machine, connection: Connection) -> None:
    if connection.sender_route is not None:
        machine.effects.append(RemoveRoute(connection.sender_route))
        connection.sender_route = None


def claim_doorbell(call: Call, *, port: int | None, connection: int | None, flag: int) -> Reply:
    if (port is None) == (connection is None):
        raise Refused(HvStatus.INVALID_PARAMETER)
    if port is not None:
        return _claim_port(call, port, flag)
    assert connection is not None
    return _claim_connection(call, connection, flag)


def _claim_port(call: Call, port_id: int, flag: int) -> Reply:
    machine, owner = call.machine, call.caller
    port = owner.ports.get(port_id)
    if port is None or port.type is not PortType.EVENT:
        raise Refused(HvStatus.INVALID_PORT_ID)
    if flag:
        raise Refused(HvStatus.INVALID_PARAMETER)
    if (other := machine.partitions.get(port.connection_partition)) is not None:
        machine.works_for(owner, other)
    _ensure_doorbell(machine, owner, port)
    # Events before the claim raised the VP's line; their flags are set, so later ones would ring nothing.
    vp = owner.vps.get(port.vp)
    if vp is not None and is_loud(vp, port.sint) and _has_flags(vp, port):
        synic.interrupt(machine, owner, vp, port)
    route = Route.BROKER
    if port.connection is not None:
        route = machine.partitions[port.connection_partition].connections[port.connection].route
    return Reply(values={"route": int(route)}, handles=(DoorbellHandle(owner.id, port.id),))


def _claim_connection(call: Call, connection_id: int, flag: int) -> Reply:
    machine = call.machine
    owner, port = synic.connected_port(call, connection_id, PortType.EVENT)
    connection = call.caller.connections[connection_id]
    if flag >= port.flag_count:
        raise Refused(HvStatus.INVALID_PARAMETER)
    machine.works_for(call.caller, owner)
    values: dict[str, object] = {"route": int(connection.route)}
    if connection.route is Route.DIRECT:
        _ensure_doorbell(machine, owner, port)
        return Reply(values=values, handles=(DoorbellHandle(owner.id, port.id),))
    if connection.sender_route is None:
        if port.vp not in owner.vps:
            raise Refused(HvStatus.INVALID_VP_INDEX)
        _add_route(machine, owner, port, connection, flag)
        assert connection.sender_route is not None
    elif connection.sender_flag != flag:
        raise Refused(HvStatus.OBJECT_IN_USE)  # one sender's line a connection, and it is for another flag
    return Reply(values=values, handles=(KickHandle(connection.sender_route),))


def _add_route(machine: Machine, owner: Partition, port: Port, connection: Connection, flag: int) -> None:
    had_doorbell = port.doorbell
    _ensure_doorbell(machine, owner, port)
    route = machine.next_route
    try:
        machine.resources.create_route(
            RouteSpec(route, owner.id, port.id, port.vp, synic.flag_bit(port, flag))
        )
    except OSError:
        if not had_doorbell:
            port.doorbell = False
            machine.effects.append(CloseDoorbell(owner.id, port.id))
        raise
    machine.next_route += 1
    connection.sender_route, connection.sender_flag = route, flag
    if not is_loud(owner.vps[port.vp], port.sint):
        machine.effects.append(QuietRoute(route, True))


def _ensure_doorbell(machine: Machine, owner: Partition, port: Port) -> None:
    if not port.doorbell:
        machine.resources.create_doorbell(owner.id, port.id)
        port.doorbell = True


# -- what changes under a port -----------------------------------------------------------------------------


def set_port_property(call: Call, *, port: int, property: int, value: int) -> Reply:
    machine, owner = call.machine, call.target
    found = owner.ports.get(port)
    if found is None:
        raise Refused(HvStatus.INVALID_PORT_ID)
    if property != PortProperty.TARGET_VP:
        raise Refused(HvStatus.UNKNOWN_PROPERTY)
    if found.type is PortType.MESSAGE:  # those that wait already stay where they are
        if value not in owner.vps and value != VP_ANY:
            raise Refused(HvStatus.INVALID_VP_INDEX)
        found.vp = value
    else:
        if value not in owner.vps:
            raise Refused(HvStatus.INVALID_VP_INDEX)
        _move_events(machine, owner, found, value)
    return DONE


def _move_events(machine: Machine, owner: Partition, port: Port, vp_index: int) -> None:
    """The route first: from then on no flag is set where we have looked already."""
    before, after = owner.vps.get(port.vp), owner.vps[vp_index]
    port.vp = vp_index
    if (route := _route_to(machine, port)) is not None:
        flag = machine.partitions[port.connection_partition].connections[route[0]].sender_flag
        bit = synic.flag_bit(port, flag)
        machine.resources.move_route(RouteSpec(route[1], owner.id, port.id, vp_index, bit))
        machine.effects.append(QuietRoute(route[1], not is_loud(after, port.sint)))
    if before is None or before is after:
        return
    moved = False
    for number in range(port.flag_count):
        bit = synic.flag_bit(port, number)
        if synic.flag_is_set(before, bit) and machine.synic.flag_take(before.sief_page, bit):
            moved |= machine.synic.flag_set(after.sief_page, bit)
    if moved and is_loud(after, port.sint):
        synic.interrupt(machine, owner, after, port)


def sints_changed(machine: Machine, owner: Partition, vp: VirtualProcessor, before: list[int]) -> None:
    """After a write of SINT registers: routes learn who is quiet now, and what came to a port of events while it
    was quiet rings when it is no more, for its doorbell is all that anybody waits on."""
    was_loud = [not sint & QUIET for sint in before]
    for port in owner.ports.values():
        if port.vp != vp.index or port.type is not PortType.EVENT or not port.doorbell:
            continue
        loud = is_loud(vp, port.sint)
        if loud == was_loud[port.sint]:
            continue
        if (route := _route_to(machine, port)) is not None:
            machine.effects.append(QuietRoute(route[1], not loud))
        if loud and _has_flags(vp, port):
            synic.interrupt(machine, owner, vp, port)


def _route_to(machine: Machine, port: Port) -> tuple[int, int] | None:
    """(its connection, the broker's route), if there is one."""
    if port.connection is None:
        return None
    route = machine.partitions[port.connection_partition].connections[port.connection].sender_route
    return None if route is None else (port.connection, route)


def _has_flags(vp: VirtualProcessor, port: Port) -> bool:
    """Whether any of the port's flags is set."""
    first = synic.flag_bit(port, 0)
    end = first + port.flag_count
    word = int.from_bytes(vp.sief_page[first // 8 : (end + 7) // 8], "little") >> first % 8
    return bool(word & ((1 << port.flag_count) - 1))


def counts_of(machine: Machine, port: Port) -> InterruptCounts:
    """All of them up to now: by calls, by routes that were, by the route that is."""
    counts = InterruptCounts()
    counts.add(port.counts)
    if (route := _route_to(machine, port)) is not None:
        counts.add(machine.resources.route_counts(route[1]))
    return counts


def get_port_counts(call: Call, *, port: int) -> Reply:
    found = call.target.ports.get(port)
    if found is None:
        raise Refused(HvStatus.INVALID_PORT_ID)
    counts = counts_of(call.machine, found)
    return Reply(
        values={
            "sent": counts.sent,
            "merged": counts.merged,
            "suppressed": counts.suppressed,
            "delivered": counts.delivered,
            "pending": found.buffers_used,
        }
    )
