"""Where a device's request spends its time: the same load once more in a traced machine, hops added up by place."""

import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from runtime.config.model import MachineConfig
from runtime.exits import CommandError, ExitCode
from runtime.machine.launch import run_in_foreground
from runtime.measure.trace_split import Request, Where, find_requests
from runtime.trace_file import Capture

STAMPS: Final = 1 << 16
PLACES: Final = {
    Where.CLIENT: "guest",
    Where.TRAVEL: "ring",
    Where.WAKE: "wake",
    Where.HYPERVISOR: "hypervisor",
    Where.SERVER: "VSP",
    Where.BACKEND: "backend",
}


def split_of_places(requests: Iterable[Request]) -> dict[str, float]:
    """Share of the time of all requests, by place. Empty: there was no request."""
    taken: defaultdict[str, float] = defaultdict(float)
    for request in requests:
        for step, _, took in request.parts:
            taken[PLACES[step.where]] += took
    whole = sum(taken.values())
    return {place: taken[place] / whole for place in PLACES.values() if taken[place]} if whole else {}


def traced_split(machine: MachineConfig) -> dict[str, float]:
    """CommandError: the machine failed. KeyboardInterrupt: nothing of it is left."""
    with tempfile.TemporaryDirectory(prefix="partvisor-bench-") as place:
        trace = Path(place) / "trace"
        code = run_in_foreground(machine, lambda event, encoded: None, trace=trace, trace_stamps=STAMPS)
        if code == ExitCode.INTERRUPTED:
            raise KeyboardInterrupt
        if code != ExitCode.DONE or not trace.exists():
            raise CommandError("the traced machine failed; see: partvisor run")
        return split_of_places(find_requests(Capture.read(trace)).requests)
