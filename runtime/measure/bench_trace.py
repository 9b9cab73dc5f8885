"""`partvisor bench trace`: where the time of a request goes, hop by hop, and what finding that out costs.

Three parts. A stamp by itself. An exchange in C with the stamps compiled out, absent, switched off and on, in turns.
And one machine, all of it traced, whose guest talks to echoes and disks over each route and kind of waiting.
"""

import mmap
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bus.native import Trace, tsc_is_invariant
from bus.trace import create_trace
from runtime.exits import CommandError, ExitCode
from runtime.measure.goals import conditions
from runtime.measure.paired_ratio import difference_of, ratio_of
from runtime.measure.reference_programs import ReferencePrograms, reference_programs
from runtime.measure.trace_flame import write_svg
from runtime.measure.trace_machine import run_traced
from runtime.measure.trace_perfetto import write_perfetto
from runtime.measure.trace_split import Request, Requests, Step, find_requests, percentile, split_of
from runtime.reports import print_json, print_record, print_table

EXCHANGES: Final = 2_000
QUICK_EXCHANGES: Final = 100
ROUNDS: Final = 25
QUICK_ROUNDS: Final = 5
PAYLOAD_BYTES: Final = 4096
_PROGRAM_EXCHANGES: Final = 20_000
_PROGRAM_ROUNDS: Final = 12
_STAMPS_TIMED: Final = 200_000
COMPILED_OUT: Final = "compiled out"
ONE_THREAD: Final = "one thread with itself"  # nothing else is in it: a nanosecond shows
TWO_PROCESSES: Final = "two processes, spinning"
_VARIANTS: Final = {  # program, and how it is told to trace
    COMPILED_OUT: ("trace_cost_without", "absent"),
    "absent": ("trace_cost", "absent"),
    "switched off": ("trace_cost", "off"),
    "on": ("trace_cost", "on"),
}


def stamp_cost_ns(rounds: int) -> float:
    """Median over rounds of what one stamp takes, called from C."""
    fd = create_trace("bench-stamps", uses_tsc=tsc_is_invariant(), tracks=1)
    try:
        trace = Trace(mmap.mmap(fd, os.fstat(fd).st_size))
        return statistics.median(trace.time_stamps(_STAMPS_TIMED) for _ in range(rounds))
    finally:
        os.close(fd)


def cost_rounds(
    programs: ReferencePrograms, rounds: int, cpus: tuple[int, int] | None = None
) -> dict[str, list[float]]:
    """ns of an exchange, by variant: in each round the best of a few short runs of every variant, in turns.

    Args:
        cpus: of two processes that spin; None: one thread plays both ends.
    """
    values: dict[str, list[float]] = {name: [] for name in _VARIANTS}
    for _ in range(rounds):
        for name, (program, how) in _VARIANTS.items():
            answer = programs.run(program, how, _PROGRAM_EXCHANGES, _PROGRAM_ROUNDS, *(cpus or ()))
            values[name].append(min(answer["exchange_ns"]))
    return values


def cost_rows(between: str, values: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Each variant beside the one without any stamp in it."""
    rows: list[dict[str, Any]] = []
    for name, each in values.items():
        ratio = ratio_of(each, values[COMPILED_OUT])
        rows.append(
            {
                "between": between,
                "stamps": name,
                "exchange_ns": round(statistics.median(each), 1),
                "ratio": ratio,
                "more_ns": difference_of(each, values[COMPILED_OUT]),
                "measurable": None if name == COMPILED_OUT else not ratio.contains(1),
            }
        )
    return rows


def requests_by_device(found: Requests, reports: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Request]]:
    """The requests of the loop itself, by device: the guest opens one after the other, so their relids count up."""
    channels = sorted(found.names)
    if len(channels) != len(reports):
        raise CommandError(f"{len(channels)} channels were traced, and {len(reports)} devices used")
    by_channel: dict[int, list[Request]] = {channel: [] for channel in channels}
    for request in found.requests:
        if request.moments[0][0] is Step.CALL:  # others set the device up
            by_channel[request.channel].append(request)
    return dict(zip(reports, by_channel.values(), strict=True))


def summary(device: str, requests: Sequence[Request], report: Mapping[str, Any]) -> dict[str, Any]:
    """Whether what the hops add up to is what the guest's own clock said."""
    totals = sorted(request.total_ns for request in requests)
    if not totals:
        raise CommandError(f"{device}: no request was traced as a whole")
    mean = statistics.fmean(totals)
    return {
        "device": device,
        "requests": len(totals),
        "sum_p50_ns": round(percentile(totals, 50)),
        "sum_p99_ns": round(percentile(totals, 99)),
        "sum_mean_ns": round(mean),
        "clock_p50_ns": report["p50_ns"],
        "clock_mean_ns": report["mean_ns"],
        "beside_ns": round(report["mean_ns"] - mean),  # two stamps, and two looks at the clock
    }


def run(
    *,
    quick: bool = False,
    as_json: bool = False,
    cpus: tuple[int, int] | None = None,
    svg: Path | None = None,
    perfetto: Path | None = None,
    request: str = "all",
) -> int:
    """Measure and print; nothing here is a goal."""
    rounds, exchanges = (QUICK_ROUNDS, QUICK_EXCHANGES) if quick else (ROUNDS, EXCHANGES)
    allowed = sorted(os.sched_getaffinity(0))
    guest_cpu, root_cpu = cpus or (allowed[0], allowed[min(1, len(allowed) - 1)])
    about = conditions((guest_cpu, root_cpu))
    print("stamps, and an exchange with and without them: some seconds", file=sys.stderr, flush=True)
    stamp_ns = stamp_cost_ns(rounds)
    with reference_programs(names=[program for program, _ in set(_VARIANTS.values())]) as programs:
        costs = cost_rows(ONE_THREAD, cost_rounds(programs, rounds))
        if guest_cpu != root_cpu:
            costs += cost_rows(TWO_PROCESSES, cost_rounds(programs, rounds, (guest_cpu, root_cpu)))
    print(f"a traced machine: 8 devices, {exchanges} exchanges each", file=sys.stderr, flush=True)
    capture, reports = run_traced(exchanges, PAYLOAD_BYTES, (guest_cpu, root_cpu))
    found = find_requests(capture)
    by_device = requests_by_device(found, reports)
    splits = {name: split_of(requests) for name, requests in by_device.items()}
    sums = [summary(name, requests, reports[name]) for name, requests in by_device.items()]
    measured = [one for requests in by_device.values() for one in requests]
    if svg is not None:
        write_svg(svg, splits, {row["device"]: f"p50 {row['sum_p50_ns']} ns" for row in sums})
    if perfetto is not None:
        names = dict(zip(sorted(found.names), reports, strict=True))
        write_perfetto(perfetto, measured, names, request)
    about |= {
        "clock": "tsc" if tsc_is_invariant() else "monotonic",
        "payload_bytes": PAYLOAD_BYTES,
        "stamp_ns": round(stamp_ns, 1),
        "rounds": rounds,
        "incomplete": found.incomplete,
        "disordered": found.disordered,
        "lost_stamps": found.lost_stamps,
    }
    if as_json:
        plain = [row | {name: row[name].to_json() for name in ("ratio", "more_ns")} for row in costs]
        print_json({"cost": plain, "splits": splits, "sums": sums, "conditions": about})
        return ExitCode.DONE
    print_table(
        [row | {name: row[name].text() for name in ("ratio", "more_ns")} for row in costs],
        "nothing was measured",
    )
    for name, rows in splits.items():
        print(f"\n{name}")
        print_table([row | {"share": f"{row['share']:.1%}"} for row in rows], "nothing was traced")
    print()
    print_table(sums, "nothing was traced")
    print()
    print_record(about)
    return ExitCode.DONE
