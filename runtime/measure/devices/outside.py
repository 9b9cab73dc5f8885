"""Devices whose user is outside of the machine: a viewer, the operator, an NBD client. The clock is theirs.

A machine stands for a round; each look at it goes on for so many seconds. What everybody used meanwhile is read from
/proc, as it is for guests that measure themselves. The guest behind the device is called asker here, too.
"""

import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bus.native import Histogram, monotonic_ns
from runtime.config.model import WaitingKind
from runtime.exits import CommandError
from runtime.machine.management_client import ManagementClient
from runtime.measure.architectures import LoadFigures
from runtime.measure.devices.operations import SCREEN_HEIGHT, SCREEN_WIDTH, Look, OutsideOperation
from runtime.measure.devices.standing_machine import StandingMachine, standing
from runtime.measure.devices.viewer import Viewer
from runtime.measure.devices_disk import our_export, run_job
from runtime.measure.process_usage import Usage

NBD: Final = "nbd"

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
_BACKSPACE: Final = 0xFF08
_LETTER: Final = ord("h")
_LEFT, _RIGHT = 1, 4  # buttons
_STEP: Final = 16  # pixels between two clicks: what one paints is smaller
_TOP: Final = 100  # of where clicks go: below the letter


class NotHere(CommandError):
    """This host has not what the measuring takes. One line."""


Begin = Callable[[], int]
"""Called when all is ready: when to end, in ns."""
Looking = Callable[[StandingMachine, Begin, Histogram], int]
"""Records each operation, and says how many were not as they had to be."""


def _keys(machine: StandingMachine, begin: Begin, latency: Histogram) -> int:
    """A letter, and backspace, which takes it away: each changes the picture."""
    with _viewer(machine) as viewer:
        deadline = begin()
        for keysym in itertools.cycle((_LETTER, _BACKSPACE)):
            viewer.ask(incremental=True)
            begun = monotonic_ns()
            viewer.key(keysym)
            viewer.until_changed()
            latency.record((ended := monotonic_ns()) - begun)
            if ended >= deadline and keysym == _BACKSPACE:  # the next round finds the screen as we did
                return 0
    raise AssertionError


def _strokes(machine: StandingMachine, begin: Begin, latency: Histogram) -> int:
    """Clicks all over the screen with one button, then with the other one, whose colour is another."""
    with _viewer(machine) as viewer:
        across, down = range(_STEP, viewer.width - _STEP, _STEP), range(_TOP, viewer.height - _STEP, _STEP)
        deadline = begin()
        for button, y, x in itertools.cycle(itertools.product((_LEFT, _RIGHT), down, across)):
            viewer.ask(incremental=True)
            begun = monotonic_ns()
            viewer.point(x, y, button)
            viewer.until_changed()
            latency.record((ended := monotonic_ns()) - begun)
            viewer.point(x, y, 0)
            if ended >= deadline:
                return 0
    raise AssertionError


def _pictures(machine: StandingMachine, begin: Begin, latency: Histogram) -> int:
    short = 0
    with _viewer(machine) as viewer:
        deadline = begin()
        while (begun := monotonic_ns()) < deadline:
            viewer.ask(incremental=False)
            short += viewer.update()[0] != viewer.width * viewer.height
            latency.record(monotonic_ns() - begun)
    return short


def _key_values(machine: StandingMachine, begin: Begin, latency: Histogram) -> int:
    wrong, order = 0, {"operation": "get", "key": "state", "pool": "guest"}
    with ManagementClient(machine.folder) as client:
        client.request("integration", name="asker", service="kvp", order=order)
        deadline = begin()
        while (begun := monotonic_ns()) < deadline:
            answer = client.request("integration", name="asker", service="kvp", order=order)
            latency.record(monotonic_ns() - begun)
            wrong += answer.get("value") != "well"
    return wrong


def _viewer(machine: StandingMachine) -> Viewer:
    """Of the one screen, all of which it has seen."""
    viewer = Viewer(machine.folder.screen_path("asker"))
    viewer.ask(incremental=False)
    viewer.update()
    return viewer


@dataclass(frozen=True, slots=True)
class OutsideMachine:
    text: str  # in TOML, behind the head
    ready: str  # the event


OUTSIDE_MACHINES: Final = {
    "screen": OutsideMachine(_SCREEN, "guest.painting"),
    "integration": OutsideMachine(_INTEGRATION, "guest.takes_part"),
}
OUTSIDE: Final = (*OUTSIDE_MACHINES, NBD)
_LOOKS: Final[dict[Look, Looking]] = {
    Look.KEY: _keys,
    Look.STROKE: _strokes,
    Look.PICTURE: _pictures,
    Look.KEY_VALUE: _key_values,
}


def measure_outside(
    operations: Sequence[OutsideOperation],
    place: Path,
    seconds: float,
    waiting: WaitingKind,
    cpus: tuple[int, int],
) -> list[LoadFigures]:
    """All of one class, in their order, in one machine. CommandError: it failed. NotHere."""
    kind = operations[0].device
    if kind == NBD:
        return [_nbd(one, place, seconds) for one in operations]
    first, second = cpus
    known = OUTSIDE_MACHINES[kind]
    text = (_HEAD + known.text).format(
        pid=os.getpid(), kind=kind, waiting=waiting, first=first, second=second
    )
    with standing(text, place, kind, known.ready) as machine:
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {second})
        try:
            return [_figures(one, machine, seconds) for one in operations]
        except OSError as error:
            raise CommandError(f"{kind}: {error}") from error
        finally:
            os.sched_setaffinity(0, allowed)


def _figures(operation: OutsideOperation, machine: StandingMachine, seconds: float) -> LoadFigures:
    latency, before, begun = Histogram(), machine.usage(), monotonic_ns()

    def begin() -> int:
        nonlocal before, begun
        before, begun = machine.usage(), monotonic_ns()
        return begun + int(seconds * 1e9)

    wrong = _LOOKS[operation.look](machine, begin, latency)
    took = (monotonic_ns() - begun) / 1e9
    after = machine.usage()
    if wrong:
        raise CommandError(f"{operation.text}: {wrong} answers were not what they had to be")
    used = {name: after[name].since(before[name]) for name in before}
    return LoadFigures(operation.text, ("asker",), 0, 1, latency.count, took, latency, used)


def _nbd(operation: OutsideOperation, place: Path, seconds: float) -> LoadFigures:
    """Reads of fio's; its own time is in no figure, and what the export used is not told by process."""
    if shutil.which("fio") is None:
        raise NotHere("fio is not installed: apt-get install fio")
    with our_export(place) as server:
        found = run_job(server, max(seconds, NBD_SECONDS_MIN), place)
    count = max(round(found.per_second), 1)
    used = {"machine": Usage(round((found.server_cpu_us or 0) * 1e3 * count))}
    return LoadFigures(
        operation.text, ("export",), operation.peers[0].payload_bytes, 32, count, 1.0, Histogram(), used
    )
