"""Where the time of the ladder's own exchanges goes: the same requests once more, in a machine that is traced.

A run of its own, after the rounds: a stamp costs tens of nanoseconds, which no figure of the ladder shall bear. So hops
explain a row, and do not add up to its median. Who wants whole requests uses `partvisor bench trace`.
"""

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from bus.native import Histogram
from runtime.exits import CommandError
from runtime.measure.bench_trace import requests_by_device
from runtime.measure.results import Hop, Mode, Placement, Row, Status
from runtime.measure.trace_machine import ROUTES, WAITINGS, device_name, run_traced
from runtime.measure.trace_split import ORDER, Request, Step, find_requests

EXCHANGES: Final = 500  # of each route and kind of waiting
PAYLOAD_BYTES_MAX: Final = (
    4096  # more does not go through these machines' rings as it does through the ladder's
)
_ECHO: Final = "echo"
_DEVICES: Final = {
    (f"vmbus-{route}", waiting): device_name(_ECHO, route, waiting)
    for route in ROUTES
    for waiting in WAITINGS
}


def with_hops(rows: Sequence[Row], cpus: tuple[int, int], progress: Callable[[str], None]) -> list[Row]:
    """The same rows; those that can be traced have hops. What cannot be traced today is said, and has none."""
    payloads = sorted({row.payload_bytes for row in rows if _can_be_traced(row)})
    hops: dict[tuple[str, int], tuple[Hop, ...]] = {}
    for payload in payloads:
        progress(f"the hops of an exchange of {payload} bytes, in a traced machine")
        try:
            capture, reports = run_traced(EXCHANGES, payload, cpus, (_ECHO,))
            for device, requests in requests_by_device(find_requests(capture), reports).items():
                hops[device, payload] = hops_of(requests)
        except CommandError as error:
            progress(f"hops of {payload} bytes are left out: {error}")
    return [
        msgspec.structs.replace(
            row, hops=hops.get((_DEVICES[row.transport, row.waiting], row.payload_bytes), ())
        )
        if _can_be_traced(row)
        else row
        for row in rows
    ]


def _can_be_traced(row: Row) -> bool:
    return (
        (row.transport, row.waiting) in _DEVICES
        and row.payload_bytes <= PAYLOAD_BYTES_MAX
        and (row.placement, row.mode, row.status) == (Placement.TWO_CPUS, Mode.CLOSED, Status.OK)
    )


def hops_of(requests: Iterable[Request]) -> tuple[Hop, ...]:
    """In the order of a request. One that only some requests have counts those alone."""
    times: defaultdict[Step, list[int]] = defaultdict(list)
    for request in requests:
        for step, _, took in request.parts:
            times[step].append(round(took))
    return tuple(Hop(name=step.text, latency=_histogram(times[step])) for step in ORDER if times[step])


def _histogram(values: Sequence[int]) -> Histogram:
    found = Histogram()
    found.record_many(array("Q", values))
    return found
