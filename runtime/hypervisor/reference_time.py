"""A partition's reference time: 100 ns units since it was created, unless its parent has stopped or set it.

Source: TLFS "Timers", partition reference time; HvPartitionPropertyTimeFreeze, HvPartitionPropertyReferenceTime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from runtime.hypervisor.machine import Machine
    from runtime.hypervisor.partitions import Partition

MAX_100NS: Final = 2**56  # more than two thousand years


def read(machine: Machine, partition: Partition) -> int:
    now_ns = machine.now_ns if partition.frozen_ns is None else partition.frozen_ns
    return max(now_ns - partition.created_ns, 0) // 100


def freeze(machine: Machine, partition: Partition, frozen: bool) -> None:
    """Once it goes on, it goes on from where it stopped."""
    if frozen and partition.frozen_ns is None:
        partition.frozen_ns = machine.now_ns
    elif not frozen and partition.frozen_ns is not None:
        partition.created_ns += machine.now_ns - partition.frozen_ns
        partition.frozen_ns = None


def write(machine: Machine, partition: Partition, value_100ns: int) -> None:
    """Of a time that stands still."""
    assert partition.frozen_ns is not None
    partition.created_ns = partition.frozen_ns - 100 * value_100ns
