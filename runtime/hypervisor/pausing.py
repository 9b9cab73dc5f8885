"""Pausing partitions: their processes are stopped, and their time stands still, until they go on where they were.

A pause is the machine's operator's, or by the property SUSPEND a parent's. What a paused partition promised to do in
time is not held against it.
"""

from __future__ import annotations

from runtime.abi import PartitionState
from runtime.hypervisor import heartbeat, reference_time
from runtime.hypervisor.effects import SuspendPartition
from runtime.hypervisor.machine import Machine
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.program import Process
from runtime.hypervisor.vps import clock_changed


def suspend(machine: Machine, partition: Partition, suspended: bool) -> None:
    """Its process is stopped, or continued. Its time goes on meanwhile."""
    if suspended is partition.suspended:
        return
    partition.suspended = suspended
    if partition.process is Process.RUNNING:
        machine.effects.append(SuspendPartition(partition.id, suspended))
    if (
        not suspended
        and partition.heartbeat_within_ms
        and partition.process in (Process.STARTING, Process.RUNNING)
    ):
        heartbeat.promise(machine, partition, partition.heartbeat_within_ms)


def pause(machine: Machine, partition: Partition) -> None:
    """Its clock stops, too, unless it stands still already."""
    if partition.state is not PartitionState.ACTIVE or partition.suspended:
        return
    partition.pause_froze = partition.frozen_ns is None
    if partition.pause_froze:
        reference_time.freeze(machine, partition, True)
        clock_changed(machine, partition)
    suspend(machine, partition, True)


def resume(machine: Machine, partition: Partition) -> None:
    """One that its own parent has suspended goes on as well."""
    if partition.pause_froze:
        partition.pause_froze = False
        reference_time.freeze(machine, partition, False)
        clock_changed(machine, partition)
    suspend(machine, partition, False)


def tree(machine: Machine, partition: Partition) -> list[Partition]:
    """It, and all below it, parents first."""
    below = [machine.partitions[child] for child in partition.children if child in machine.partitions]
    return [partition, *(each for child in below for each in tree(machine, child))]
