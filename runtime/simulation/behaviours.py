"""What simulated partitions do, as a table: a name, how often, and a function that proposes actions.

A new hypercall needs no row here to be called at all: `wild_calls` calls everything that has a code. A row makes calls
that are likely to succeed. An action may be refused; nothing here promises that it is not.
"""

from __future__ import annotations

from typing import Final

from runtime.abi import (
    ALL_PRIVILEGES,
    CREATE_PARTITION_PAGES,
    GUEST_PRIVILEGES,
    VP_ANY,
    HypercallCode,
    MapFlags,
    PartitionProperty,
    PartitionState,
    PortType,
    Privilege,
    RegisterName,
)
from runtime.hypervisor.partition import Partition
from runtime.simulation.actions import ROOT_LABEL, Action, ActionKind
from runtime.simulation.device_behaviours import DEVICE_BEHAVIOURS
from runtime.simulation.mail import SERIAL_BYTES
from runtime.simulation.stage import NUMBERS, READ_WRITE, SINTS, Behaviour, Proposal, Stage
from runtime.simulation.wild_calls import wild_call

_C = HypercallCode
_CALL: Final = ActionKind.CALL
CHILDREN_MAX: Final = 6  # of one partition: a deep tree rather than a wide one
DEPTH_MAX: Final = 7
PORTS_MAX: Final = 4  # of one partition, and connections
ENTRIES_MAX: Final = 5  # of one partition's table of pages
FEW_PAGES: Final = (8, 16, 40)  # that a poor child is born with
PROMISES_MS: Final = (0, 0, 500, 3_000, 60_000, 60_000, 600_000)
_ANY_ROUTE: Final = (0, 1)


def _dead_child(stage: Stage, partition: Partition) -> str | None:
    for child in partition.children:
        label = stage.simulation.label_of(child)
        found = stage.simulation.partition(label)
        if found is not None and found.state is PartitionState.FINALIZED:
            return label
    return None


def create_child(stage: Stage, who: str, partition: Partition) -> Proposal:
    """Every step of a creation, as a virtualization stack makes them; other things happen in between."""
    if len(partition.children) >= CHILDREN_MAX or partition.depth >= DEPTH_MAX:
        return None
    if dict.__len__(stage.simulation.table) >= stage.population:
        return None
    if Privilege.CREATE_PARTITIONS not in partition.privileges and stage.below(50):
        return None
    if partition.pool.available < min(FEW_PAGES) + CREATE_PARTITION_PAGES and stage.below(20):
        return None
    pages = partition.pool.available // CHILDREN_MAX if stage.below(8) else stage.pick(FEW_PAGES)
    stage.born += 1
    label = f"p{stage.born}"
    privileges = GUEST_PRIVILEGES if stage.below(4) == 0 else ALL_PRIVILEGES
    registers = [
        [int(RegisterName.SIMP), 1],
        [int(RegisterName.SIEFP), 1],
        *([int(RegisterName.SINT0) + sint, 0x20 + sint] for sint in SINTS),
        [int(RegisterName.SCONTROL), 1],
    ]
    value = {"module": "guests.any", "name": label}
    create = stage.call(who, _C.CREATE_PARTITION)
    program = stage.call(
        who,
        _C.SET_PARTITION_PROPERTY_EX,
        partition=label,
        property=int(PartitionProperty.PROGRAM),
        value=value,
    )
    return [
        Action(_CALL, who, code=create.code, label=label),
        stage.call(who, _C.DEPOSIT_MEMORY, partition=label, pages=pages),
        stage.call(
            who,
            _C.SET_PARTITION_PROPERTY,
            partition=label,
            property=int(PartitionProperty.PRIVILEGE_FLAGS),
            value=int(privileges),
        ),
        stage.call(who, _C.INITIALIZE_PARTITION, partition=label),
        *(stage.call(who, _C.CREATE_VP, partition=label, vp=vp) for vp in range(1 + (stage.below(4) == 0))),
        Action(_CALL, who, 0, program.code, program.args, stage.below(3)),
        stage.call(who, _C.SET_VP_REGISTERS, partition=label, vp=0, registers=registers),
        stage.call(who, _C.START_VIRTUAL_PROCESSOR, partition=label, vp=0),
        stage.call(label, _C.GET_BIRTH),
        stage.call(label, _C.WATCH_CHILDREN),
    ]


def deposit(stage: Stage, who: str, partition: Partition) -> Proposal:
    child = stage.child(partition)
    return (
        None
        if child is None
        else stage.call(who, _C.DEPOSIT_MEMORY, partition=child, pages=1 + stage.below(200))
    )


def withdraw(stage: Stage, who: str, partition: Partition) -> Proposal:
    child = stage.child(partition)
    return (
        None
        if child is None
        else stage.call(who, _C.WITHDRAW_MEMORY, partition=child, pages=1 + stage.below(50))
    )


def map_new(stage: Stage, who: str, partition: Partition) -> Proposal:
    if len(partition.gpa.bases) >= ENTRIES_MAX:
        return None
    flags = READ_WRITE | int(MapFlags.ZEROED)
    return stage.call(who, _C.MAP_GPA_PAGES, gpfn=stage.below(NUMBERS), pages=1 + stage.below(3), flags=flags)


def map_from(stage: Stage, who: str, partition: Partition) -> Proposal:
    """A child's page into one's own table, or one's own into the child's."""
    child = stage.child(partition)
    if child is None:
        return None
    source = stage.simulation.partition(child)
    args: dict[str, object] = {"gpfn": stage.below(4 * NUMBERS), "pages": 1, "flags": READ_WRITE}
    if source is not None and source.gpa.bases and stage.below(3):
        if len(partition.gpa.bases) >= ENTRIES_MAX:
            return None
        args |= {"source_partition": child, "source_gpfn": stage.pick(source.gpa.bases)}
    elif partition.gpa.bases:
        args |= {"partition": child, "source_partition": who, "source_gpfn": stage.pick(partition.gpa.bases)}
    else:
        return None
    return stage.call(who, _C.MAP_GPA_PAGES, **args)


def unmap(stage: Stage, who: str, partition: Partition) -> Proposal:
    if not partition.gpa.bases:
        return None
    entry = partition.gpa.entries[stage.pick(partition.gpa.bases)]
    return stage.call(who, _C.UNMAP_GPA_PAGES, gpfn=entry.gpfn, pages=entry.pages)


def link(stage: Stage, who: str, partition: Partition) -> Proposal:
    """A port of one's own for somebody, who connects to it, and perhaps claims a doorbell."""
    if len(partition.ports) >= PORTS_MAX:
        return None
    if Privilege.CREATE_PORT not in partition.privileges and stage.below(50):
        return None
    other = stage.actor()
    found = stage.simulation.partition(other)
    if found is not None and len(found.connections) >= PORTS_MAX and stage.below(10):
        return None
    port, connection = stage.below(NUMBERS), stage.below(NUMBERS)
    message = stage.below(3) > 0
    vp = VP_ANY if message and stage.below(4) == 0 else stage.pick(list(partition.vps) or [0])
    kind = {"type": int(PortType.MESSAGE)} if message else {"type": int(PortType.EVENT), "flag_count": 4}
    where = {"port": port, "sint": stage.pick(SINTS), "vp": vp, "connection_partition": other}
    steps = [
        stage.call(who, _C.CREATE_PORT, **where, **kind),
        stage.call(
            other,
            _C.CONNECT_PORT,
            connection=connection,
            port_partition=who,
            port=port,
            route=stage.pick(_ANY_ROUTE),
        ),
    ]
    if not message:
        if stage.below(2):
            steps.append(stage.call(other, _C.CLAIM_DOORBELL, connection=connection, flag=stage.below(4)))
        if stage.below(2):
            steps.append(stage.call(who, _C.CLAIM_DOORBELL, port=port))
    return steps


def send(stage: Stage, who: str, partition: Partition) -> Proposal:
    """Post or signal on one of one's connections; now and then more than a port has buffers for."""
    if not partition.connections:
        return None
    connection = partition.connections[stage.pick(list(partition.connections))]
    if connection.port is None and stage.below(10):
        return stage.call(who, _C.DISCONNECT_PORT, connection=connection.id)
    owner = dict.get(stage.simulation.table, connection.port_partition)
    port = owner.ports.get(connection.port) if owner is not None and connection.port is not None else None
    if port is not None and port.type is PortType.EVENT:
        return stage.call(who, _C.SIGNAL_EVENT, connection=connection.id, flag=stage.below(5))
    return [_post(stage, who, connection.id) for _ in range(20 if stage.below(40) == 0 else 1)]


def _post(stage: Stage, who: str, connection: int) -> Action:
    stage.serial += 1
    payload = stage.serial.to_bytes(SERIAL_BYTES, "little")
    return stage.call(who, _C.POST_MESSAGE, connection=connection, type=1, payload=payload)


def disconnect(stage: Stage, who: str, partition: Partition) -> Proposal:
    if not partition.connections:
        return None
    return stage.call(who, _C.DISCONNECT_PORT, connection=stage.pick(list(partition.connections)))


def delete_port(stage: Stage, who: str, partition: Partition) -> Proposal:
    return (
        stage.call(who, _C.DELETE_PORT, port=stage.pick(list(partition.ports))) if partition.ports else None
    )


def look(stage: Stage, who: str, partition: Partition) -> Proposal:
    """Calls that only ask."""
    match stage.below(6):
        case 0:
            return stage.call(who, _C.GET_MEMORY_BALANCE)
        case 1:
            return stage.call(who, _C.GET_PARTITION_ID)
        case 2:
            return stage.call(who, _C.GET_NEXT_CHILD_PARTITION)
        case 3:
            names = [
                int(RegisterName.SCONTROL),
                int(RegisterName.TIME_REF_COUNT),
                int(RegisterName.SINT0) + 2,
            ]
            return stage.call(who, _C.GET_VP_REGISTERS, vp=0, names=names)
        case 4:
            return stage.call(who, _C.CLAIM_GPA_PAGES, gpfn=stage.below(NUMBERS), pages=4)
        case _:
            return stage.call(who, _C.GET_PARTITION_PROPERTY, property=int(PartitionProperty.STATE))


def switch_interrupts(stage: Stage, who: str, partition: Partition) -> Proposal:
    """Mask a SINT, switch the SynIC off, or on again."""
    sint, on = stage.pick(SINTS), stage.below(4) > 0
    register = stage.pick((RegisterName.SCONTROL, RegisterName.SIMP, RegisterName.SIEFP, None))
    if register is None:
        registers = [[int(RegisterName.SINT0) + sint, 0x20 + sint if on else 1 << 16]]
    else:
        registers = [[int(register), int(on)]]
    return stage.call(who, _C.SET_VP_REGISTERS, vp=0, registers=registers)


def change_processors(stage: Stage, who: str, partition: Partition) -> Proposal:
    code = _C.CREATE_VP if stage.below(2) else _C.DELETE_VP
    return stage.call(who, code, vp=1 + stage.below(2))


def promise(stage: Stage, who: str, partition: Partition) -> Proposal:
    """A heartbeat. Who never gives another is taken for hung."""
    return stage.call(who, _C.HEARTBEAT, within_ms=stage.pick(PROMISES_MS))


def _is_dispensable(stage: Stage, who: str, partition: Partition) -> bool:
    """Whoever has children takes them along; too often would leave nobody."""
    return who != ROOT_LABEL and not (partition.children and stage.below(12))


def die(stage: Stage, who: str, partition: Partition) -> Proposal:
    return Action(ActionKind.EXITED, who, 1) if _is_dispensable(stage, who, partition) else None


def pull_plug(stage: Stage, who: str, partition: Partition) -> Proposal:
    return Action(ActionKind.KILL, who) if _is_dispensable(stage, who, partition) else None


def end_child(stage: Stage, who: str, partition: Partition) -> Proposal:
    if stage.below(4) and (dead := _dead_child(stage, partition)) is not None:
        return stage.call(who, _C.DELETE_PARTITION, partition=dead)
    child = stage.child(partition)
    if child is None:
        return None
    found = stage.simulation.partition(child)
    if found is None or (found.state is PartitionState.ACTIVE and (found.children or stage.below(3))):
        return None  # most live on
    code = _C.DELETE_PARTITION if stage.below(2) else _C.FINALIZE_PARTITION
    return stage.call(who, code, partition=child)


def run_wild(stage: Stage, who: str, partition: Partition) -> Proposal:
    return wild_call(stage.rng, who, stage.actor)


BEHAVIOURS: Final = (
    Behaviour("create a child", 40, create_child),
    Behaviour("send", 420, send),
    Behaviour("look", 90, look),
    Behaviour("link", 90, link),
    Behaviour("disconnect", 8, disconnect),
    Behaviour("delete a port", 8, delete_port),
    Behaviour("deposit", 20, deposit),
    Behaviour("withdraw", 20, withdraw),
    Behaviour("map new pages", 40, map_new),
    Behaviour("map pages of others", 30, map_from),
    Behaviour("unmap", 40, unmap),
    Behaviour("switch interrupts", 8, switch_interrupts),
    Behaviour("change processors", 6, change_processors),
    Behaviour("promise", 10, promise),
    Behaviour("die", 4, die),
    Behaviour("have its plug pulled", 2, pull_plug),
    Behaviour("end a child", 40, end_child),
    Behaviour("call anything", 60, run_wild),
    *DEVICE_BEHAVIOURS,
)
