"""Promises to call again in time, and what becomes of those who do not: hung is not dead, but no better.

A stopped process, a busy loop and a deadlock look alike from here: the partition's control thread does not call.
"""

from __future__ import annotations

from typing import Final

from runtime.abi import ROOT_PARTITION
from runtime.hypervisor.effects import CheckHeartbeat, KillPartition
from runtime.hypervisor.machine import Call, Machine
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.program import Process
from runtime.hypervisor.replies import DONE, Reply

HELD_LOOK_MS: Final = 50  # until the next look at one that is late because the scheduler holds it
TAKE_OVER_MS_MAX: Final = 10_000  # a new root's first promise is made for it


def heartbeat(call: Call, *, within_ms: int) -> Reply:
    had_promised = call.caller.heartbeat_within_ms > 0
    faults = call.machine.faults
    if faults is not None and had_promised and within_ms and faults.loses_heartbeat(call.caller):
        return DONE
    promise(call.machine, call.caller, within_ms)
    if call.caller.id == ROOT_PARTITION:
        call.machine.root_is_up = True
        call.machine.root_leaves = had_promised and within_ms == 0
    return DONE


def promise(machine: Machine, partition: Partition, within_ms: int) -> None:
    """Takes the place of what it promised before. A process may promise before we know that it was started.

    Who lives in our own process is not held to anything: his death would be everybody's, and he is our own code.
    """
    partition.heartbeat_within_ms = within_ms
    if not within_ms or partition.is_loaded:
        partition.heartbeat_due_ns = None
        return
    due_ns = partition.heartbeat_due_ns = machine.now_ns + within_ms * 1_000_000
    # A timer that comes before looks at the new time itself: a promise renewed in time costs no timer.
    if partition.heartbeat_timer_ns is None or due_ns < partition.heartbeat_timer_ns:
        _arm(machine, partition, due_ns)


def forget(partition: Partition) -> None:
    """Its process has ended; what it promised died with it. The timer finds nothing, or its successor's promise."""
    partition.heartbeat_due_ns = None


def check(machine: Machine, partition: Partition) -> None:
    """Its timer has come. Kill who is late; look again later at who is not."""
    partition.heartbeat_timer_ns = None
    due_ns = partition.heartbeat_due_ns
    if due_ns is None:
        return
    if partition.suspended:  # it cannot call; its promise begins anew when it goes on
        partition.heartbeat_due_ns = None
        return
    if machine.now_ns < due_ns:
        _arm(machine, partition, due_ns)
        return
    if partition.held_since_ns is not None:  # it cannot call either; `let` will move its promise
        _arm(machine, partition, machine.now_ns + HELD_LOOK_MS * 1_000_000)
        return
    partition.heartbeat_due_ns = None
    if partition.process not in (Process.STARTING, Process.RUNNING):
        return
    partition.failure = f"hung: no heartbeat for {partition.heartbeat_within_ms} ms"
    machine.effects.append(KillPartition(partition.id))


def hold(partition: Partition, now_ns: int) -> None:
    """The scheduler stops it."""
    partition.held_since_ns = now_ns


def let(partition: Partition, now_ns: int) -> None:
    """It goes on. In the time between it could not keep a promise, so that time does not count."""
    if partition.held_since_ns is not None and partition.heartbeat_due_ns is not None:
        partition.heartbeat_due_ns += now_ns - partition.held_since_ns
    partition.held_since_ns = None


def _arm(machine: Machine, partition: Partition, due_ns: int) -> None:
    partition.heartbeat_timer_ns = due_ns
    machine.effects.append(CheckHeartbeat(partition.id, max(due_ns - machine.now_ns, 0) // 1_000_000 + 1))
