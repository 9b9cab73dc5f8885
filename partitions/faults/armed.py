"""One fault that is armed in this process: its order, its decisions, and whether it was healed meanwhile."""

import threading
from collections.abc import Callable

from runtime.chaos.faults.knobs import Trigger
from runtime.chaos.faults.orders import Counts, Order

_LOOK_S = 0.02  # while a fault keeps a thread: how late its healing, or the end, may be seen


class Armed:
    """Any thread may wait; who asks for strikes takes turns."""

    def __init__(self, order: Order, trigger: Trigger | None = None) -> None:
        self.order, self.trigger = order, trigger or Trigger(order.knobs, order.seed)
        self.healed = threading.Event()

    @property
    def kind(self) -> str:
        return self.order.kind

    @property
    def counts(self) -> Counts:
        return Counts(self.trigger.passes, self.trigger.fired)

    @property
    def delay_s(self) -> float:
        return float(self.order.parameters["delay_ms"]) / 1000

    def wait_until_healed(self, is_over: Callable[[], bool] = lambda: False) -> None:
        """Or until that is true."""
        while not self.healed.wait(_LOOK_S) and not is_over():
            pass
