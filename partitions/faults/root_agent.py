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
from partitions.placement import Devices
from partitions.stack.guest_bus import GuestBus
from partitions.stack.stack_resources import RootResources
from runtime.chaos.faults.kinds import Carrier, ParameterError
from runtime.chaos.faults.orders import Counts, FaultAgent, FaultRefused, Order, OrderError

FAULT_VERBS: Final = frozenset({"inject", "heal", "fault-counts"})


class RootAgent:
    """Of one root. In its trio task."""

    def __init__(self) -> None:
        # By who carries out; one may stand for several. Each is made when the first order comes.
        self._makers: Final[dict[Carrier, Callable[[], FaultAgent]]] = {}
        self._agents: Final[dict[Carrier, FaultAgent]] = {}
        self._own: ServerAgent | None = None

    def serve(self, board: FaultBoard, seam: Seam, devices: Callable[[], Devices]) -> ServerAgent:
        """For what the root serves itself; and orders to its driver partitions can be taken."""
        own = self._own = ServerAgent(board, lambda name: medium_of(devices().get(name)))

        def make() -> FaultAgent:
            from partitions.faults.server_orders import ServerOrders

            return ServerOrders(FaultSite(board, seam, own.look), devices)

        self._makers[Carrier.SERVER] = make
        return own

    def serve_stack(self, resources: RootResources, guests: Mapping[int, GuestBus]) -> None:
        """For the control plane. What a predecessor had armed there is ordered again by the platform."""

        def make() -> FaultAgent:
            from partitions.faults.stack_agent import StackAgent

            return StackAgent(resources, guests.values)

        self._makers[Carrier.STACK] = make

    def go_on(self) -> None:
        """With what a predecessor had armed in its own process."""
        if self._own is not None:
            self._own.look()

    def answer(self, verb: str, values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The verb and the values of the reply."""
        request = values.get("request")
        for carrier, make in self._makers.items():
            if carrier not in self._agents:
                self._agents[carrier] = make()
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
                for agent in set(self._agents.values()):
                    agent.heal(number if isinstance(number, int) else None)
                return {}
            case _:
                counts: dict[int, Counts] = {}
                for agent in set(self._agents.values()):
                    counts |= agent.counts()
                return {"counts": [[number, *astuple(one)] for number, one in counts.items()]}

    def _inject(self, table: object) -> None:
        from runtime.chaos.faults.catalogue import FAULTS

        try:
            order = Order.from_table(table)
            kind = FAULTS[order.kind]
            kind.settle(order.parameters)
        except (OrderError, ParameterError) as error:
            raise FaultRefused(str(error)) from None
        except KeyError as error:
            raise FaultRefused(f"no fault is named {error}") from None
        if (agent := self._agents.get(kind.carrier)) is None:
            raise FaultRefused(f"the root carries out no {order.kind}")
        agent.inject(order)
