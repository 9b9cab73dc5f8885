"""`partvisor bench devices`: each device class through a whole machine, where its time goes, and a peer beside it.

Each round boots a machine for every class and lets its guests measure; the peers of the same round are measured just
behind. A ratio is of one round's own two figures. The split comes from one more boot, traced: a stamp costs tens of
nanoseconds, which no other figure here shall bear. Where the device's user is outside of the machine, its clock is
there, too (runtime.measure.devices.outside).
"""

import os
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Final

from runtime.config.model import WaitingKind
from runtime.exits import CommandError, ExitCode
from runtime.measure.architectures import measure
from runtime.measure.conditions import busy_text
from runtime.measure.devices.flow_split import flow_splits
from runtime.measure.devices.machines import MACHINES
from runtime.measure.devices.operations import OPERATIONS, OUTSIDE_OPERATIONS, Operation, OutsideOperation
from runtime.measure.devices.outside import (
    OUTSIDE,
    NotHere,
    flow_from_outside,
    measure_outside,
    traced_outside,
)
from runtime.measure.devices.path_split import traced_splits
from runtime.measure.devices.path_walk import PathSplit
from runtime.measure.devices.peers import PROGRAMS, Peers
from runtime.measure.devices.picture import devices_page, split_svg
from runtime.measure.devices.report import figure_rows, flow_rows, peer_rows, split_rows
from runtime.measure.devices.row import Row
from runtime.measure.goals import conditions
from runtime.measure.reference_programs import reference_programs
from runtime.reports import print_json, print_record, print_table

ROUNDS: Final = 6  # the fewest that know an interval
SECONDS: Final = 0.2  # of each load and each peer
QUICK_SECONDS: Final = 0.1
DEVICES: Final = (*MACHINES, *OUTSIDE)

Say = Callable[[str], None]


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
                if device in OUTSIDE:
                    _from_outside(ours, folder, seconds, waiting, cpus)
                else:
                    _one_machine(ours, folder, seconds, waiting, cpus)
                for row in ours:
                    _its_peers(row, peers)
        for device in devices:
            traced = [row for row in rows if row.operation.device == device and row.can_be_traced]
            if traced:
                say(f"where the time goes: {device}")
                for row, split in zip(traced, _splits(traced, folder, seconds, waiting, cpus), strict=True):
                    row.split = split
            if flows := [row for row in rows if row.operation.device == device and row.is_flow]:
                say(f"who works in a flow: {device}")
                _measure_flows(flows, folder, seconds, waiting, cpus)
    return rows


def _measure_flows(
    rows: Sequence[Row], folder: Path, seconds: float, waiting: WaitingKind, cpus: tuple[int, int]
) -> None:
    """Of one class, in one machine."""
    operations: list[Operation] = []
    for row in rows:
        if isinstance(row.operation, OutsideOperation):
            row.flow = flow_from_outside(row.operation, folder, seconds, waiting, cpus)
        else:
            operations.append(row.operation)
    if operations:
        machine = MACHINES[operations[0].device]
        config = machine.config(folder, waiting, cpus, _values(operations, seconds))
        for row, flow in zip(rows, flow_splits(config, operations), strict=True):
            row.flow = flow


def _splits(
    rows: Sequence[Row], folder: Path, seconds: float, waiting: WaitingKind, cpus: tuple[int, int]
) -> list[PathSplit]:
    """Of one class, in one machine."""
    if outside := [row.operation for row in rows if isinstance(row.operation, OutsideOperation)]:
        return traced_outside(outside, folder, seconds, waiting, cpus)
    inside = [row.operation for row in rows if isinstance(row.operation, Operation)]
    values = _values(inside, min(seconds, *(one.traced_seconds for one in inside)))
    return traced_splits(MACHINES[inside[0].device].config(folder, waiting, cpus, values), inside)


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
    for row, load in zip(rows, measure_outside(operations, folder, seconds, waiting, cpus), strict=True):
        if isinstance(load, NotHere):
            row.unmeasured = str(load)
        else:
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


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}; name another file") from error


def run(
    *,
    quick: bool = False,
    as_json: bool = False,
    cpus: tuple[int, int] | None = None,
    devices: Sequence[str] = (),
    waiting: str = WaitingKind.ADAPTIVE.value,
    html: Path | None = None,
    svg: Path | None = None,
) -> int:
    """Measure and print; the exit code says whether every goal was met."""
    allowed = sorted(os.sched_getaffinity(0))
    if cpus is None:
        cpus = (allowed[0], allowed[min(1, len(allowed) - 1)])
    if strange := [name for name in devices if name not in DEVICES]:
        raise CommandError(f"no device class {strange[0]!r}: there are {', '.join(DEVICES)}")
    for path in (html, svg):  # before minutes of measuring
        if path is not None and not path.absolute().parent.is_dir():
            raise CommandError(f"{path}: there is no such folder; make it first")
    rounds, seconds = (1, QUICK_SECONDS) if quick else (ROUNDS, SECONDS)
    found = conditions(cpus)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    if busy := busy_text(found["load_before"]):
        say(busy)
    rows = measure_devices(tuple(devices) or DEVICES, rounds, seconds, WaitingKind(waiting), cpus, say)
    about = found | {"rounds": rounds, "seconds": seconds, "waiting": waiting}
    if html is not None:
        _write(html, devices_page(rows, about))
    if svg is not None:
        _write(svg, split_svg(rows))
    if as_json:
        print_json({"rows": [row.to_json() for row in rows], "conditions": about})
    else:
        print_table(figure_rows(rows), "nothing was measured")
        print("\nbeside a peer of the same round, ours / the peer's:")
        print_table(peer_rows(rows), "there are no peers")
        print("\nwhere the time of an operation goes, on the mean, in a traced machine:")
        print_table(split_rows(rows), "nothing was traced")
        print("\nwho works in a flow: shares of the processor time, in a machine of its own:")
        print_table(flow_rows(rows), "there is no flow")
        print()
        print_record(about)
    return ExitCode.DONE if all(row.is_met for row in rows) else ExitCode.FAILED
