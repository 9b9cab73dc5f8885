"""A Chrome/Perfetto trace (JSON) of requests: open it at https://ui.perfetto.dev or chrome://tracing.

A request is a slice, and its hops are slices inside. Requests that overlap stand in lanes of their own, so slices are
nested or apart, never crossed. What another generation of a server answered stands apart, too. Times are
microseconds since the first of them.

Source: "Trace Event Format", the JSON object form.
"""

import heapq
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.exits import CommandError
from runtime.measure.trace_split import Request, titles


def chosen(requests: Sequence[Request], which: str) -> list[Request]:
    """ "all", "slowest", or a number. CommandError: there is none."""
    if not requests:
        raise CommandError("the trace holds no whole request")
    if which == "all":
        return list(requests)
    if which == "slowest":
        return [max(requests, key=lambda request: request.total_ns)]
    if not which.isdecimal() or int(which) >= len(requests):
        raise CommandError(f"--request {which}: want all, slowest, or a number from 0 to {len(requests) - 1}")
    return [requests[int(which)]]


def perfetto(requests: Sequence[Request], names: Mapping[int, str]) -> dict[str, Any]:
    """The whole document. Events are in the order of their times."""
    origin = min((request.begin_ns for request in requests), default=0.0)
    titled = titles(requests, names)
    pids = {key: pid for pid, key in enumerate(titled, start=1)}
    slices: list[dict[str, Any]] = []
    lanes: dict[int, list[tuple[float, int]]] = {pid: [] for pid in pids.values()}
    for request in sorted(requests, key=lambda one: one.begin_ns):
        pid = pids[request.channel, request.generation]
        if lanes[pid] and lanes[pid][0][0] <= request.begin_ns:
            lane = heapq.heappop(lanes[pid])[1]
        else:
            lane = len(lanes[pid]) + 1
        heapq.heappush(lanes[pid], (request.end_ns, lane))
        slices += _slices(request, pid, lane, origin)
    slices.sort(key=lambda event: (event["ts"], -event["dur"]))
    used = sorted({(event["pid"], event["tid"]) for event in slices})
    about = [_about("process_name", pid, 0, titled[key]) for key, pid in pids.items()]
    about += [_about("thread_name", pid, tid, f"requests, lane {tid}") for pid, tid in used]
    return {"displayTimeUnit": "ns", "traceEvents": about + slices}


def _slices(request: Request, pid: int, tid: int, origin: float) -> list[dict[str, Any]]:
    """Ends are computed from the same sums as beginnings, so that rounding cannot make two slices cross."""
    common: dict[str, Any] = {"ph": "X", "pid": pid, "tid": tid}
    stops = [_us(at - origin) for _, at in request.moments]
    args = {
        "number": request.number,
        "transaction_id": request.transaction_id,
        "server_generation": request.generation,
    }
    name = f"request {request.transaction_id}"
    whole: dict[str, Any] = {
        "name": name,
        "cat": "request",
        "ts": stops[0],
        "dur": round(stops[-1] - stops[0], 3),
        "args": args,
    }
    hops: list[dict[str, Any]] = [
        {
            "name": step.text,
            "cat": step.where.value,
            "ts": stops[index],
            "dur": round(stops[index + 1] - stops[index], 3),
            "args": {"ns": round(took)},
        }
        for index, (step, _, took) in enumerate(request.parts)
    ]
    return [{**event, **common} for event in (whole, *hops)]


def _us(ns: float) -> float:
    return round(ns / 1000, 3)


def _about(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "ts": 0, "args": {"name": name}}


def write_perfetto(path: Path, requests: Sequence[Request], names: Mapping[int, str], which: str) -> int:
    """How many requests are in it. CommandError: it cannot be written, or there is no such request."""
    picked = chosen(requests, which)
    try:
        path.write_text(json.dumps(perfetto(picked, names), separators=(",", ":")))
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from error
    return len(picked)
