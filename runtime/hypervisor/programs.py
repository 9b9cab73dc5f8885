"""Setting a partition's program, and reading it. Its files are descriptors that the creator hands over with it."""

from __future__ import annotations

from collections.abc import Mapping

from runtime.abi import FILES_PER_PROGRAM_MAX, HvStatus, PartitionState
from runtime.hypervisor.effects import DropFiles, KeepFiles
from runtime.hypervisor.machine import Call, Machine
from runtime.hypervisor.program import Program
from runtime.hypervisor.replies import DONE, Refused, Reply


def granted_to_process(machine: Machine, partition: int) -> list[int]:
    """Its pages, VPs and files, by which its process is bounded. Who is no partition yet, a standby, has none."""
    if (target := machine.partitions.get(partition)) is None:
        return [0, 1, 0]
    return [target.pool.available + target.pool.in_use, len(target.vps), target.files]


def set_program(call: Call, value: Mapping[str, object]) -> Reply:
    machine, target = call.machine, call.target
    program = Program.parse(value)
    if call.files > FILES_PER_PROGRAM_MAX:
        raise Refused(HvStatus.INVALID_PARAMETER)
    if not target.may_start:
        raise Refused(HvStatus.INVALID_PARTITION_STATE)
    if target.parent is not None:
        siblings = (machine.partitions[child] for child in machine.partitions[target.parent].children)
        if any(
            other is not target and other.name == program.name and other.state is not PartitionState.FINALIZED
            for other in siblings
        ):
            raise Refused(HvStatus.OBJECT_IN_USE)
    target.program = program
    if target.files:
        machine.effects.append(DropFiles(target.id))
    target.files = call.files
    if call.files:
        machine.effects.append(KeepFiles(target.id))
    return DONE


def get_program(call: Call) -> Reply:
    program = call.target.program
    if program is None:
        raise Refused(HvStatus.NO_DATA)
    value = {
        "module": program.module,
        "name": program.name,
        "args": program.args,
        "files": call.target.files,
    }
    return Reply(values={"value": value})
