"""A guest's last words: CRASH_P0 to P4, and perhaps a message in its memory, become an event for the platform.

Source: TLFS, "Guest Crash Enlightenment".
"""

from __future__ import annotations

from typing import Final

from runtime.abi import PAGE_BYTES
from runtime.hypervisor.effects import Announce
from runtime.hypervisor.machine import Machine
from runtime.hypervisor.partition import Partition

CRASH_REPORTS_MAX: Final = 4  # of one process: who dies more often than that is not dying
CRASH_MESSAGE_BYTES_MAX: Final = 4096


def report(machine: Machine, partition: Partition, vp: int, has_message: bool) -> None:
    guest = partition.guest
    guest.crash_reports += 1
    if guest.crash_reports > CRASH_REPORTS_MAX:
        return
    fields: dict[str, object] = {
        "id": partition.id,
        "name": machine.path(partition),
        "vp": vp,
        "parameters": list(guest.crash),
        "at_ns": machine.now_ns,
    }
    if has_message:
        fields["message"] = _message(machine, partition, guest.crash[3], guest.crash[4])
    machine.effects.append(Announce("partition.crashed", fields))


def _message(machine: Machine, partition: Partition, gpa: int, length: int) -> str | None:
    """As much of it as one slot and one page hold. None: it is not where the guest says."""
    space = partition.gpa
    if not (found := space.touching(gpa // PAGE_BYTES, 1)):
        return None
    entry = found[0]
    offset = gpa - entry.gpfn * PAGE_BYTES
    count = min(length, CRASH_MESSAGE_BYTES_MAX, entry.pages * PAGE_BYTES - offset)
    return machine.resources.read_slot(entry.slot, offset, count).decode(errors="replace")
