"""The registers of a VP: what they are at reset, and what each of them takes."""

import pytest

from runtime.abi import SINT_MASKED, HvStatus, HypercallCode, RegisterName, sint_register
from tests.runtime.hypervisor_world import World

_C = HypercallCode


def test_registers_have_their_reset_values() -> None:
    world = World()
    child = world.child()
    names = [
        RegisterName.EXPLICIT_SUSPEND,
        RegisterName.VP_INDEX,
        RegisterName.SCONTROL,
        RegisterName.SVERSION,
        RegisterName.SIEFP,
        RegisterName.SIMP,
        RegisterName.EOM,
        sint_register(15),
    ]
    values = world.do(1, _C.GET_VP_REGISTERS, partition=child, vp=0, names=[int(name) for name in names])
    assert values == {"values": [1, 0, 0, 1, 0, 0, 0, SINT_MASKED]}
    world.start(child)
    assert world.do(1, _C.GET_VP_REGISTERS, partition=child, vp=0, names=[0]) == {"values": [0]}


def test_time_counts_from_the_partitions_creation_in_100_ns() -> None:
    world = World()
    world.hypervisor.machine.now_ns = 0
    reply, effects = world.hypervisor.handle(1, int(_C.CREATE_PARTITION), {}, now_ns=1_000)
    world.carry_out(effects)
    child = reply.values["partition"]
    world.do(1, _C.DEPOSIT_MEMORY, partition=child, pages=20)
    world.do(1, _C.INITIALIZE_PARTITION, partition=child)
    world.do(1, _C.CREATE_VP, partition=child, vp=0)
    args = {"partition": child, "vp": 0, "names": [int(RegisterName.TIME_REF_COUNT)]}
    reply, _ = world.hypervisor.handle(1, int(_C.GET_VP_REGISTERS), args, now_ns=3_599)
    assert reply.values == {"values": [25]}


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        (RegisterName.SVERSION, 1, HvStatus.ACCESS_DENIED),
        (RegisterName.VP_INDEX, 1, HvStatus.ACCESS_DENIED),
        (RegisterName.SCONTROL, 2, HvStatus.INVALID_REGISTER_VALUE),
        (RegisterName.SIMP, 2, HvStatus.INVALID_REGISTER_VALUE),
        (RegisterName.SIMP, 0xFFFF_FFFF_FFFF_F001, HvStatus.SUCCESS),
        (RegisterName.SINT0 + 1, 15, HvStatus.INVALID_REGISTER_VALUE),
        (RegisterName.SINT0 + 1, 15 | SINT_MASKED, HvStatus.SUCCESS),
        (RegisterName.SINT0 + 1, 1 << 21, HvStatus.INVALID_REGISTER_VALUE),
        (0x30000, 0, HvStatus.UNKNOWN_REGISTER_NAME),
        (2**64 - 1, 0, HvStatus.UNKNOWN_REGISTER_NAME),
    ],
)
def test_registers_take_what_their_bits_allow_and_all_or_none_are_written(
    name: int, value: int, status: HvStatus
) -> None:
    world = World()
    registers = [[int(RegisterName.SIEFP), 1], [int(name), value]]
    assert world.status(1, _C.SET_VP_REGISTERS, vp=0, registers=registers) == status
