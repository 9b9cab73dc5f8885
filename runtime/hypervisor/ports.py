"""Ports, where messages and events arrive, and connections, from where they are sent.

One port has at most one connection, and names at its creation the partition that may make it: each side has
agreed. A port's end leaves its connection dangling (INVALID_PORT_ID) until that is disconnected; the end of a
connection leaves the port free to be connected again. So nobody's id changes its meaning behind their back.

Source: TLFS, HvCallCreatePort, HvCallConnectPort, HvCallDeletePort, HvCallDisconnectPort.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
from runtime.hypervisor.effects import CloseDoorbell, RemoveRoute, RingDoorbell, RouteSpec
from runtime.hypervisor.replies import DONE, DoorbellHandle, KickHandle, Refused, Reply

if TYPE_CHECKING:
    from runtime.hypervisor.machine import Call, Machine
    from runtime.hypervisor.partitions import Partition


@dataclass(slots=True)
class Port:
    """Owned by the partition in whose table it stands."""

    id: int
    type: PortType
    sint: int
    vp: int  # VP_ANY: message ports only
    base_flag: int
    flag_count: int  # 0 for a message port
    connection_partition: int  # who may connect
    connection: int | None = None  # its id there
    buffers_used: int = 0  # message buffers, of MESSAGE_BUFFERS_PER_PORT
    posted: int = 0  # messages accepted since its creation
    doorbell: bool = False  # someone claimed it, so it exists


@dataclass(slots=True)
class Connection:
    """Owned by the partition in whose table it stands."""

    id: int
    route: Route
    port_partition: int
    port: int | None  # None: the port is gone
    sender_route: int | None = None  # the broker's route, once claimed
    sender_flag: int = 0


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
    target.pool.require(PORT_PAGES)
    target.pool.charge(PORT_PAGES)
    target.ports[port] = Port(port, PortType(type), sint, vp, base_flag, flag_count, other.id)
    return DONE


def delete_port(call: Call, *, port: int) -> Reply:
    if port not in call.target.ports:
        raise Refused(HvStatus.INVALID_PORT_ID)
    release_port(call.machine, call.target, port)
    return DONE


def get_port_property(call: Call, *, port: int, property: int) -> Reply:
    found = call.target.ports.get(port)
    if found is None:
        raise Refused(HvStatus.INVALID_PORT_ID)
    if property != PortProperty.POST_COUNT or found.type is not PortType.MESSAGE:
        raise Refused(HvStatus.UNKNOWN_PROPERTY)
    return Reply(values={"value": found.posted})


def release_port(machine: Machine, owner: Partition, port_id: int) -> None:
    port = owner.ports[port_id]
    synic.drop_messages(owner, port)
    if port.connection is not None:
        connection = machine.partitions[port.connection_partition].connections[port.connection]
        _drop_route(machine, connection)
        connection.port = None
    if port.doorbell:
        machine.effects.append(CloseDoorbell(owner.id, port_id))
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
    target.pool.require(CONNECTION_PAGES)
    target.pool.charge(CONNECTION_PAGES)
    target.connections[connection] = Connection(connection, Route(route), owner.id, port)
    found.connection = connection
    return DONE


def disconnect_port(call: Call, *, connection: int) -> Reply:
    if connection not in call.target.connections:
        raise Refused(HvStatus.INVALID_CONNECTION_ID)
    release_connection(call.machine, call.target, connection)
    return DONE


def release_connection(machine: Machine, owner: Partition, connection_id: int) -> None:
    connection = owner.connections.pop(connection_id)
    if (found := machine.port_behind(connection)) is not None:
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
    _ensure_doorbell(machine, owner, port)
    # Events before the claim raised the VP's line; their flags are set, so later ones would ring nothing.
    vp = owner.vps.get(port.vp)
    if vp is not None and any(
        synic.flag_is_set(vp, synic.flag_bit(port, number)) for number in range(port.flag_count)
    ):
        machine.effects.append(RingDoorbell(owner.id, port.id))
    route = Route.BROKER
    if port.connection is not None:
        route = machine.partitions[port.connection_partition].connections[port.connection].route
    return Reply(values={"route": int(route)}, handles=(DoorbellHandle(owner.id, port.id),))


def _claim_connection(call: Call, connection_id: int, flag: int) -> Reply:
    machine = call.machine
    connection = call.caller.connections.get(connection_id)
    if connection is None:
        raise Refused(HvStatus.INVALID_CONNECTION_ID)
    found = machine.port_behind(connection)
    if found is None or found[1].type is not PortType.EVENT:
        raise Refused(HvStatus.INVALID_PORT_ID)
    owner, port = found
    if flag >= port.flag_count:
        raise Refused(HvStatus.INVALID_PARAMETER)
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


def _ensure_doorbell(machine: Machine, owner: Partition, port: Port) -> None:
    if not port.doorbell:
        machine.resources.create_doorbell(owner.id, port.id)
        port.doorbell = True
