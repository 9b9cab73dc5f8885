"""How each status of the calls about partitions and their memory comes about: see `hypercall_scene`."""

from __future__ import annotations

from typing import Any

from runtime.abi import (
    PARTITION_DEPTH_MAX,
    PARTITIONS_MAX,
    SLOTS_PER_PARTITION_MAX,
    HvStatus,
    HypercallCode,
    MapFlags,
    PartitionProperty,
)
from runtime.hypervisor.partition import Partition
from tests.runtime.hypercall_scene import NEW, READ_WRITE, Cases, Scene

_C, _S, _P = HypercallCode, HvStatus, PartitionProperty
_PROGRAM = {"module": "a.b", "name": "x"}


def _deepest(scene: Scene) -> HvStatus:
    caller = scene.d
    scene.w.machine.partitions[caller].privileges = scene.w.machine.partitions[1].privileges
    scene.w.machine.partitions[caller].depth = PARTITION_DEPTH_MAX
    try:
        return scene.w.hypervisor.handle(caller, int(scene.code), {})[0].status
    finally:
        scene.w.machine.partitions[caller].depth = 3


def _full_machine(scene: Scene) -> HvStatus:
    partitions = scene.w.machine.partitions
    known = dict(partitions)
    for number in range(PARTITIONS_MAX):
        partitions.setdefault(10_000 + number, Partition(10_000 + number, 1, 1, 0))
    try:
        return scene.w.hypervisor.handle(1, int(scene.code), {})[0].status
    finally:
        partitions.clear()
        partitions.update(known)


def _full_space(scene: Scene, **args: Any) -> HvStatus:
    for number in range(SLOTS_PER_PARTITION_MAX - 1):
        scene.w.hypervisor.handle(
            scene.p, int(_C.MAP_GPA_PAGES), {"gpfn": 0x1000 + number, "pages": 1, "flags": NEW}
        )
    return scene.ask(scene.p, **args)


def _with_domain(scene: Scene, slots: bool = False) -> Scene:
    scene.after(scene.p, _C.CREATE_DEVICE_DOMAIN, domain=3)
    if slots:
        scene.after(scene.p, _C.MAP_DEVICE_GPA_PAGES, domain=3, gpfn=0x100, pages=1, flags=READ_WRITE)
    return scene


def _with_device(scene: Scene, slots: bool = False) -> Scene:
    return _with_domain(scene, slots).after(scene.p, _C.ATTACH_DEVICE_DOMAIN, domain=3, device=scene.c)


def _device_maps(scene: Scene) -> Scene:
    return _with_device(scene, slots=True).after(
        scene.p,
        _C.MAP_GPA_PAGES,
        partition=scene.c,
        gpfn=0x900,
        pages=4,
        flags=READ_WRITE,
        source_partition=scene.p,
        source_gpfn=0x100,
    )


def _mapped(scene: Scene) -> Scene:
    """The root maps p's slot."""
    args = {"gpfn": 0x700, "pages": 1, "flags": 1, "source_partition": scene.p, "source_gpfn": 0x100}
    return scene.after(1, _C.MAP_GPA_PAGES, **args)


_SPARSE: dict[str, Any] = {"flags": 1, "pages": [[0x700, 0x200]]}

CASES: Cases = {
    _C.CREATE_PARTITION: {
        _S.SUCCESS: lambda s: s.ask(s.p),
        _S.INVALID_PARAMETER: lambda s: s.ask(s.p, flags=1),
        _S.PARTITION_TOO_DEEP: _deepest,
        _S.NO_RESOURCES: _full_machine,
        _S.INSUFFICIENT_MEMORY: lambda s: s.poor(s.p).ask(s.p),
    },
    _C.INITIALIZE_PARTITION: {
        _S.SUCCESS: lambda s: s.after(s.p, _C.DEPOSIT_MEMORY, partition=s.u, pages=9).ask(s.p, partition=s.u),
        _S.INSUFFICIENT_MEMORY: lambda s: s.ask(s.p, partition=s.u),
    },
    _C.FINALIZE_PARTITION: {_S.SUCCESS: lambda s: s.ask(s.p, partition=s.c)},
    _C.DELETE_PARTITION: {
        _S.SUCCESS: lambda s: s.ask(s.p, partition=s.u),
        _S.OPERATION_DENIED: lambda s: s.after(s.p, _C.DEPOSIT_MEMORY, partition=s.u, pages=9).ask(
            s.p, partition=s.u
        ),
    },
    _C.GET_PARTITION_ID: {_S.SUCCESS: lambda s: s.ask(s.p)},
    _C.GET_NEXT_CHILD_PARTITION: {_S.SUCCESS: lambda s: s.ask(s.p)},
    _C.GET_PARTITION_PROPERTY: {
        _S.SUCCESS: lambda s: s.ask(s.p, partition=s.c, property=int(_P.CPU_WEIGHT)),
        _S.UNKNOWN_PROPERTY: lambda s: s.ask(s.p, property=int(_P.PROGRAM)),
        _S.NO_DATA: lambda s: s.ask(s.p, property=int(_P.EXIT_STATUS)),
    },
    _C.SET_PARTITION_PROPERTY: {
        _S.SUCCESS: lambda s: s.ask(s.p, partition=s.c, property=int(_P.CPU_WEIGHT), value=200),
        _S.UNKNOWN_PROPERTY: lambda s: s.ask(s.p, partition=s.c, property=int(_P.PROGRAM), value=0),
        _S.PROPERTY_VALUE_OUT_OF_RANGE: lambda s: s.ask(
            s.p, partition=s.c, property=int(_P.CPU_WEIGHT), value=0
        ),
        _S.INVALID_CPU_GROUP_ID: lambda s: s.ask(s.p, partition=s.c, property=int(_P.CPU_GROUP_ID), value=1),
        _S.INVALID_PARTITION_STATE: lambda s: s.ask(
            s.p, partition=s.c, property=int(_P.PHYSICAL_ADDRESS_WIDTH), value=40
        ),
        _S.ACCESS_DENIED: lambda s: (
            s.after(
                1, _C.SET_PARTITION_PROPERTY, partition=s.s, property=int(_P.PRIVILEGE_FLAGS), value=1 << 32
            )
            .after(s.s, _C.CREATE_PARTITION)
            .ask(s.s, partition=s.s + 1, property=int(_P.PRIVILEGE_FLAGS), value=1 << 40)
        ),
        _S.OPERATION_DENIED: lambda s: s.ask(s.p, partition=s.c, property=int(_P.STATE), value=0),
    },
    _C.GET_PARTITION_PROPERTY_EX: {
        _S.SUCCESS: lambda s: s.ask(s.p, partition=s.c, property=int(_P.PROGRAM)),
        _S.UNKNOWN_PROPERTY: lambda s: s.ask(s.p, property=1),
        _S.NO_DATA: lambda s: s.ask(s.p, partition=s.u, property=int(_P.PROGRAM)),
    },
    _C.SET_PARTITION_PROPERTY_EX: {
        _S.SUCCESS: lambda s: s.ask(s.p, 1, partition=s.c, property=int(_P.PROGRAM), value=_PROGRAM),
        _S.UNKNOWN_PROPERTY: lambda s: s.ask(s.p, partition=s.c, property=1, value={}),
        _S.OPERATION_DENIED: lambda s: s.ask(s.p, partition=s.c, property=int(_P.VMM_CAPABILITIES), value={}),
        _S.INVALID_PARAMETER: lambda s: s.ask(s.p, partition=s.c, property=int(_P.PROGRAM), value={}),
        _S.INVALID_PARTITION_STATE: lambda s: s.ask(
            1, partition=s.p, property=int(_P.PROGRAM), value=_PROGRAM
        ),
        _S.OBJECT_IN_USE: lambda s: s.ask(
            s.p,
            partition=s.u,
            property=int(_P.PROGRAM),
            value={"module": "a.b", "name": f"child{s.c}"},
        ),
    },
    _C.GET_BIRTH: {_S.SUCCESS: lambda s: s.ask(s.p)},
    _C.WATCH_CHILDREN: {_S.SUCCESS: lambda s: s.ask(s.p)},
    _C.HEARTBEAT: {_S.SUCCESS: lambda s: s.ask(s.p, within_ms=10)},
    _C.DEPOSIT_MEMORY: {
        _S.SUCCESS: lambda s: s.ask(s.p, partition=s.c, pages=1),
        _S.INVALID_PARAMETER: lambda s: s.ask(s.p, partition=s.c, pages=0),
        _S.INSUFFICIENT_MEMORY: lambda s: s.ask(s.p, partition=s.c, pages=1 << 40),
    },
    _C.WITHDRAW_MEMORY: {
        _S.SUCCESS: lambda s: s.ask(s.p, partition=s.c, pages=1),
        _S.INVALID_PARAMETER: lambda s: s.ask(s.p, partition=s.c, pages=0),
        _S.INSUFFICIENT_MEMORY: lambda s: s.ask(s.p, partition=s.c, pages=1 << 40),
    },
    _C.GET_MEMORY_BALANCE: {_S.SUCCESS: lambda s: s.ask(s.p)},
    _C.MAP_GPA_PAGES: {
        _S.SUCCESS: lambda s: s.ask(s.p, gpfn=0x700, pages=1, flags=NEW),
        _S.INVALID_PARAMETER: lambda s: s.ask(s.p, gpfn=0x700, pages=0, flags=NEW),
        _S.OBJECT_IN_USE: lambda s: s.ask(s.p, gpfn=0x103, pages=1, flags=NEW),
        _S.NO_RESOURCES: lambda s: _full_space(s, gpfn=0x9000, pages=1, flags=NEW),
        _S.INSUFFICIENT_MEMORY: lambda s: s.poor(s.p).ask(s.p, gpfn=0x700, pages=1, flags=NEW),
        _S.INVALID_PARTITION_ID: lambda s: s.ask(
            s.p, gpfn=0x700, pages=1, flags=1, source_partition=99, source_gpfn=0
        ),
        _S.ACCESS_DENIED: lambda s: s.ask(
            s.p, gpfn=0x700, pages=1, flags=1, source_partition=s.s, source_gpfn=0
        ),
        _S.INVALID_PARTITION_STATE: lambda s: s.dead(s.c, s.p).ask(
            s.p, gpfn=0x700, pages=1, flags=1, source_partition=s.c, source_gpfn=0x200
        ),
    },
    _C.MAP_SPARSE_GPA_PAGES: {
        _S.SUCCESS: lambda s: s.ask(s.p, source_partition=s.c, **_SPARSE),
        _S.INVALID_PARAMETER: lambda s: s.ask(s.p, source_partition=s.c, flags=1, pages=[]),
        _S.OBJECT_IN_USE: lambda s: s.ask(
            s.p, source_partition=s.c, flags=1, pages=[[0x700, 0x200], [0x701, 0x200]]
        ),
        _S.NO_RESOURCES: lambda s: _full_space(
            s, source_partition=s.c, flags=1, pages=[[0x9000, 0x200], [0x9010, 0x201]]
        ),
        _S.INSUFFICIENT_MEMORY: lambda s: s.poor(s.p).ask(s.p, source_partition=s.c, **_SPARSE),
        _S.INVALID_PARTITION_ID: lambda s: s.ask(s.p, source_partition=99, **_SPARSE),
        _S.ACCESS_DENIED: lambda s: s.ask(s.p, source_partition=s.s, **_SPARSE),
        _S.INVALID_PARTITION_STATE: lambda s: s.dead(s.c, s.p).ask(s.p, source_partition=s.c, **_SPARSE),
    },
    _C.UNMAP_GPA_PAGES: {
        _S.SUCCESS: lambda s: s.ask(s.p, gpfn=0x100, pages=4),
        _S.INVALID_PARAMETER: lambda s: s.ask(s.p, gpfn=0x100, pages=1),
        _S.OBJECT_IN_USE: lambda s: _mapped(s).ask(s.p, gpfn=0x100, pages=4),
    },
    _C.CLAIM_GPA_PAGES: {
        _S.SUCCESS: lambda s: s.ask(s.p, gpfn=0x100, pages=1),
        _S.INVALID_PARAMETER: lambda s: s.ask(s.p, gpfn=0x100, pages=0),
        _S.NOT_FOUND: lambda s: s.ask(s.p, gpfn=0x900, pages=1),
    },
    _C.READ_GPA: {
        _S.SUCCESS: lambda s: s.ask(s.p, partition=s.c, vp=0, gpa=0x200 << 12, size=16),
        _S.INVALID_VP_INDEX: lambda s: s.ask(s.p, partition=s.c, vp=9, gpa=0, size=1),
        _S.INVALID_PARAMETER: lambda s: s.ask(s.p, partition=s.c, vp=0, gpa=0xFFF, size=2),
    },
    _C.WRITE_GPA: {
        _S.SUCCESS: lambda s: s.ask(s.p, partition=s.c, vp=0, gpa=0x200 << 12, data=b"x"),
        _S.INVALID_VP_INDEX: lambda s: s.ask(s.p, partition=s.c, vp=9, gpa=0, data=b"x"),
        _S.INVALID_PARAMETER: lambda s: s.ask(s.p, partition=s.c, vp=0, gpa=0, data=b""),
    },
    _C.CREATE_DEVICE_DOMAIN: {
        _S.SUCCESS: lambda s: s.ask(s.p, domain=3),
        _S.OBJECT_IN_USE: lambda s: _with_domain(s).ask(s.p, domain=3),
        _S.INSUFFICIENT_MEMORY: lambda s: s.poor(s.p).ask(s.p, domain=3),
    },
    _C.DELETE_DEVICE_DOMAIN: {
        _S.SUCCESS: lambda s: _with_domain(s, slots=True).ask(s.p, domain=3),
        _S.NOT_FOUND: lambda s: s.ask(s.p, domain=3),
        _S.OBJECT_IN_USE: lambda s: _with_device(s).ask(s.p, domain=3),
    },
    _C.ATTACH_DEVICE_DOMAIN: {
        _S.SUCCESS: lambda s: _with_domain(s).ask(s.p, domain=3, device=s.c),
        _S.NOT_FOUND: lambda s: s.ask(s.p, domain=3, device=s.c),
        _S.INVALID_DEVICE_ID: lambda s: _with_domain(s).ask(s.p, domain=3, device=s.s),
        _S.INVALID_DEVICE_STATE: lambda s: _with_device(s).ask(s.p, domain=3, device=s.c),
        _S.OBJECT_IN_USE: lambda s: _with_domain(_mapped_into_child(s)).ask(s.p, domain=3, device=s.c),
    },
    _C.DETACH_DEVICE_DOMAIN: {
        _S.SUCCESS: lambda s: _with_device(s).ask(s.p, device=s.c),
        _S.INVALID_DEVICE_ID: lambda s: s.ask(s.p, device=s.s),
        _S.INVALID_DEVICE_STATE: lambda s: s.ask(s.p, device=s.c),
        _S.OBJECT_IN_USE: lambda s: _device_maps(s).ask(s.p, device=s.c),
    },
    _C.MAP_DEVICE_GPA_PAGES: {
        _S.SUCCESS: lambda s: _with_domain(s).ask(s.p, domain=3, gpfn=0x100, pages=1, flags=1),
        _S.NOT_FOUND: lambda s: s.ask(s.p, domain=3, gpfn=0x100, pages=1, flags=1),
        _S.INVALID_PARAMETER: lambda s: _with_domain(s).ask(s.p, domain=3, gpfn=0x300, pages=1, flags=1),
        _S.INSUFFICIENT_MEMORY: lambda s: (
            _with_domain(s).poor(s.p).ask(s.p, domain=3, gpfn=0x100, pages=1, flags=1)
        ),
    },
    _C.UNMAP_DEVICE_GPA_PAGES: {
        _S.SUCCESS: lambda s: _with_domain(s, slots=True).ask(s.p, domain=3, gpfn=0x100, pages=1),
        _S.NOT_FOUND: lambda s: s.ask(s.p, domain=3, gpfn=0x100, pages=1),
        _S.INVALID_PARAMETER: lambda s: _with_domain(s).ask(s.p, domain=3, gpfn=0x300, pages=1),
        _S.OBJECT_IN_USE: lambda s: _device_maps(s).ask(s.p, domain=3, gpfn=0x100, pages=1),
    },
}


def _mapped_into_child(scene: Scene) -> Scene:
    args = {"gpfn": 0x900, "pages": 1, "source_partition": scene.p, "source_gpfn": 0x100}
    return scene.after(scene.p, _C.MAP_GPA_PAGES, partition=scene.c, flags=int(MapFlags.READ), **args)
