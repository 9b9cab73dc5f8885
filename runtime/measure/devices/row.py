"""One operation of `partvisor bench devices`, over all rounds, beside its peers."""

import statistics
from dataclasses import dataclass, field
from typing import Any, Final

from bus.native import Histogram
from runtime.measure.architectures import LoadFigures
from runtime.measure.devices.flow_split import FlowSplit
from runtime.measure.devices.operations import Means, Operation, OutsideOperation, Peer
from runtime.measure.devices.path_walk import PathSplit
from runtime.measure.devices.paths import ASKER
from runtime.measure.devices.peers import PeerFigures
from runtime.measure.paired_ratio import Interval, ratio_of
from runtime.reserved_names import HYPERVISOR, ROOT

OTHERS: Final = "others"
PROCESSES: Final = (ASKER, ROOT, HYPERVISOR, OTHERS)


@dataclass(slots=True)
class Row:
    """One operation, over all rounds."""

    operation: Operation | OutsideOperation
    figures: list[LoadFigures] = field(default_factory=list)
    peers: dict[Peer, list[PeerFigures]] = field(default_factory=dict)
    missing: dict[Peer, str] = field(default_factory=dict)  # peers that this machine has not, and why
    split: PathSplit | None = None  # of an operation that waits for its answer
    flow: FlowSplit | None = None  # of one that does not, and has many under way
    unmeasured: str | None = None  # why this host can't measure it

    @property
    def can_be_traced(self) -> bool:
        return self.unmeasured is None and bool(self.operation.way or self.operation.overlaps)

    @property
    def is_flow(self) -> bool:
        """No time in it is one side's alone: see FlowSplit."""
        return self.unmeasured is None and not self.operation.way and not self.operation.overlaps

    @property
    def latency(self) -> Histogram:
        whole = Histogram()
        for each in self.figures:
            whole.merge(each.latency)
        return whole

    @property
    def per_second(self) -> float:
        return statistics.median(each.per_second for each in self.figures)

    @property
    def gb_per_second(self) -> float | None:
        size = self.operation.bytes_per_operation
        return self.per_second * size / 1e9 if size else None

    def cpu_us(self, process: str) -> float:
        """An operation; of all guests but the asker, OTHERS."""
        named = {ASKER, ROOT, HYPERVISOR}

        def of(each: LoadFigures) -> float:
            taken = [
                used.cpu_ns
                for name, used in each.usage.items()
                if name == process or (process == OTHERS and name not in named)
            ]
            return sum(taken) / each.operations / 1e3

        return statistics.median(map(of, self.figures))

    def ratio(self, peer: Peer) -> Interval:
        """Ours by the peer's, of what the peer is measured for."""
        theirs = self.peers[peer]
        ours = self.figures[: len(theirs)]
        if peer.means is Means.LATENCY:
            return ratio_of([one.latency.percentile(50) for one in ours], [one.p50_ns for one in theirs])
        return ratio_of([one.per_second for one in ours], [one.per_second for one in theirs])

    @property
    def is_met(self) -> bool:
        if (wanted := self.operation.at_least_gb_per_s) is None:
            return True
        return (found := self.gb_per_second) is not None and found >= wanted

    def to_json(self) -> dict[str, Any]:
        if self.unmeasured is not None:
            return {
                "device": self.operation.device,
                "operation": self.operation.text,
                "missing": self.unmeasured,
            }
        latency, is_timed = self.latency, self.operation.means is Means.LATENCY
        cpu = {name: self.cpu_us(name) for name in PROCESSES}
        return {
            "device": self.operation.device,
            "operation": self.operation.text,
            "p50_us": latency.percentile(50) / 1e3 if is_timed else None,
            "p99_us": latency.percentile(99) / 1e3 if is_timed else None,
            "per_second": self.per_second,
            "gb_per_s": self.gb_per_second,
            "cpu_us": cpu,
            "split": self.split.to_json() if self.split is not None else None,
            "flow": self.flow.to_json() if self.flow is not None else None,
            "goal_gb_per_s": self.operation.at_least_gb_per_s,
            "met": self.is_met,
            "peers": [
                {
                    "peer": peer.kind.value,
                    "p50_us": statistics.median(one.p50_ns for one in found) / 1e3 or None,
                    "per_second": statistics.median(one.per_second for one in found),
                    "cpu_us": statistics.median(one.cpu_ns for one in found) / 1e3,
                    "ratio": self.ratio(peer).to_json(),
                    "of": peer.means.value,
                }
                for peer, found in self.peers.items()
            ]
            + [{"peer": peer.kind.value, "missing": reason} for peer, reason in self.missing.items()],
        }
