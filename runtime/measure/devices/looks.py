"""What somebody outside of a machine does with it, one operation after the other: a viewer, the operator, a client."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from bus.native import monotonic_ns
from runtime.machine.management_client import ManagementClient
from runtime.measure.devices.client_clock import ClientClock
from runtime.measure.devices.nbd_reader import NbdReader
from runtime.measure.devices.operations import Look
from runtime.measure.devices.path_walk import ClientMoments
from runtime.measure.devices.standing_machine import StandingMachine
from runtime.measure.devices.viewer import Viewer

_BACKSPACE: Final = 0xFF08
_LETTER: Final = ord("h")
_LEFT, _RIGHT = 1, 4  # buttons
_STEP: Final = 16  # pixels between two clicks: what one paints is smaller
_TOP: Final = 100  # of where clicks go: below the letter

Begin = Callable[[], int]
"""Called when all is ready: when to end, in ns."""
Looking = Callable[[StandingMachine, Begin, ClientClock], int]
"""Records each operation, and says how many were not as they had to be."""


def _keys(machine: StandingMachine, begin: Begin, clock: ClientClock) -> int:
    """A letter, and backspace, which takes it away: each changes the picture."""
    with _viewer(machine) as viewer:
        deadline = begin()
        for keysym in itertools.cycle((_LETTER, _BACKSPACE)):
            viewer.ask(incremental=True)
            begun = monotonic_ns()
            viewer.key(keysym)
            viewer.until_changed()
            moments = viewer.moments()
            clock.record(begun, ended := monotonic_ns(), moments)
            if ended >= deadline and keysym == _BACKSPACE:  # the next round finds the screen as we did
                return 0
    raise AssertionError


def _strokes(machine: StandingMachine, begin: Begin, clock: ClientClock) -> int:
    """Clicks all over the screen with one button, then with the other one, whose colour is another."""
    with _viewer(machine) as viewer:
        across, down = range(_STEP, viewer.width - _STEP, _STEP), range(_TOP, viewer.height - _STEP, _STEP)
        deadline = begin()
        for button, y, x in itertools.cycle(itertools.product((_LEFT, _RIGHT), down, across)):
            viewer.ask(incremental=True)
            begun = monotonic_ns()
            viewer.point(x, y, button)
            viewer.until_changed()
            moments = viewer.moments()
            clock.record(begun, ended := monotonic_ns(), moments)
            viewer.point(x, y, 0)
            if ended >= deadline:
                return 0
    raise AssertionError


def _pictures(machine: StandingMachine, begin: Begin, clock: ClientClock) -> int:
    short = 0
    with _viewer(machine) as viewer:
        deadline = begin()
        while (begun := monotonic_ns()) < deadline:
            viewer.ask(incremental=False)
            short += viewer.update()[0] != viewer.width * viewer.height
            moments = viewer.moments()
            clock.record(begun, monotonic_ns(), moments)
    return short


def _key_values(machine: StandingMachine, begin: Begin, clock: ClientClock) -> int:
    wrong, order = 0, {"operation": "get", "key": "state", "pool": "guest"}
    with ManagementClient(machine.folder) as client:
        client.request("integration", name="asker", service="kvp", order=order)
        deadline = begin()
        while (begun := monotonic_ns()) < deadline:
            call = monotonic_ns()
            answer = client.request("integration", name="asker", service="kvp", order=order)
            moments = ClientMoments(call, monotonic_ns())
            clock.record(begun, monotonic_ns(), moments)
            wrong += answer.get("value") != "well"
    return wrong


def _nbd_reads(machine: StandingMachine, begin: Begin, clock: ClientClock) -> int:
    address = urlsplit(machine.said["uri"])
    with NbdReader(Path(parse_qs(address.query)["socket"][0]), unquote(address.path[1:])) as reader:
        reader.read(0)
        reader.read_until(begin(), clock)
    return 0


def _viewer(machine: StandingMachine) -> Viewer:
    """Of the one screen, all of which it has seen."""
    viewer = Viewer(machine.folder.screen_path("asker"))
    viewer.ask(incremental=False)
    viewer.update()
    return viewer


LOOKS: Final[dict[Look, Looking]] = {
    Look.KEY: _keys,
    Look.STROKE: _strokes,
    Look.PICTURE: _pictures,
    Look.KEY_VALUE: _key_values,
    Look.NBD_READ: _nbd_reads,
}
