"""What the platform asks the root about faults: who is to carry an order out, and how often it has struck.

The root's processes come and go; what stands, and the counts, are in memory that outlives them (fault_board).
"""

from collections.abc import Callable, Mapping
from dataclasses import astuple
from typing import Any, Final

from bus.seam import Seam
from partitions.drivers.driven_device import medium_of
from partitions.faults.fault_board import FaultBoard
from partitions.faults.fault_site import FaultSite
from partitions.faults.server_agent import ServerAgent
from partitions.faults.server_orders import ServerOrders
from partitions.faults.stack_agent import StackAgent
from partitions.placement import Devices
from partitions.stack.guest_bus import GuestBus
from partitions.stack.stack_resources import RootResources
from runtime.chaos.faults.catalogue import FAULTS
from runtime.chaos.faults.kinds import Carrier, ParameterError
from runtime.chaos.faults.orders import Counts, FaultAgent, FaultRefused, Order, OrderError

FAULT_VERBS: Final = frozenset({"inject", "heal", "fault-counts"})


class RootAgent:
    """Of one root. In its trio task."""

    def __init__(self) -> None:
        self.agents: Final[dict[Carrier, FaultAgent]] = {}  # by who carries out; one may stand for several
        self._own: ServerAgent | None = None

    def serve(self, board: FaultBoard, seam: Seam, devices: Callable[[], Devices]) -> ServerAgent:
        """For what the root serves itself; and orders to its driver partitions can be taken."""
        own = self._own = ServerAgent(board, lambda name: medium_of(devices().get(name)))
        self.agents[Carrier.SERVER] = ServerOrders(FaultSite(board, seam, own.look), devices)
        return own

    def serve_stack(self, resources: RootResources, guests: Mapping[int, GuestBus]) -> None:
        """For the control plane. What a predecessor had armed there is ordered again by the platform."""
        self.agents[Carrier.STACK] = StackAgent(resources, guests.values)

    def go_on(self) -> None:
        """With what a predecessor had armed in its own process."""
        if self._own is not None:
            self._own.look()

    def answer(self, verb: str, values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The verb and the values of the reply."""
        request = values.get("request")
        try:
            return "answered", {"request": request, **self._carry_out(verb, values)}
        except FaultRefused as refused:
            return "error", {"request": request, "reason": str(refused)}

    def _carry_out(self, verb: str, values: Mapping[str, Any]) -> dict[str, Any]:
        match verb:
            case "inject":
                self._inject(values.get("order"))
                return {}
            case "heal":
                number = values.get("number")
                for agent in set(self.agents.values()):
                    agent.heal(number if isinstance(number, int) else None)
                return {}
            case _:
                counts: dict[int, Counts] = {}
                for agent in set(self.agents.values()):
                    counts |= agent.counts()
                return {"counts": [[number, *astuple(one)] for number, one in counts.items()]}

    def _inject(self, table: object) -> None:
        try:
            order = Order.from_table(table)
            kind = FAULTS[order.kind]
            kind.settle(order.parameters)
        except (OrderError, ParameterError) as error:
            raise FaultRefused(str(error)) from None
        except KeyError as error:
            raise FaultRefused(f"no fault is named {error}") from None
        if (agent := self.agents.get(kind.carrier)) is None:
            raise FaultRefused(f"the root carries out no {order.kind}")
        agent.inject(order)
