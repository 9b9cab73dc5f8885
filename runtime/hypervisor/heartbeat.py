"""Promises to call again in time, and what becomes of those who do not: hung is not dead, but no better.

A stopped process, a busy loop and a deadlock look alike from here: the partition's control thread does not call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from runtime.abi import ROOT_PARTITION
from runtime.hypervisor.effects import CheckHeartbeat, KillPartition
from runtime.hypervisor.programs import Process
from runtime.hypervisor.replies import DONE, Reply

if TYPE_CHECKING:
    from runtime.hypervisor.machine import Call, Machine
    from runtime.hypervisor.partitions import Partition

TAKE_OVER_MS_MAX: Final = 10_000  # a new root's first promise is made for it


def heartbeat(call: Call, *, within_ms: int) -> Reply:
    promise(call.machine, call.caller, within_ms)
    if call.caller.id == ROOT_PARTITION:
        call.machine.root_is_up = True
    return DONE


def promise(machine: Machine, partition: Partition, within_ms: int) -> None:
    had_timer = partition.heartbeat_due_ns is not None
    partition.heartbeat_within_ms = within_ms
    partition.heartbeat_due_ns = machine.now_ns + within_ms * 1_000_000 if within_ms else None
    # A timer that is running looks at the new time itself, unless the new time comes before it.
    if partition.heartbeat_due_ns is not None and (
        not had_timer or partition.heartbeat_due_ns < partition.heartbeat_timer_ns
    ):
        _arm(machine, partition, partition.heartbeat_due_ns)


def forget(partition: Partition) -> None:
    """Its process has ended; what it promised died with it."""
    partition.heartbeat_due_ns = None


def check(machine: Machine, partition: Partition) -> None:
    """A timer has come. Kill who is late; look again later at who is not."""
    due_ns = partition.heartbeat_due_ns
    if due_ns is None or partition.process is not Process.RUNNING:
        return
    if machine.now_ns < due_ns:
        _arm(machine, partition, due_ns)
        return
    partition.heartbeat_due_ns = None
    partition.failure = f"hung: no heartbeat for {partition.heartbeat_within_ms} ms"
    machine.effects.append(KillPartition(partition.id))


def _arm(machine: Machine, partition: Partition, due_ns: int) -> None:
    partition.heartbeat_timer_ns = due_ns
    machine.effects.append(CheckHeartbeat(partition.id, max(due_ns - machine.now_ns, 0) // 1_000_000 + 1))
