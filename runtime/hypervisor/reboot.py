"""A warm restart: every partition ends, the root among them, and a new root finds the machine as the first one did.

The hypervisor stays, and so do the ids that it has given out. Nothing of guests or of the root survives: memory, ports,
pending messages and the saved state go, and every page is the root's again.
"""

from __future__ import annotations

from runtime.abi import PAGE_BYTES, ROOT_PARTITION
from runtime.hypervisor import partitions
from runtime.hypervisor.effects import ReplaceRoot
from runtime.hypervisor.machine import Machine
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.ports import release_connection, release_port
from runtime.hypervisor.program import Process
from runtime.hypervisor.virtual_processor import GuestRegisters, VirtualProcessor
from runtime.hypervisor.vps import release_vp, stop_timers


def settle(machine: Machine) -> None:
    """After any process's end, while a reboot is wanted: go on as far as possible."""
    root = machine.partitions[ROOT_PARTITION]
    if not machine.rebooting or root.process is not Process.ENDED:
        return
    partitions.finalize_children(machine, root)
    if root.children:  # their processes are being killed; each one's end leads here again
        return
    _wipe(machine, root)
    machine.rebooting, machine.root_is_up = False, False
    machine.root_failures_ns.clear()
    machine.root_generation += 1
    root.process, root.files = Process.STARTING, machine.root_files
    machine.effects.append(ReplaceRoot())


def _wipe(machine: Machine, root: Partition) -> None:
    """It keeps its VP 0, whose pages the next process is born with; all else goes."""
    for connection in list(root.connections):
        release_connection(machine, root, connection)
    for port in list(root.ports):
        release_port(machine, root, port)
    partitions.release_objects(machine, root)
    for index in [index for index in root.vps if index]:
        release_vp(machine, root, index)
    before = root.vps[0]
    stop_timers(machine, root, before)
    root.vps[0] = VirtualProcessor(0, before.sim_page, before.sief_page, running=True)
    root.vps[0].interrupt_page = before.interrupt_page
    for page in (before.sim_page, before.sief_page, before.interrupt_page):
        if page is not None:
            page[:PAGE_BYTES] = bytes(PAGE_BYTES)
    root.guest = GuestRegisters()
    root.exit_status = root.failure = None
