"""The same load once more, in a machine that is traced: where the time of its operations goes."""

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bus.native import Histogram
from runtime.config.model import MachineConfig
from runtime.exits import CommandError
from runtime.measure.architectures import measure
from runtime.measure.devices.operations import Operation
from runtime.measure.devices.path_walk import PathSplit, split_of_way, stamps_of_way
from runtime.measure.devices.paths import Place
from runtime.measure.trace_split import Request, Where, find_requests
from runtime.trace_file import Capture

STAMPS: Final = 1 << 18  # of a thread: enough that none of a short load is overwritten
_PLACES: Final = {
    Where.CLIENT: Place.GUEST,
    Where.TRAVEL: Place.RING,
    Where.WAKE: Place.WAKE,
    Where.HYPERVISOR: Place.HYPERVISOR,
    Where.SERVER: Place.VSP,
    Where.BACKEND: Place.BACKEND,
}
_SUB_BUCKET_BITS: Final = 8  # a bucket of the histogram is 1/128 of an octave wide


def mean_ns(latency: Histogram) -> float:
    """Of the middles of its buckets: at most 0.4 % beside the mean."""
    total = sum(
        (value - ((1 << max(value.bit_length() - _SUB_BUCKET_BITS, 0)) - 1) / 2) * count
        for value, count in latency.buckets
    )
    return total / latency.count if latency.count else 0.0


def split_of_requests(requests: Sequence[Request], measured: int, whole_ns: float) -> PathSplit:
    """Of requests that may overlap, each from WRITE to RECEIVE. `measured`, `whole_ns`: as for `split_of_way`."""
    taken: defaultdict[Place, float] = defaultdict(float)
    for request in requests:
        for step, _, took in request.parts:
            taken[_PLACES[step.where]] += took
    count = len(requests)
    parts = {place: taken[place] / count for place in Place if place in taken}
    return PathSplit(measured, count, whole_ns, parts)


def of_each_load(requests: Sequence[Request], counts: Sequence[int]) -> list[Sequence[Request]]:
    """Loads follow one another, and are the last thing that their guest does: what came before was to prepare them."""
    found, end = [], len(requests)
    for count in reversed(counts):
        begin = max(end - count, 0)
        found.append(requests[begin:end])
        end = begin
    return found[::-1]


def traced_splits(machine: MachineConfig, operations: Sequence[Operation]) -> list[PathSplit]:
    """Of a machine whose guest does these one after the other, and measures them.

    CommandError: it failed. KeyboardInterrupt: nothing of it is left.
    """
    with tempfile.TemporaryDirectory(prefix="partvisor-bench-") as place:
        trace = Path(place) / "trace"
        by_name = {load.name: load for load in measure(machine, trace=trace, trace_stamps=STAMPS).loads}
        if not trace.exists() or any(one.load not in by_name for one in operations):
            raise CommandError("the machine left no trace, or not of every load; see: partvisor run --trace")
        capture = Capture.read(trace)
    loads = [by_name[one.load] for one in operations]
    overlapping = any(one.overlaps for one in operations)
    requests = find_requests(capture).requests if overlapping else ()
    of_loads = of_each_load(requests, [load.operations for load in loads])
    return [
        split_of_way(stamps_of_way(capture, one.way), one.way, load.operations, mean_ns(load.latency))
        if one.way
        else split_of_requests(own, load.operations, mean_ns(load.latency))
        for one, load, own in zip(operations, loads, of_loads, strict=True)
    ]
