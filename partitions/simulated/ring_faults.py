"""Faults of a device's rings and of a guest's pages, on a simulated machine: those that hold requests up.

A request is executed in one turn here, so what breaks a ring between two instructions has no place; what is late, or
does not come until it is healed, is late by the clock.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from partitions.simulated.armed import Armed, Desk
from runtime.chaos.faults.orders import FaultRefused


def _holds(desk: Desk, armed: Armed, ns: Callable[[], float | None]) -> None:
    machine, device = desk.machine, armed.order.target
    if device not in machine.media:
        raise FaultRefused(f"{device}: no disk of that name; there are {', '.join(machine.media)}")

    def waits(name: str) -> float | None:
        return ns() if name == device and desk.strikes(armed) else 0.0

    machine.ring_faults.append(waits)
    armed.undo.append(machine.let_rings_go)
    armed.undo.append(lambda: machine.ring_faults.remove(waits))


def _late(desk: Desk, armed: Armed) -> None:
    _holds(desk, armed, lambda: armed.ns("delay_ms"))


def _until_healed(desk: Desk, armed: Armed) -> None:
    _holds(desk, armed, lambda: None)


RING_FAULTS: Final[Mapping[str, Callable[[Desk, Armed], None]]] = MappingProxyType(
    {"ring-delayed": _late, "ring-not-drained": _until_healed, "memory-slow": _late}
)
