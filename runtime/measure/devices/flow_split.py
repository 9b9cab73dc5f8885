"""Who works while a flow passes, and how much: processor time, side by side.

In a flow many frames or requests are under way at once, and the sides work at the same time: there is no stretch of
time that belongs to one of them. What can be told apart is whose processor time it takes. Of a process that is what the
kernel has counted. Within the root a thread that stamps the channel of a device is its server's (VSP), and what that
thread does behind the channel, such as a network's switch, is its work, too; all others are the rest of the root:
readers of backends, the control plane.

It is no waiting, and a side that spins for the next frame works. The side that is busy all the time sets the rate.
"""

import enum
import resource
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bus.trace import SERVER, STAMPS_MIN
from runtime.config.model import MachineConfig
from runtime.exits import CommandError
from runtime.measure.architectures import LoadFigures, measure
from runtime.measure.devices.operations import Operation
from runtime.measure.devices.paths import ASKER
from runtime.reserved_names import HYPERVISOR, ROOT
from runtime.trace_file import Capture

_NS_PER_S: Final = 1e9


class Side(enum.Enum):
    """Who works. The order is that of the columns."""

    GUEST = "guest"
    OTHERS = "other guests"
    VSP = "VSP"  # of a network with its switch
    ROOT = "rest of the root"
    HYPERVISOR = "hypervisor"
    CLIENT = "client"  # outside of the machine; its start is counted, too


@dataclass(frozen=True, slots=True)
class FlowSplit:
    """Of one flow, from its begin to its end."""

    operations: int
    seconds: float
    cpu_ns: Mapping[Side, float]

    @property
    def whole_ns(self) -> float:
        """Of all sides, an operation."""
        return sum(self.cpu_ns.values()) / self.operations

    def per_operation_ns(self, side: Side) -> float:
        return self.cpu_ns.get(side, 0.0) / self.operations

    def share(self, side: Side) -> float:
        """Of the processor time of all sides."""
        whole = sum(self.cpu_ns.values())
        return self.cpu_ns.get(side, 0.0) / whole if whole else 0.0

    def busy(self, side: Side) -> float:
        """Of the flow's time; above 1 where several threads of one side run at once."""
        return self.cpu_ns.get(side, 0.0) / (self.seconds * _NS_PER_S)

    @property
    def busiest(self) -> Side:
        return max(self.cpu_ns, key=lambda side: self.cpu_ns[side])

    def to_json(self) -> dict[str, Any]:
        return {
            "operations": self.operations,
            "seconds": round(self.seconds, 3),
            "cpu_us": {side.value: round(self.per_operation_ns(side) / 1e3, 3) for side in self.cpu_ns},
            "busy": {side.value: round(self.busy(side), 3) for side in self.cpu_ns},
        }


def serving_threads(capture: Capture) -> frozenset[int]:
    """Threads of the root's that serve a channel."""
    return frozenset(
        track.thread
        for process in capture.processes
        if process.name == ROOT
        for track in process.tracks
        if any(stamp.channel & SERVER for stamp in track.stamps)
    )


def split_by_side(figures: LoadFigures, serving: frozenset[int], client_ns: float | None = None) -> FlowSplit:
    """`serving`: of the root's threads. `client_ns`: of whoever uses the machine from outside, if somebody does."""
    used = {name: float(each.cpu_ns) for name, each in figures.usage.items()}
    served = float(sum(ns for thread, ns in figures.threads.items() if thread in serving))
    root = used.pop(ROOT, 0.0)
    cpu_ns = {Side.GUEST: used.pop(ASKER, 0.0)}
    hypervisor = used.pop(HYPERVISOR, 0.0)
    if used:
        cpu_ns[Side.OTHERS] = sum(used.values())
    # Both are looked at one after the other: a thread's time may be newer than its process's.
    cpu_ns |= {Side.VSP: served, Side.ROOT: max(root - served, 0.0), Side.HYPERVISOR: hypervisor}
    if client_ns is not None:
        cpu_ns[Side.CLIENT] = client_ns
    return FlowSplit(figures.operations, figures.seconds, cpu_ns)


def flow_splits(machine: MachineConfig, operations: Sequence[Operation]) -> list[FlowSplit]:
    """Of a machine whose guest makes these flows one after the other. It is traced, to know its threads apart.

    CommandError: it failed. KeyboardInterrupt: nothing of it is left.
    """
    with tempfile.TemporaryDirectory(prefix="partvisor-bench-") as place:
        trace = Path(place) / "trace"
        boot = measure(machine, threads=True, trace=trace, trace_stamps=STAMPS_MIN)
        by_name = {load.name: load for load in boot.loads}
        if not trace.exists() or any(one.load not in by_name for one in operations):
            raise CommandError("the machine left no trace, or not every load; see: partvisor run --trace")
        serving = serving_threads(Capture.read(trace))
    return [split_by_side(by_name[one.load], serving) for one in operations]


def children_cpu_ns() -> float:
    """Of all processes of ours that have ended and that we have waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) * _NS_PER_S
