"""Faults of doorbells and heartbeats, on a simulated machine."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from partitions.simulated.armed import Armed, Desk
from partitions.simulated.clock import NS_PER_S
from partitions.simulated.interrupts import Wake
from partitions.simulated.machine import SimulatedMachine
from partitions.simulated.process import Process
from runtime.chaos.faults.hypervisor_kinds import EVERYBODY
from runtime.chaos.faults.orders import FaultRefused
from runtime.simulation.actions import ROOT_LABEL


def wake_all(machine: SimulatedMachine, name: str) -> None:
    """Every line of a partition rings once."""
    for guest in machine.programs.values():
        if name in (EVERYBODY, guest.process.name):
            guest.wake()
    rings = machine.lives[-1].rings if name in (EVERYBODY, ROOT_LABEL) else []
    for driver in machine.drivers.values():
        if name in (EVERYBODY, driver.label):
            rings = rings + driver.rings
    for ring in list(rings):
        ring.wake()


def _each(desk: Desk, armed: Armed, strike: Callable[[Wake], None]) -> None:
    """`strike` in the place of each interrupt to the target that is hit."""
    machine, target = desk.machine, armed.order.target
    if target != EVERYBODY:
        machine.process(target)

    def passes(name: str, wake: Wake) -> bool:
        if target not in (EVERYBODY, name) or not desk.strikes(armed):
            return False
        strike(wake)
        return True

    machine.interrupts.filters.append(passes)
    armed.undo.append(lambda: machine.interrupts.filters.remove(passes))


def _lost(desk: Desk, armed: Armed) -> None:
    """Healed, each line rings once."""
    _each(desk, armed, lambda wake: None)
    armed.undo.append(lambda: wake_all(desk.machine, armed.order.target))


def _duplicate(desk: Desk, armed: Armed) -> None:
    def twice(wake: Wake) -> None:
        wake()
        desk.machine.clock.after(2 * desk.machine.costs.wake, wake)

    _each(desk, armed, twice)


def _delayed(desk: Desk, armed: Armed) -> None:
    _each(desk, armed, lambda wake: desk.machine.clock.after(armed.ns("delay_ms"), wake))


def _storm(desk: Desk, armed: Armed) -> None:
    machine, target = desk.machine, armed.order.target
    pause_ns = NS_PER_S / float(armed.order.parameters["rate"])

    def ring() -> None:
        if armed.is_healed:
            return
        if desk.strikes(armed):
            wake_all(machine, target)
        machine.clock.after(pause_ns, ring)

    ring()


def _lost_across_reconnect(desk: Desk, armed: Armed) -> None:
    """The first interrupt after each end of a root."""
    machine, target = desk.machine, armed.order.target
    due = [False]

    def died(process: Process, reason: str) -> None:
        due[0] = due[0] or process.name == ROOT_LABEL

    def passes(name: str, wake: Wake) -> bool:
        if not due[0] or target not in (EVERYBODY, name):
            return False
        due[0] = False
        return desk.strikes(armed)

    machine.deaths.append(died)
    machine.interrupts.filters.append(passes)
    armed.undo.append(lambda: machine.deaths.remove(died))
    armed.undo.append(lambda: machine.interrupts.filters.remove(passes))
    armed.undo.append(lambda: wake_all(machine, target))


def _heartbeat_lost(desk: Desk, armed: Armed) -> None:
    """The last one that arrived is of this moment."""
    machine, target = desk.machine, armed.order.target
    machine.process(target)
    if target != ROOT_LABEL and target not in machine.drivers:
        raise FaultRefused(f"{target} sends no heartbeats")
    if desk.strikes(armed):
        machine.promises.mute(target)
        armed.undo.append(lambda: machine.promises.unmute(target))


INTERRUPT_FAULTS: Final[Mapping[str, Callable[[Desk, Armed], None]]] = MappingProxyType(
    {
        "interrupt-lost": _lost,
        "interrupt-duplicate": _duplicate,
        "interrupt-delayed": _delayed,
        "interrupt-storm": _storm,
        "interrupt-lost-across-reconnect": _lost_across_reconnect,
        "heartbeat-lost": _heartbeat_lost,
    }
)
