"""A process that serves devices, as whoever orders faults of it sees it."""

from collections.abc import Callable
from dataclasses import dataclass

from bus.seam import Seam, Step
from partitions.faults.fault_board import FaultBoard
from runtime.chaos.faults.orders import Counts, FaultRefused, Order
from runtime.chaos.faults.step_kinds import KILL_AT_STEP


@dataclass(frozen=True, slots=True)
class FaultSite:
    board: FaultBoard
    seam: Seam
    knock: Callable[[], None]  # it is to look at its board; nobody has to be there

    def inject(self, order: Order) -> None:
        """FaultRefused: no room; or it is to die at another step already."""
        standing = list(self.board.orders())
        if order.kind == KILL_AT_STEP and order.number not in (there.number for there in standing):
            if any(there.kind == KILL_AT_STEP for there in standing):
                raise FaultRefused(f"{order.target} is to die at a step already: heal that first")
            try:
                step = Step.named(str(order.parameters["step"]))
                self.seam.arm(step, order.knobs.space + 1, int(order.parameters["deaths"]))
            except ValueError as error:
                raise FaultRefused(str(error)) from None
        self.board.put(order)
        self.knock()

    def heal(self, number: int | None) -> None:
        healed = [order for order in self.board.orders() if number in (None, order.number)]
        if any(order.kind == KILL_AT_STEP for order in healed):
            self.seam.disarm()
        self.board.take(number)
        if healed:
            self.knock()

    def counts(self) -> dict[int, Counts]:
        counts = self.board.counts()
        for order in self.board.orders():
            if order.kind == KILL_AT_STEP:
                counts[order.number] = self._deaths(order)
        return counts

    def _deaths(self, order: Order) -> Counts:
        """By what the seam has left."""
        period = order.knobs.space + 1
        fired = max(int(order.parameters["deaths"]) - self.seam.deaths_left, 0)
        return Counts(fired * period + max(period - self.seam.passes_left, 0), fired)
