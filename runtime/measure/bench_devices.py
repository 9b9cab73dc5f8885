"""`partvisor bench devices`: each device class through a whole machine, where its time goes, and a peer beside it.

Each round boots a machine for every class and lets its guests measure; the peers of the same round are measured just
behind. A ratio is of one round's own two figures. The split comes from one more boot, traced: a stamp costs tens of
nanoseconds, which no other figure here shall bear. Where the device's user is outside of the machine, its clock is
there, too (runtime.measure.devices.outside), and there is no split.
"""

import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bus.native import Histogram
from runtime.config.model import WaitingKind
from runtime.exits import CommandError, ExitCode
from runtime.measure.architectures import LoadFigures, measure
from runtime.measure.conditions import busy_text
from runtime.measure.devices.machines import MACHINES
from runtime.measure.devices.operations import (
    OPERATIONS,
    OUTSIDE_OPERATIONS,
    Means,
    Operation,
    OutsideOperation,
    Peer,
)
from runtime.measure.devices.outside import OUTSIDE, NotHere, measure_outside
from runtime.measure.devices.path_split import traced_split
from runtime.measure.devices.peers import PROGRAMS, PeerFigures, Peers
from runtime.measure.goals import conditions
from runtime.measure.paired_ratio import Interval, ratio_of
from runtime.measure.reference_programs import reference_programs
from runtime.reports import print_json, print_record, print_table

ROUNDS: Final = 6  # the fewest that know an interval
SECONDS: Final = 0.3  # of each load and each peer
QUICK_SECONDS: Final = 0.1
DEVICES: Final = (*MACHINES, *OUTSIDE)
_ASKER: Final = "asker"
_ROOT: Final = "root"
_HYPERVISOR: Final = "hypervisor"

Say = Callable[[str], None]


@dataclass(slots=True)
class Row:
    """One operation, over all rounds."""

    operation: Operation | OutsideOperation
    figures: list[LoadFigures] = field(default_factory=list)
    peers: dict[Peer, list[PeerFigures]] = field(default_factory=dict)
    missing: dict[Peer, str] = field(default_factory=dict)  # peers that this machine has not, and why
    split: dict[str, float] = field(default_factory=dict)
    unmeasured: str | None = None  # why this host can't measure it

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
        """An operation; of all guests but the asker, "others"."""
        named = {_ASKER, _ROOT, _HYPERVISOR}

        def of(each: LoadFigures) -> float:
            taken = [
                used.cpu_ns
                for name, used in each.usage.items()
                if name == process or (process == "others" and name not in named)
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
        cpu = {name: self.cpu_us(name) for name in (_ASKER, _ROOT, _HYPERVISOR, "others")}
        return {
            "device": self.operation.device,
            "operation": self.operation.text,
            "p50_us": latency.percentile(50) / 1e3 if is_timed else None,
            "p99_us": latency.percentile(99) / 1e3 if is_timed else None,
            "per_second": self.per_second,
            "gb_per_s": self.gb_per_second,
            "cpu_us": cpu,
            "split": {place: round(share, 4) for place, share in self.split.items()},
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


def measure_devices(
    devices: Collection[str],
    rounds: int,
    seconds: float,
    waiting: WaitingKind,
    cpus: tuple[int, int],
    say: Say,
) -> list[Row]:
    """CommandError: a machine failed. KeyboardInterrupt: nothing is left."""
    known: tuple[Operation | OutsideOperation, ...] = (*OPERATIONS, *OUTSIDE_OPERATIONS)
    rows = [Row(operation) for operation in known if operation.device in devices]
    with (
        reference_programs(names=PROGRAMS) as programs,
        tempfile.TemporaryDirectory(prefix="partvisor-bench-") as place,
    ):
        peers, folder = Peers(programs, waiting, cpus, seconds), Path(place)
        for number in range(rounds):
            for device in devices:
                say(f"round {number + 1} of {rounds}: {device}")
                ours = [row for row in rows if row.operation.device == device]
                if any(row.unmeasured is not None for row in ours):
                    continue
                if device in OUTSIDE:
                    _from_outside(ours, folder, seconds, waiting, cpus)
                else:
                    _one_machine(ours, folder, seconds, waiting, cpus)
                for row in ours:
                    _its_peers(row, peers)
        for row in rows:
            operation = row.operation
            if isinstance(operation, Operation) and operation.means is Means.LATENCY:
                say(f"where the time goes: {operation.device}, {operation.text}")
                values = _values([operation], seconds)
                machine = MACHINES[operation.device].config(folder, waiting, cpus, values)
                row.split = traced_split(machine)
    return rows


def _values(operations: Sequence[Operation], seconds: float) -> dict[str, Any]:
    loads = ", ".join(one.toml.replace("<seconds>", f"{seconds}") for one in operations)
    return {"loads": f"[{loads}]", "seconds": f"{float(seconds)}"}


def _one_machine(
    rows: Sequence[Row], folder: Path, seconds: float, waiting: WaitingKind, cpus: tuple[int, int]
) -> None:
    device = rows[0].operation.device
    operations = [row.operation for row in rows if isinstance(row.operation, Operation)]
    boot = measure(MACHINES[device].config(folder, waiting, cpus, _values(operations, seconds)))
    by_name = {load.name: load for load in boot.loads}
    for row, operation in zip(rows, operations, strict=True):
        if (load := by_name.get(operation.load)) is None:
            raise CommandError(f"{device}: {operation.load!r} was not reported, but {sorted(by_name)}")
        row.figures.append(load)


def _from_outside(
    rows: Sequence[Row], folder: Path, seconds: float, waiting: WaitingKind, cpus: tuple[int, int]
) -> None:
    operations = [row.operation for row in rows if isinstance(row.operation, OutsideOperation)]
    try:
        found = measure_outside(operations, folder, seconds, waiting, cpus)
    except NotHere as error:
        for row in rows:
            row.unmeasured = str(error)
        return
    for row, load in zip(rows, found, strict=True):
        row.figures.append(load)


def _its_peers(row: Row, peers: Peers) -> None:
    for peer in () if row.unmeasured is not None else row.operation.peers:
        if peer in row.missing:
            continue
        try:
            row.peers.setdefault(peer, []).append(peers.measure(peer))
        except CommandError as error:
            row.missing[peer] = str(error).partition("\n")[0]
            row.peers.pop(peer, None)


# -- what is printed


def figure_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    found = []
    for row in rows:
        plain = row.to_json()
        if row.unmeasured is not None:
            text = f"{row.operation.text}: not measured: {row.unmeasured}"
            found.append({"device": row.operation.device, "operation": text})
            continue
        found.append(
            {
                name: plain[name]
                for name in ("device", "operation", "p50_us", "p99_us", "per_second", "gb_per_s")
            }
            | {f"cpu_us_{name}": plain["cpu_us"][name] for name in plain["cpu_us"]}
            | {"goal": _goal_text(row)}
        )
    return found


def _goal_text(row: Row) -> str | None:
    wanted = row.operation.at_least_gb_per_s
    return None if wanted is None else f">= {wanted:g} GB/s: {'met' if row.is_met else 'MISSED'}"


def peer_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for row in rows:
        for peer in row.to_json().get("peers", ()):
            head = {"device": row.operation.device, "operation": row.operation.text, "peer": peer["peer"]}
            if "missing" in peer:
                found.append(head | {"ratio": f"not measured: {peer['missing']}"})
                continue
            interval = next(row.ratio(each) for each in row.peers if each.kind.value == peer["peer"])
            shown = {name: peer[name] for name in ("p50_us", "per_second", "cpu_us")}
            found.append(head | shown | {"ratio": f"{peer['of']} x {interval.text()}"})
    return found


def split_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        {"device": row.operation.device, "operation": row.operation.text}
        | {place: f"{share:.0%}" for place, share in row.split.items()}
        for row in rows
        if row.split
    ]


def run(
    *,
    quick: bool = False,
    as_json: bool = False,
    cpus: tuple[int, int] | None = None,
    devices: Sequence[str] = (),
    waiting: str = WaitingKind.ADAPTIVE.value,
) -> int:
    """Measure and print; the exit code says whether every goal was met."""
    allowed = sorted(os.sched_getaffinity(0))
    if cpus is None:
        cpus = (allowed[0], allowed[min(1, len(allowed) - 1)])
    if strange := [name for name in devices if name not in DEVICES]:
        raise CommandError(f"no device class {strange[0]!r}: there are {', '.join(DEVICES)}")
    rounds, seconds = (1, QUICK_SECONDS) if quick else (ROUNDS, SECONDS)
    found = conditions(cpus)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    if busy := busy_text(found["load_before"]):
        say(busy)
    rows = measure_devices(tuple(devices) or DEVICES, rounds, seconds, WaitingKind(waiting), cpus, say)
    about = found | {"rounds": rounds, "seconds": seconds, "waiting": waiting}
    if as_json:
        print_json({"rows": [row.to_json() for row in rows], "conditions": about})
    else:
        print_table(figure_rows(rows), "nothing was measured")
        print("\nbeside a peer of the same round, ours / the peer's:")
        print_table(peer_rows(rows), "there are no peers")
        print("\nwhere the time of a request goes, in a traced machine:")
        print_table(split_rows(rows), "nothing was traced")
        print()
        print_record(about)
    return ExitCode.DONE if all(row.is_met for row in rows) else ExitCode.FAILED
