"""The clock of somebody outside of a machine: how long each operation took, and its moments, for stamps."""

from bus.native import Histogram
from runtime.measure.devices.path_walk import ClientMoments


class ClientClock:
    """Of one load."""

    def __init__(self) -> None:
        self.latency = Histogram()
        self.moments: list[ClientMoments] = []
        self.whole_ns = 0  # of all operations together

    def record(self, begun: int, ended: int, moments: ClientMoments) -> None:
        """`begun`, `ended`: just outside of what `moments` says, so that what lies between is seen, too."""
        self.latency.record(ended - begun)
        self.whole_ns += ended - begun
        self.moments.append(moments)

    @property
    def mean_ns(self) -> float:
        return self.whole_ns / len(self.moments) if self.moments else 0.0
