"""Devices whose user is outside of the machine: a viewer, the operator, an NBD client. The clock is theirs.

A machine stands for a round; each look at it goes on for so many seconds. What everybody used meanwhile is read from
/proc, as it is for guests that measure themselves. The guest behind the device is called asker here, too. This host's
CLOCK_MONOTONIC is one for all processes: so a client's moments and the stamps of a traced machine make one way.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bus.native import Histogram, monotonic_ns
from runtime.config.model import WaitingKind
from runtime.exits import CommandError
from runtime.measure.architectures import LoadFigures
from runtime.measure.devices.client_clock import ClientClock
from runtime.measure.devices.flow_split import FlowSplit, children_cpu_ns, serving_threads, split_by_side
from runtime.measure.devices.looks import LOOKS
from runtime.measure.devices.on_cpu import on_cpu
from runtime.measure.devices.operations import SCREEN_HEIGHT, SCREEN_WIDTH, Look, OutsideOperation
from runtime.measure.devices.path_walk import PathSplit, split_of_way, stamps_of_way
from runtime.measure.devices.standing_machine import StandingMachine, standing
from runtime.measure.devices_disk import DEPTH, DISK_BYTES, NbdServer, run_job
from runtime.measure.process_usage import thread_times_ns
from runtime.reserved_names import ROOT
from runtime.trace_file import Capture

NBD_SECONDS_MIN: Final = 0.5  # of fio, which takes a while to begin
_HEAD: Final = """
[machine]
name = "bench-devices-{pid}-{kind}"
memory = "256MiB"
waiting = "{waiting}"
[root]
cpus = [{second}]
"""
_SCREEN: Final = f"""
[[root.device]]
name = "keyboard0"
kind = "keyboard"
[[root.device]]
name = "mouse0"
kind = "mouse"
[[root.device]]
name = "video0"
kind = "video"
width = {SCREEN_WIDTH}
height = {SCREEN_HEIGHT}
[[partition]]
name = "asker"
program = "partitions.guests.paint:main"
memory = "64MiB"
cpus = [{{first}}]
args = {{{{ screen = "video0" }}}}
[[partition.device]]
name = "keyboard0"
[[partition.device]]
name = "mouse0"
[[partition.device]]
name = "video0"
"""
_INTEGRATION: Final = """
[[partition]]
name = "asker"
program = "partitions.guests.key_values:main"
memory = "64MiB"
cpus = [{first}]
integration = true
"""
_NBD: Final = f"""
[[root.device]]
name = "disk0"
kind = "disk"
backend = "memory"
size = {DISK_BYTES}
[[partition]]
name = "asker"
program = "partitions.guests.nbd:main"
memory = "64MiB"
cpus = [{{first}}]
args = {{{{ device = "disk0" }}}}
[[partition.device]]
name = "disk0"
[[partition.file]]
name = "nbd"
mode = "listen"
"""


class NotHere(CommandError):
    """This host has not what the measuring takes. One line."""


@dataclass(frozen=True, slots=True)
class OutsideMachine:
    text: str  # in TOML, behind the head
    ready: str  # the event


OUTSIDE_MACHINES: Final = {
    "screen": OutsideMachine(_SCREEN, "guest.painting"),
    "integration": OutsideMachine(_INTEGRATION, "guest.takes_part"),
    "nbd": OutsideMachine(_NBD, "guest.nbd_ready"),
}
OUTSIDE: Final = tuple(OUTSIDE_MACHINES)


def measure_outside(
    operations: Sequence[OutsideOperation],
    place: Path,
    seconds: float,
    waiting: WaitingKind,
    cpus: tuple[int, int],
) -> list[LoadFigures | NotHere]:
    """All of one class, in their order, in one machine. CommandError: it failed."""
    found: list[LoadFigures | NotHere] = []
    with _machine(operations[0].device, place, waiting, cpus) as machine:
        for one in operations:
            if one.look is not Look.NBD_JOB:
                found.append(_figures(one, machine, seconds, cpus)[0])
                continue
            try:
                found.append(_nbd_job(one, machine, place, seconds))
            except NotHere as error:
                found.append(error)
    return found


def traced_outside(
    operations: Sequence[OutsideOperation],
    place: Path,
    seconds: float,
    waiting: WaitingKind,
    cpus: tuple[int, int],
) -> list[PathSplit]:
    """Of one class, all in one machine that is traced. CommandError."""
    trace = place / "outside.trace"
    trace.unlink(missing_ok=True)
    with _machine(operations[0].device, place, waiting, cpus, trace) as machine:
        clocks = [_figures(one, machine, min(seconds, one.traced_seconds), cpus)[1] for one in operations]
    if not trace.exists():
        raise CommandError(f"{operations[0].device}: the machine left no trace; see: partvisor run --trace")
    capture = Capture.read(trace)
    return [
        split_of_way(
            stamps_of_way(capture, one.way, clock.moments), one.way, len(clock.moments), clock.mean_ns
        )
        for one, clock in zip(operations, clocks, strict=True)
    ]


def flow_from_outside(
    operation: OutsideOperation,
    place: Path,
    seconds: float,
    waiting: WaitingKind,
    cpus: tuple[int, int],
) -> FlowSplit:
    """Of fio's job. CommandError; NotHere: this host has no fio."""
    trace = place / "flow.trace"
    trace.unlink(missing_ok=True)
    with _machine(operation.device, place, waiting, cpus, trace) as machine:
        root = machine.pids[ROOT]
        threads, client = thread_times_ns(root), children_cpu_ns()
        figures = _nbd_job(operation, machine, place, seconds)
        client = children_cpu_ns() - client
        used = {thread: ns - threads.get(thread, 0) for thread, ns in thread_times_ns(root).items()}
    if not trace.exists():
        raise CommandError(f"{operation.device}: the machine left no trace; see: partvisor run --trace")
    return split_by_side(replace(figures, threads=used), serving_threads(Capture.read(trace)), client)


@contextmanager
def _machine(
    kind: str, place: Path, waiting: WaitingKind, cpus: tuple[int, int], trace: Path | None = None
) -> Iterator[StandingMachine]:
    """CommandError: it does not come up, or whoever used it lost it."""
    known, (first, second) = OUTSIDE_MACHINES[kind], cpus
    text = (_HEAD + known.text).format(
        pid=os.getpid(), kind=kind, waiting=waiting, first=first, second=second
    )
    with standing(text, place, kind, known.ready, trace) as machine:
        try:
            yield machine
        except OSError as error:
            raise CommandError(f"{kind}: {error}") from error


def _figures(
    operation: OutsideOperation, machine: StandingMachine, seconds: float, cpus: tuple[int, int]
) -> tuple[LoadFigures, ClientClock]:
    """We use it from the CPU that its root has."""
    clock, before, begun = ClientClock(), machine.usage(), monotonic_ns()

    def begin() -> int:
        nonlocal before, begun
        before, begun = machine.usage(), monotonic_ns()
        return begun + int(seconds * 1e9)

    with on_cpu(cpus[1]):
        wrong = LOOKS[operation.look](machine, begin, clock)
    took = (monotonic_ns() - begun) / 1e9
    after = machine.usage()
    if wrong:
        raise CommandError(f"{operation.text}: {wrong} answers were not what they had to be")
    used = {name: after[name].since(before[name]) for name in before}
    latency = clock.latency
    return LoadFigures(operation.text, ("asker",), 0, 1, latency.count, took, latency, used), clock


def _nbd_job(
    operation: OutsideOperation, machine: StandingMachine, place: Path, seconds: float
) -> LoadFigures:
    """Reads of fio's, on whichever CPU it likes; its own time is in no figure."""
    if shutil.which("fio") is None:
        raise NotHere("fio is not installed: apt-get install fio")
    seconds = max(seconds, NBD_SECONDS_MIN)
    server, before = NbdServer(machine.said["uri"], tuple(machine.pids.values())), machine.usage()
    found, after = run_job(server, seconds, place), machine.usage()
    count = max(round(found.per_second * seconds), 1)
    used = {name: after[name].since(before[name]) for name in machine.pids}
    size = operation.peers[0].payload_bytes
    return LoadFigures(operation.text, ("asker",), size, DEPTH, count, seconds, Histogram(), used)
