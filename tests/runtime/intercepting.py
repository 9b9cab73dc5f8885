"""A parent that intercepts what its child does, in the state machine alone: install, access, answer."""

from runtime.abi import (
    ALL_PRIVILEGES,
    HvStatus,
    HypercallCode,
    InterceptType,
    MapFlags,
    RegisterName,
)
from runtime.hypervisor.machine import RootFailurePolicy
from tests.runtime.hypervisor_world import World
from tests.runtime.plain_synic import take_message

C = HypercallCode
R = RegisterName
SINT = 0
UART = 0x3F8
READ, WRITE = 1, 2
ZEROED = int(MapFlags.READ | MapFlags.WRITE | MapFlags.ZEROED)


def intercepting_world() -> tuple[World, int]:
    """The root listens, and a child runs; a successor would come for the root."""
    world = World(2048, RootFailurePolicy.STANDBY, successor_files=1)
    world.do(1, C.HEARTBEAT, within_ms=0)
    world.enable_synic(1, SINT)
    child = world.child(privileges=ALL_PRIVILEGES, pages=200)
    world.start(child)
    return world, child


def install(world: World, child: int, first: int, last: int, access: int = READ | WRITE) -> None:
    world.do(
        1,
        C.INSTALL_INTERCEPT,
        partition=child,
        access=access,
        type=int(InterceptType.IO_PORT_RANGE),
        parameter=first | last << 16,
    )


def access_port(world: World, child: int, port: int = UART, size: int = 1, **more: int) -> HvStatus:
    return world.status(child, C.ACCESS_PORT, **{"vp": 0, "port": port, "size": size, **more})


def message_of(world: World, partition: int = 1) -> tuple[int, int, bytes] | None:
    """What its parent finds in the slot; it says that it has taken it."""
    message = take_message(world.vps[partition, 0][0], SINT)
    if message is None:
        return None
    if message[3]:
        world.do(partition, C.SET_VP_REGISTERS, vp=0, registers=[[int(R.EOM), 0]])
    return message[:3]


def answer(
    world: World, child: int, *, rip: int | None = None, caller: int = 1, **registers: int
) -> HvStatus:
    pairs = [[int(getattr(R, name.upper())), value] for name, value in registers.items()]
    if rip is not None:
        pairs.append([int(R.RIP), rip])
    pairs.append([int(R.INTERCEPT_SUSPEND), 0])
    return world.status(caller, C.SET_VP_REGISTERS, partition=child, vp=0, registers=pairs)


def registers_of(world: World, child: int, *names: RegisterName) -> list[int]:
    found: dict[str, list[int]] = world.do(
        1, C.GET_VP_REGISTERS, partition=child, vp=0, names=[int(name) for name in names]
    )
    return found["values"]
