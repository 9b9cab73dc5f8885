"""What the hypervisor keeps of a partition, for `partvisor save`: it is read while the partition stands still.

Loaded when it is asked for the first time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from runtime.abi import (
    SINTS_PER_VP,
    TIMERS_PER_VP,
    MapFlags,
    RegisterName,
    sint_register,
    timer_config_register,
    timer_count_register,
)
from runtime.hypervisor import reference_time
from runtime.hypervisor.replies import SlotHandle

if TYPE_CHECKING:
    from runtime.hypervisor.machine import Machine
    from runtime.hypervisor.partition import Partition
    from runtime.hypervisor.virtual_processor import VirtualProcessor

SLOTS_PER_ANSWER_MAX: Final = 200  # each own one brings a descriptor
_VECTOR_BYTES: Final = 32


def partition_state(machine: Machine, partition: Partition) -> dict[str, object]:
    pool = partition.pool
    return {
        "reference_time": reference_time.read(machine, partition),
        "memory_pages": pool.available + pool.in_use,
        "used_pages": pool.in_use,
        "privileges": int(partition.privileges),
        "os_id": partition.guest.os_id,
        "reference_tsc": partition.guest.reference_tsc,
        "vps": sorted(partition.vps),
    }


def processor_state(machine: Machine, partition: Partition, vp: VirtualProcessor) -> dict[str, object]:
    now = reference_time.read(machine, partition)
    if vp.interrupt_page is not None:
        vectors = bytes(vp.interrupt_page[:_VECTOR_BYTES])
    else:
        vectors = vp.requested.to_bytes(_VECTOR_BYTES, "little")
    return {
        "index": vp.index,
        "registers": {str(name): value for name, value in _registers(vp).items()},
        "sim": bytes(vp.sim_page),
        "sief": bytes(vp.sief_page),
        "vectors": vectors,
        "timers_left": [None if timer.due is None else max(timer.due - now, 0) for timer in vp.timers],
    }


def _registers(vp: VirtualProcessor) -> Mapping[int, int]:
    found: dict[int, int] = {
        RegisterName.SCONTROL: vp.scontrol,
        RegisterName.SIMP: vp.simp,
        RegisterName.SIEFP: vp.siefp,
    }
    found |= {sint_register(sint): vp.sints[sint] for sint in range(SINTS_PER_VP)}
    for number in range(TIMERS_PER_VP):
        found[timer_config_register(number)] = vp.timers[number].config
        found[timer_count_register(number)] = vp.timers[number].count
    for name in range(RegisterName.RAX, RegisterName.RFLAGS + 1):
        found[name] = vp.intercept.registers[name - RegisterName.RAX]
    return found


def slots_after(partition: Partition, after: int) -> tuple[dict[str, object], list[SlotHandle]]:
    """A page of its GPA space from number `after` on, and its own slots of that page, to be read only."""
    space = partition.gpa
    bases = [base for base in space.bases if base >= after]
    entries = [space.entries[base] for base in bases[:SLOTS_PER_ANSWER_MAX]]
    rows = [[one.gpfn, one.pages, bool(one.access & MapFlags.WRITE), one.own] for one in entries]
    answer = {"slots": rows, "more": len(bases) > len(entries)}
    return answer, [SlotHandle(one.slot, False) for one in entries if one.own]
