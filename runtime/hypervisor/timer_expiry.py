"""The timers of all VPs, on the one clock of the broker.

What a timer does when it expires: a message to its SINT, or a vector. How often the timers of one partition may,
so that a tiny period costs its owner and nobody else.
"""

from __future__ import annotations

from typing import Final

from runtime.abi import TIMER_EXPIRED_MESSAGE
from runtime.hypervisor import reference_time, synic
from runtime.hypervisor.interrupts import request_vector
from runtime.hypervisor.machine import Machine
from runtime.hypervisor.message import Message
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.virtual_processor import VirtualProcessor
from runtime.hypervisor.vps import arm_timer

EXPIRIES_AT_ONCE_MAX: Final = 64  # then calls have their turn


def expire_due(machine: Machine) -> None:
    """Every timer whose moment has come, the earliest first; not more than EXPIRIES_AT_ONCE_MAX of them."""
    for _ in range(EXPIRIES_AT_ONCE_MAX):
        key = machine.timers.pop_due(machine.now_ns)
        if key is None:
            return
        partition_id, vp_index, index = key
        owner = machine.partitions[partition_id]
        timer = owner.vps[vp_index].timers[index]
        if not timer.booked and (when_ns := owner.timer_pace.take(machine.now_ns)) > machine.now_ns:
            timer.booked = True
            machine.timers.set(key, when_ns)
        elif machine.faults is not None and (late_ns := machine.faults.puts_off(key)) is not None:
            machine.timers.set(key, late_ns)
        else:
            timer.booked = False
            _expire(machine, owner, owner.vps[vp_index], index)


def _expire(machine: Machine, owner: Partition, vp: VirtualProcessor, index: int) -> None:
    timer = vp.timers[index]
    sint, vector = timer.sint, timer.vector
    expired = timer.expire(reference_time.read(machine, owner))
    if timer.is_direct:
        request_vector(machine, owner, vp, vector)
    else:
        vp.queues[sint].append(Message(0, TIMER_EXPIRED_MESSAGE, b"", index, expired))
        synic.deliver(machine, owner, vp, sint)
    arm_timer(machine, owner, vp, index)
