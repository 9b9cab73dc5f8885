"""How each status of the calls about processors, ports and interrupts comes about: see `hypercall_scene`."""

from __future__ import annotations

from runtime.abi import (
    INTERCEPTS_PER_PARTITION_MAX,
    MESSAGE_BUFFERS_PER_PORT,
    STATS_PAGES_PER_PARTITION_MAX,
    HvStatus,
    HypercallCode,
    InterceptMask,
    InterceptType,
    OverlayPage,
    PartitionProperty,
    PortProperty,
    PortType,
    Privilege,
    RegisterName,
)
from runtime.statistics import StatsObject
from tests.runtime.hypercall_scene import SINT, Case, Cases, Scene

_C, _S = HypercallCode, HvStatus
_IO, _READ = int(InterceptType.IO_PORT), int(InterceptMask.READ)
_EVENT, _MESSAGE = int(PortType.EVENT), int(PortType.MESSAGE)
_TARGET = int(PortProperty.TARGET_VP)


def _strip(scene: Scene, privilege: Privilege) -> Scene:
    partition = scene.w.machine.partitions[scene.p]
    partition.privileges = Privilege(partition.privileges & ~privilege)
    return scene


def _loading(scene: Scene) -> Scene:
    """The machine is a monolithic one."""
    scene.w.machine.loads_drivers = True
    return scene


def _monolith(scene: Scene) -> Scene:
    """And c is a driver partition."""
    outlives = int(PartitionProperty.OUTLIVES_PROCESS)
    scene.after(scene.p, _C.SET_PARTITION_PROPERTY, partition=scene.c, property=outlives, value=1)
    return _loading(scene)


def _waits(scene: Scene) -> Scene:
    """p's VP 0 waits for the root's answer to an IN of two bytes from port 0x60."""
    scene.after(1, _C.INSTALL_INTERCEPT, partition=scene.p, access=_READ, type=_IO, parameter=0x60)
    reply = scene.w.call(scene.p, int(_C.ACCESS_PORT), {"vp": 0, "port": 0x60, "size": 2})
    assert reply.status == _S.CALL_PENDING
    return scene


def _pending(scene: Scene) -> HvStatus:
    scene.after(1, _C.INSTALL_INTERCEPT, partition=scene.p, access=_READ, type=_IO, parameter=0x60)
    return scene.w.call(scene.p, int(scene.code), {"vp": 0, "port": 0x60, "size": 2}).status


def _hole(scene: Scene) -> HvStatus:
    return scene.w.call(scene.p, int(scene.code), {"vp": 0, "gpa": 0, "size": 4}).status


def _many_intercepts(scene: Scene) -> HvStatus:
    for port in range(INTERCEPTS_PER_PARTITION_MAX):
        scene.after(1, _C.INSTALL_INTERCEPT, partition=scene.p, access=_READ, type=_IO, parameter=port)
    return scene.ask(1, partition=scene.p, access=_READ, type=_IO, parameter=0x100)


def _many_pages(scene: Scene) -> HvStatus:
    vp = {"type": int(StatsObject.VP), "partition": scene.c}
    for number in range(STATS_PAGES_PER_PARTITION_MAX):
        if number:  # VP 0 is there
            scene.after(scene.p, _C.CREATE_VP, partition=scene.c, vp=number)
        scene.after(scene.p, _C.MAP_STATS_PAGE, **vp, index=number)
    return scene.ask(scene.p, type=int(StatsObject.HYPERVISOR))


def _creates_port(code: HypercallCode) -> dict[HvStatus, Case]:
    good = {"port": 9, "connection_partition": 1, "type": _MESSAGE, "sint": SINT, "vp": 0}
    return {
        _S.SUCCESS: lambda s: s.ask(s.p, **(good | {"connection_partition": s.c})),
        _S.INVALID_PORT_ID: lambda s: s.ask(1, partition=s.p, **(good | {"port": 6})),
        _S.INVALID_PARTITION_ID: lambda s: s.ask(1, partition=s.p, **(good | {"connection_partition": s.p})),
        _S.INVALID_PARTITION_STATE: lambda s: s.ask(s.p, **(good | {"connection_partition": s.u})),
        _S.INVALID_PARAMETER: lambda s: s.ask(1, partition=s.p, **(good | {"sint": 0})),
        _S.INVALID_VP_INDEX: lambda s: s.ask(1, partition=s.p, **(good | {"vp": 64})),
        _S.INSUFFICIENT_MEMORY: lambda s: s.poor(s.p).ask(1, partition=s.p, **good),
    }


def _connects_port() -> dict[HvStatus, Case]:
    return {
        _S.SUCCESS: lambda s: s.ask(1, connection=7, port_partition=s.p, port=7),
        _S.INVALID_CONNECTION_ID: lambda s: s.ask(1, connection=6, port_partition=s.p, port=7),
        _S.INVALID_PORT_ID: lambda s: s.ask(1, connection=7, port_partition=s.p, port=6),
        _S.INVALID_PARTITION_ID: lambda s: s.ask(
            s.p, partition=s.c, connection=7, port_partition=s.p, port=7
        ),
        _S.INVALID_PARTITION_STATE: lambda s: s.ask(s.p, connection=7, port_partition=s.u, port=7),
        _S.INSUFFICIENT_MEMORY: lambda s: s.poor(1).ask(1, connection=7, port_partition=s.p, port=7),
    }


def _fill_port(scene: Scene) -> Scene:
    """One message in the slot, and every buffer of the port behind it."""
    post = {"connection": 6, "type": 1, "payload": b""}
    return scene.times(MESSAGE_BUFFERS_PER_PORT + 1, 1, _C.POST_MESSAGE, **post)


CASES: Cases = {
    _C.GET_LOGICAL_PROCESSOR_RUN_TIME: {
        _S.SUCCESS: lambda s: s.ask(s.p, lp=1),
        _S.INVALID_LP_INDEX: lambda s: s.ask(s.p, lp=2),
    },
    _C.NOTIFY_LONG_SPIN_WAIT: {
        _S.SUCCESS: lambda s: s.ask(s.p, spins=9),
        _S.INVALID_VP_INDEX: lambda s: s.ask(s.p, vp=9),
    },
    _C.GET_VP_INDEX_FROM_APIC_ID: {
        _S.SUCCESS: lambda s: s.ask(s.p, apic_ids=[0]),
        _S.INVALID_PARAMETER: lambda s: s.ask(s.p, apic_ids=[0, 1]),
    },
    _C.SEND_SYNTHETIC_CLUSTER_IPI: {
        _S.SUCCESS: lambda s: s.ask(s.p, vector=0x40, processors=1),
        _S.INVALID_PARAMETER: lambda s: s.ask(s.p, vector=3, processors=1),
        _S.INVALID_VP_INDEX: lambda s: s.ask(s.p, vector=0x40, processors=3),
    },
    _C.QUERY_EXTENDED_CAPABILITIES: {_S.SUCCESS: lambda s: s.ask(s.p)},
    _C.CREATE_VP: {
        _S.SUCCESS: lambda s: s.ask(s.p, vp=1),
        _S.INVALID_VP_INDEX: lambda s: s.ask(s.p, vp=64),
        _S.OBJECT_IN_USE: lambda s: s.ask(s.p, vp=0),
        _S.INSUFFICIENT_MEMORY: lambda s: s.poor(s.p).ask(s.p, vp=1),
    },
    _C.DELETE_VP: {
        _S.SUCCESS: lambda s: s.ask(s.p, partition=s.c, vp=0),
        _S.INVALID_VP_INDEX: lambda s: s.ask(s.p, partition=s.c, vp=1),
        _S.INVALID_VP_STATE: lambda s: s.ask(s.s, vp=0),
        _S.OBJECT_IN_USE: lambda s: s.after(
            s.p,
            _C.CREATE_PORT,
            partition=s.c,
            port=1,
            connection_partition=s.p,
            type=_MESSAGE,
            sint=SINT,
            vp=0,
        ).ask(s.p, partition=s.c, vp=0),
    },
    _C.START_VIRTUAL_PROCESSOR: {
        _S.SUCCESS: lambda s: s.ask(s.p, partition=s.c, vp=0),
        _S.INVALID_VP_INDEX: lambda s: s.ask(s.p, partition=s.c, vp=1),
        _S.INVALID_VP_STATE: lambda s: s.ask(1, partition=s.p, vp=0),
        _S.OPERATION_DENIED: lambda s: (
            s.after(s.p, _C.DEPOSIT_MEMORY, partition=s.u, pages=20)
            .after(s.p, _C.INITIALIZE_PARTITION, partition=s.u)
            .after(s.p, _C.CREATE_VP, partition=s.u, vp=0)
            .ask(s.p, partition=s.u, vp=0)
        ),
    },
    _C.GET_VP_REGISTERS: {
        _S.SUCCESS: lambda s: s.ask(s.p, vp=0, names=[int(RegisterName.SCONTROL)]),
        _S.INVALID_VP_INDEX: lambda s: s.ask(s.p, vp=1, names=[]),
        _S.UNKNOWN_REGISTER_NAME: lambda s: s.ask(s.p, vp=0, names=[0xFFFF]),
        _S.ACCESS_DENIED: lambda s: _strip(s, Privilege.ACCESS_SYNIC).ask(
            s.p, vp=0, names=[int(RegisterName.SCONTROL)]
        ),
    },
    _C.SET_VP_REGISTERS: {
        _S.SUCCESS: lambda s: s.ask(s.p, vp=0, registers=[[int(RegisterName.SCONTROL), 1]]),
        _S.INVALID_VP_INDEX: lambda s: s.ask(s.p, vp=1, registers=[]),
        _S.UNKNOWN_REGISTER_NAME: lambda s: s.ask(s.p, vp=0, registers=[[0xFFFF, 0]]),
        _S.ACCESS_DENIED: lambda s: s.ask(s.p, vp=0, registers=[[int(RegisterName.VP_INDEX), 0]]),
        _S.INVALID_REGISTER_VALUE: lambda s: s.ask(s.p, vp=0, registers=[[int(RegisterName.SCONTROL), 2]]),
        _S.FEATURE_UNAVAILABLE: lambda s: s.ask(s.p, vp=0, registers=[[int(RegisterName.SIRBP), 1]]),
        _S.INVALID_VP_STATE: lambda s: s.ask(1, partition=s.p, vp=0, registers=[[int(RegisterName.RAX), 1]]),
    },
    _C.INSTALL_INTERCEPT: {
        _S.SUCCESS: lambda s: s.ask(1, partition=s.p, access=_READ, type=_IO, parameter=0x60),
        _S.INVALID_PARAMETER: lambda s: s.ask(1, partition=s.p, access=_READ, type=99, parameter=0),
        _S.INVALID_VP_INDEX: lambda s: s.ask(1, partition=s.p, access=_READ, type=_IO, parameter=0, vp=9),
        _S.NOT_FOUND: lambda s: s.ask(1, partition=s.p, access=0, type=_IO, parameter=0),
        _S.NO_RESOURCES: _many_intercepts,
        _S.INSUFFICIENT_MEMORY: lambda s: s.poor(s.p).ask(
            1, partition=s.p, access=_READ, type=_IO, parameter=0
        ),
    },
    _C.REGISTER_INTERCEPT_RESULT: {
        _S.SUCCESS: lambda s: _waits(s).ask(1, partition=s.p, vp=0, type=_IO, value=7),
        _S.INVALID_VP_INDEX: lambda s: s.ask(1, partition=s.p, vp=9, type=_IO, value=0),
        _S.INVALID_VP_STATE: lambda s: s.ask(1, partition=s.p, vp=0, type=_IO, value=0),
        _S.INVALID_PARAMETER: lambda s: _waits(s).ask(1, partition=s.p, vp=0, type=_IO, value=1 << 16),
    },
    _C.ACCESS_PORT: {
        _S.SUCCESS: lambda s: s.ask(s.p, vp=0, port=0x60, size=1),
        _S.CALL_PENDING: _pending,
        _S.INVALID_VP_INDEX: lambda s: s.ask(s.p, vp=9, port=0x60, size=1),
        _S.INVALID_VP_STATE: lambda s: _waits(s).ask(s.p, vp=0, port=0x60, size=1),
        _S.INVALID_PARAMETER: lambda s: s.ask(s.p, vp=0, port=0x60, size=3),
    },
    _C.ACCESS_MEMORY: {
        _S.SUCCESS: lambda s: s.ask(1, vp=0, gpa=0, size=4),
        _S.CALL_PENDING: _hole,
        _S.INVALID_VP_INDEX: lambda s: s.ask(s.p, vp=9, gpa=0, size=4),
        _S.INVALID_VP_STATE: lambda s: _waits(s).ask(s.p, vp=0, gpa=0, size=4),
        _S.INVALID_PARAMETER: lambda s: s.ask(s.p, vp=0, gpa=0x100 << 12, size=4),
    },
    _C.ASSERT_VIRTUAL_INTERRUPT: {
        _S.SUCCESS: lambda s: s.ask(1, partition=s.p, vp=0, vector=0x40),
        _S.INVALID_VP_INDEX: lambda s: s.ask(1, partition=s.p, vp=9, vector=0x40),
        _S.INVALID_PARAMETER: lambda s: s.ask(1, partition=s.p, vp=0, vector=3),
    },
    _C.CLAIM_OVERLAY_PAGE: {
        _S.SUCCESS: lambda s: s.ask(s.p, page=int(OverlayPage.INTERRUPTS), vp=0),
        _S.INVALID_PARAMETER: lambda s: s.ask(s.p, page=9, vp=0),
        _S.INVALID_VP_INDEX: lambda s: s.ask(s.p, page=int(OverlayPage.INTERRUPTS), vp=9),
        _S.ACCESS_DENIED: lambda s: _strip(s, Privilege.ACCESS_REFERENCE_TSC).ask(
            s.p, page=int(OverlayPage.REFERENCE_TSC), vp=0
        ),
    },
    _C.CREATE_PORT: _creates_port(_C.CREATE_PORT),
    _C.CREATE_PORT_DEPRECATED: _creates_port(_C.CREATE_PORT_DEPRECATED),
    _C.CONNECT_PORT: _connects_port()
    | {_S.INVALID_PARAMETER: lambda s: s.ask(1, connection=7, port_partition=s.p, port=7, route=2)},
    _C.CONNECT_PORT_DEPRECATED: _connects_port(),
    _C.DELETE_PORT: {
        _S.SUCCESS: lambda s: s.ask(s.p, port=5),
        _S.INVALID_PORT_ID: lambda s: s.ask(s.p, port=99),
    },
    _C.DISCONNECT_PORT: {
        _S.SUCCESS: lambda s: s.ask(1, connection=5),
        _S.INVALID_CONNECTION_ID: lambda s: s.ask(1, connection=99),
    },
    _C.GET_PORT_PROPERTY: {
        _S.SUCCESS: lambda s: s.ask(s.p, port=6, property=0),
        _S.INVALID_PORT_ID: lambda s: s.ask(s.p, port=99, property=0),
        _S.UNKNOWN_PROPERTY: lambda s: s.ask(s.p, port=6, property=9),
    },
    _C.SET_PORT_PROPERTY: {
        _S.SUCCESS: lambda s: s.after(s.p, _C.CREATE_VP, vp=1).ask(s.p, port=5, property=_TARGET, value=1),
        _S.INVALID_PORT_ID: lambda s: s.ask(s.p, port=99, property=_TARGET, value=0),
        _S.UNKNOWN_PROPERTY: lambda s: s.ask(s.p, port=6, property=9, value=0),
        _S.INVALID_VP_INDEX: lambda s: s.ask(s.p, port=6, property=_TARGET, value=9),
    },
    _C.GET_PORT_COUNTS: {
        _S.SUCCESS: lambda s: s.ask(s.p, port=6),
        _S.INVALID_PORT_ID: lambda s: s.ask(s.p, port=99),
    },
    _C.CLAIM_DOORBELL: {
        _S.SUCCESS: lambda s: s.ask(s.p, port=5),
        _S.INVALID_PARAMETER: lambda s: s.ask(s.p),
        _S.INVALID_PORT_ID: lambda s: s.ask(s.p, port=6),
        _S.INVALID_CONNECTION_ID: lambda s: s.ask(1, connection=99),
        _S.INVALID_VP_INDEX: lambda s: (
            s.after(
                1,
                _C.CREATE_PORT,
                partition=s.p,
                port=8,
                connection_partition=1,
                type=_EVENT,
                sint=SINT,
                vp=3,
                flag_count=1,
            )
            .after(1, _C.CONNECT_PORT, connection=8, port_partition=s.p, port=8)
            .ask(1, connection=8)
        ),
        _S.OBJECT_IN_USE: lambda s: s.after(1, _C.CLAIM_DOORBELL, connection=5).ask(1, connection=5, flag=1),
    },
    _C.CLAIM_ENDPOINT: {
        _S.SUCCESS: lambda s: s.after(1, _C.CLAIM_ENDPOINT, connection=5).ask(s.p, port=5),
        _S.INVALID_PARAMETER: lambda s: s.ask(s.p),
        _S.INVALID_PORT_ID: lambda s: s.ask(s.p, port=6),
        _S.INVALID_CONNECTION_ID: lambda s: s.ask(1, connection=99),
        _S.NO_DATA: lambda s: s.ask(s.p, port=5),
    },
    _C.LOAD_DRIVER: {
        _S.SUCCESS: lambda s: _monolith(s).ask(s.p, partition=s.c),
        _S.INVALID_VP_INDEX: lambda s: s.after(s.p, _C.DELETE_VP, partition=s.c, vp=0).ask(
            s.p, partition=s.c
        ),
        _S.INVALID_VP_STATE: lambda s: _monolith(s).ask(1, partition=s.p),
        _S.OPERATION_DENIED: lambda s: s.ask(s.p, partition=s.c),
    },
    _C.POST_MESSAGE: {
        _S.SUCCESS: lambda s: s.ask(1, connection=6, type=1, payload=b"x"),
        _S.INVALID_CONNECTION_ID: lambda s: s.ask(1, connection=99, type=1, payload=b""),
        _S.INVALID_PORT_ID: lambda s: s.ask(1, connection=5, type=1, payload=b""),
        _S.INVALID_PARAMETER: lambda s: s.ask(1, connection=6, type=0, payload=b""),
        _S.INVALID_VP_INDEX: lambda s: _message_to_nobody(s).ask(1, connection=8, type=1, payload=b""),
        _S.INVALID_SYNIC_STATE: lambda s: s.silent(s.p, 1).ask(1, connection=6, type=1, payload=b""),
        _S.INSUFFICIENT_BUFFERS: lambda s: _fill_port(s).ask(1, connection=6, type=1, payload=b""),
    },
    _C.SIGNAL_EVENT: {
        _S.SUCCESS: lambda s: s.ask(1, connection=5, flag=3),
        _S.INVALID_CONNECTION_ID: lambda s: s.ask(1, connection=99),
        _S.INVALID_PORT_ID: lambda s: s.ask(1, connection=6),
        _S.INVALID_PARAMETER: lambda s: s.ask(1, connection=5, flag=4),
        _S.INVALID_VP_INDEX: lambda s: _event_to_nobody(s).ask(1, connection=8),
        _S.INVALID_SYNIC_STATE: lambda s: s.silent(s.p, 1).ask(1, connection=5),
    },
    _C.SIGNAL_EVENT_DIRECT: {
        _S.SUCCESS: lambda s: s.ask(1, partition=s.p, vp=0, sint=SINT, flag=2047),
        _S.INVALID_VP_INDEX: lambda s: s.ask(1, partition=s.p, vp=9, sint=SINT, flag=0),
        _S.INVALID_PARAMETER: lambda s: s.ask(1, partition=s.p, vp=0, sint=SINT, flag=2048),
        _S.INVALID_SYNIC_STATE: lambda s: s.silent(s.p, 1).ask(1, partition=s.p, vp=0, sint=SINT, flag=0),
    },
    _C.POST_MESSAGE_DIRECT: {
        _S.SUCCESS: lambda s: s.ask(1, partition=s.p, vp=0, sint=SINT, type=1, payload=b"x"),
        _S.INVALID_VP_INDEX: lambda s: s.ask(1, partition=s.p, vp=9, sint=SINT, type=1, payload=b""),
        _S.INVALID_PARAMETER: lambda s: s.ask(1, partition=s.p, vp=0, sint=0, type=1, payload=b""),
        _S.INVALID_SYNIC_STATE: lambda s: s.silent(s.p, 1).ask(
            1, partition=s.p, vp=0, sint=SINT, type=1, payload=b""
        ),
        _S.INSUFFICIENT_BUFFERS: lambda s: s.after(1, _C.POST_MESSAGE, connection=6, type=1, payload=b"").ask(
            1, partition=s.p, vp=0, sint=SINT, type=1, payload=b""
        ),
    },
    _C.MAP_STATS_PAGE: {
        _S.SUCCESS: lambda s: s.ask(s.p, type=int(StatsObject.PARTITION)),
        _S.INVALID_PARAMETER: lambda s: s.ask(s.p, type=99),
        _S.INVALID_LP_INDEX: lambda s: s.ask(s.p, type=int(StatsObject.LOGICAL_PROCESSOR), index=2),
        _S.INVALID_VP_INDEX: lambda s: s.ask(s.p, type=int(StatsObject.VP), index=9),
        _S.NO_RESOURCES: _many_pages,
        _S.INSUFFICIENT_MEMORY: lambda s: s.poor(s.p).ask(s.p, type=int(StatsObject.PARTITION)),
    },
    _C.UNMAP_STATS_PAGE: {
        _S.SUCCESS: lambda s: s.after(s.p, _C.MAP_STATS_PAGE, type=int(StatsObject.VP)).ask(
            s.p, type=int(StatsObject.VP)
        ),
        _S.INVALID_PARAMETER: lambda s: s.ask(s.p, type=99),
        _S.INVALID_LP_INDEX: lambda s: s.ask(s.p, type=int(StatsObject.LOGICAL_PROCESSOR), index=2),
        _S.NOT_FOUND: lambda s: s.ask(s.p, type=int(StatsObject.VP)),
    },
}


def _to_nobody(scene: Scene, **args: int) -> Scene:
    """A port of p's VP 3, which there is not, on the root's connection 8."""
    own = {"partition": scene.p, "port": 8, "connection_partition": 1, "sint": SINT, "vp": 3}
    scene.after(1, _C.CREATE_PORT, **own, **args)
    return scene.after(1, _C.CONNECT_PORT, connection=8, port_partition=scene.p, port=8)


def _message_to_nobody(scene: Scene) -> Scene:
    return _to_nobody(scene, type=_MESSAGE)


def _event_to_nobody(scene: Scene) -> Scene:
    return _to_nobody(scene, type=_EVENT, flag_count=1)
