"""One order that is armed on a simulated machine, and who keeps it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from partitions.simulated.clock import NS_PER_MS
from partitions.simulated.machine import SimulatedMachine
from runtime.chaos.faults.knobs import Trigger
from runtime.chaos.faults.orders import Order


@dataclass(slots=True)
class Armed:
    """One order that is armed."""

    order: Order
    trigger: Trigger
    undo: list[Callable[[], None]] = field(default_factory=list)  # when it is healed
    is_healed: bool = False

    def ns(self, name: str) -> float:
        """A parameter that is milliseconds."""
        return float(self.order.parameters[name]) * NS_PER_MS


class Desk(Protocol):
    """Whose machine it is, and who keeps account."""

    @property
    def machine(self) -> SimulatedMachine: ...
    def strikes(self, armed: Armed) -> bool:
        """At each pass of its seam."""
