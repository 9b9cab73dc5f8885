"""A partition's reference time: 100 ns units since it was created, unless its parent has stopped or set it.

A fault on purpose may make it run wrong: it drifts. It never goes back: no drift is as slow as to stand still.

Source: TLFS "Timers", partition reference time; HvPartitionPropertyTimeFreeze, HvPartitionPropertyReferenceTime.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from runtime.hypervisor.machine import Machine
from runtime.hypervisor.partition import Partition

MAX_100NS: Final = 2**56  # more than two thousand years


def read(machine: Machine, partition: Partition) -> int:
    return max(elapsed_ns(machine, partition), 0) // 100


def elapsed_ns(machine: Machine, partition: Partition) -> int:
    now_ns = machine.now_ns if partition.frozen_ns is None else partition.frozen_ns
    added_ns = 0 if partition.drift is None else partition.drift.added_ns(now_ns)
    return now_ns - partition.created_ns + added_ns


def moment_ns(partition: Partition, time_100ns: int) -> int:
    """Of CLOCK_MONOTONIC, when the partition's time, which runs, is this."""
    shown_ns = partition.created_ns + time_100ns * 100
    return shown_ns if partition.drift is None else partition.drift.moment_ns(shown_ns)


def freeze(machine: Machine, partition: Partition, frozen: bool) -> None:
    """Once it goes on, it goes on from where it stopped."""
    if frozen and partition.frozen_ns is None:
        partition.frozen_ns = machine.now_ns
    elif not frozen and partition.frozen_ns is not None:
        stood_ns = machine.now_ns - partition.frozen_ns
        partition.created_ns += stood_ns
        if (drift := partition.drift) is not None:
            until_ns = None if drift.until_ns is None else drift.until_ns + stood_ns
            partition.drift = replace(drift, since_ns=drift.since_ns + stood_ns, until_ns=until_ns)
        partition.frozen_ns = None


def write(machine: Machine, partition: Partition, value_100ns: int) -> None:
    """Of a time that stands still."""
    assert partition.frozen_ns is not None
    partition.created_ns = partition.frozen_ns - 100 * value_100ns
    if (drift := partition.drift) is not None:
        partition.created_ns += drift.added_ns(partition.frozen_ns)
