"""`partvisor bench intercept`: one intercepted port access, beside a blocking exchange and a bare hypercall.

Each round boots two machines, one with intercepts through the hypervisor and one with direct ones. Their guests read an
emulated UART's scratch register, from Python and from machine code, with guest and root pinned to two CPUs and the
broker where it likes. They compare each value; one that is wrong fails the benchmark.
"""

import importlib.util
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any, Final

from runtime.config.loading import load
from runtime.exits import CommandError, ExitCode
from runtime.machine.events import Event
from runtime.machine.launch import run_in_foreground
from runtime.measure.bench_ring import Bench
from runtime.measure.goals import Goal, Values, conditions, row_of
from runtime.measure.measured_cpus import two_cpus
from runtime.measure.reference_programs import reference_programs
from runtime.reports import print_json, print_record, print_table

ROUNDS: Final = 5
SECONDS: Final = 0.4  # of exchanges, for the reference
ACCESSES: Final = 4_000

GOALS: Final = (
    Goal("hypervisor, from Python: p50", "python", "exchange_block", "us", at_most=3),
    Goal("hypervisor, from machine code: p50", "machine_code", "exchange_block", "us", at_most=3),
    Goal("direct, from Python: p50", "direct_python", "exchange_block", "us", at_most=3),
    Goal("direct, from machine code: p50", "direct_machine_code", "exchange_block", "us", at_most=3),
    Goal("hypervisor, from Python: p99", "python_p99", "python", "us", at_most=10),
    Goal("direct, from Python: p99", "direct_python_p99", "direct_python", "us", at_most=10),
    Goal("hypervisor, from Python, in hypercalls", "python", "hypercall", "us", at_most=5),
    Goal("a port that nobody intercepts", "not_intercepted", "hypercall", "us", at_most=2),
    Goal("a byte of a string access of 4096", "string_byte", "python", "us", at_most=0.05),
)
REFERENCES: Final = {
    "exchange_block": "a blocking exchange on a ring",
    "hypercall": "a hypercall that does nothing",
    "python": "p50 of an access from Python",
    "direct_python": "p50 of a direct access from Python",
}
_NAMES: Final = {
    "python": "python",
    "not intercepted": "not_intercepted",
    "hypercall": "hypercall",
    "machine code": "machine_code",
    "string of 4096": "string",
}
_MACHINE: Final = """
[machine]
name = "bench-intercept-{pid}"
memory = "64MiB"
[root]
cpus = [{root_cpu}]
[[partition]]
name = "load"
program = "partitions.guests.intercept_load:main"
memory = "16MiB"
cpus = [{guest_cpu}]
intercepts = "{intercepts}"
args = {{ count = {count}, machine_code = {machine_code} }}
[[partition.emulated]]
kind = "uart"
"""


def run_load(
    folder: Path, cpus: tuple[int, int], count: int, machine_code: bool, intercepts: str
) -> dict[str, dict[str, Any]]:
    """Boot a machine whose guest measures its accesses; what it reported, by kind. CommandError: one was wrong."""
    results: dict[str, dict[str, Any]] = {}
    complaints: list[str] = []

    def listen(event: Event, encoded: bytes) -> None:
        if event.kind == "guest.intercept_load":
            results[_NAMES[event.fields["name"]]] = event.fields
        elif event.kind == "output":
            complaints.append(str(event.fields.get("text")))

    config = folder / "machine.toml"
    config.write_text(
        _MACHINE.format(
            pid=os.getpid(),
            guest_cpu=cpus[0],
            root_cpu=cpus[1],
            count=count,
            intercepts=intercepts,
            machine_code=str(machine_code).lower(),
        )
    )
    if run_in_foreground(load(config), listen) == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if wrong := sum(result["wrong"] for result in results.values()):
        raise CommandError(f"{wrong} accesses did not read what the register holds")
    if len(results) != len(_NAMES) - (not machine_code):
        raise CommandError(f"the guest did not finish: {' '.join(complaints[-3:])}")
    return results


def one_round(bench: Bench, folder: Path, count: int, machine_code: bool) -> Values:
    """Every figure once, in us; the reference before and behind them."""
    before = bench.exchange_ns("full", "block")
    values: Values = {}
    for intercepts, prefix in (("hypervisor", ""), ("direct", "direct_")):
        results = run_load(folder, bench.cpus, count, machine_code, intercepts)
        for name, result in results.items():
            values[prefix + name] = result["p50_ns"] / 1000
            values[f"{prefix}{name}_p99"] = result["p99_ns"] / 1000
    values["string_byte"] = values["string"] / 4096
    after = bench.exchange_ns("full", "block")
    values["exchange_block"] = (before + after) / 2 / 1000
    return values


def dominant(rounds: list[Values]) -> str:
    """Where an access through the hypervisor spends its time, from the figures themselves: medians, in us."""

    def median(name: str) -> float:
        return statistics.median(values[name] for values in rounds)

    exchange, call = median("exchange_block"), median("hypercall")
    parts = {
        "four process switches": 2 * exchange,
        "two calls of the broker": 2 * max(call - exchange, 0),
        "message, emulator, record": max(median("python") - 2 * max(call, exchange), 0),
    }
    return ", ".join(f"{name} {part:.0f} us" for name, part in parts.items())


def run(*, cpus: tuple[int, int] | None = None, quick: bool = False, as_json: bool = False) -> int:
    """Measure and print; the exit code says whether every goal was met."""
    cpus = two_cpus(cpus)
    rounds, scale = (1, 0.25) if quick else (ROUNDS, 1.0)
    machine_code = importlib.util.find_spec("unicorn") is not None
    found = conditions(cpus)
    with reference_programs() as programs, tempfile.TemporaryDirectory(prefix="partvisor-bench-") as place:
        bench = Bench(cpus, SECONDS * scale, False, programs)
        measured = [one_round(bench, Path(place), int(ACCESSES * scale), machine_code) for _ in range(rounds)]
    goals = [goal for goal in GOALS if machine_code or "machine_code" not in goal.figure]
    rows = [row_of(goal, REFERENCES, measured) for goal in goals]
    found |= {
        "rounds": rounds,
        "accesses": int(ACCESSES * scale),
        "machine_code": "unicorn" if machine_code else "left out: pip install 'partvisor[emulation]'",
        "where_it_goes": dominant(measured),
    }
    if as_json:
        print_json({"rows": rows, "conditions": found, "rounds": measured})
    else:
        print_table(rows, "nothing was measured")
        print()
        print_record(found)
    return ExitCode.DONE if all(row["met"] for row in rows) else ExitCode.FAILED
