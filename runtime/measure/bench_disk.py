"""`partvisor bench disk`: a disk through VSC and VSP of a whole machine, beside what it is made of.

Each round boots two machines (spinning, blocking) with root and guest pinned to two CPUs, and measures the references
in between. The guest checks the CRC-32C of every block that it reads; one wrong block fails the benchmark.
"""

import os
import tempfile
import time
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
SECONDS: Final = 0.4  # of exchanges, for each reference and round
DISK_BYTES: Final = 64 << 20
CHUNK_BYTES: Final = 64 * 1024
SINGLE_READS: Final = 100_000
RANDOM_READS: Final = 400_000
SEQUENTIAL_READS: Final = 20_000
BLOCKING_READS: Final = 8_000

GOALS: Final = (
    Goal("4 KiB reads, depth 1, spin: p50", "single_spin", "slot", "ns", at_most=12),
    Goal("4 KiB random reads, depth 32, spin", "random", "random_floor", "reads/s", value_at_least=500_000),
    Goal("4 KiB reads, depth 1, block: p50", "single_block", "exchange_block", "ns", at_most=1.2),
    Goal("64 KiB reads in order, spin", "sequential", "memcpy", "GB/s", at_least=0.5),
)
REFERENCES: Final = {
    "slot": "one 64-byte slot, in C",
    "random_floor": "the goal itself",
    "exchange_block": "a blocking exchange, no disk",
    "memcpy": "memcpy in 64 KiB pieces",
}
_MACHINE: Final = """
[machine]
name = "bench-disk-{pid}"
memory = "256MiB"
waiting = "{waiting}"
[root]
cpus = [{root_cpu}]
[[root.device]]
name = "disk0"
kind = "disk"
backend = "file"
path = "{path}"
size = {size}
[[partition]]
name = "load"
program = "partitions.guests.disk_load:main"
memory = "64MiB"
cpus = [{guest_cpu}]
args = {{ device = "disk0", bytes = {size}, single = {single}, random = {random}, sequential = {sequential} }}
[[partition.device]]
name = "disk0"
ring_bytes = "64KiB"
"""


def run_load(
    folder: Path, cpus: tuple[int, int], waiting: str, **operations: int
) -> dict[str, dict[str, Any]]:
    """Boot a machine whose guest measures its disk; what it reported, by load. CommandError: a block was wrong."""
    results: dict[str, dict[str, Any]] = {}
    complaints: list[str] = []

    def listen(event: Event, encoded: bytes) -> None:
        if event.kind == "guest.disk_load":
            results[event.fields["name"]] = event.fields
        elif event.kind == "output":
            complaints.append(str(event.fields.get("text")))

    config = folder / "machine.toml"
    counts = {"single": 0, "random": 0, "sequential": 0} | operations
    config.write_text(
        _MACHINE.format(
            pid=os.getpid(),
            waiting=waiting,
            root_cpu=cpus[1],
            guest_cpu=cpus[0],
            path=folder / "disk.img",
            size=DISK_BYTES,
            **counts,
        )
    )
    if run_in_foreground(load(config), listen) == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if wrong := sum(result["mismatches"] for result in results.values()):
        raise CommandError(f"{wrong} blocks did not have the CRC that was written")
    if len(results) != sum(count > 0 for count in operations.values()):
        raise CommandError(f"the guest did not finish: {' '.join(complaints[-3:])}")
    return results


def one_round(bench: Bench, folder: Path, scale: float) -> Values:
    """Every figure once, its reference beside it."""
    first, second = bench.cpus
    slot = bench.reference("slot_pingpong", int(2_000_000 * bench.seconds), first, second)["p50_ns"]
    spun = run_load(
        folder,
        bench.cpus,
        "spin",
        single=int(SINGLE_READS * scale),
        random=int(RANDOM_READS * scale),
        sequential=int(SEQUENTIAL_READS * scale),
    )
    memcpy = _memcpy_bytes_per_second()
    exchange = bench.exchange_ns("full", "block")
    slept = run_load(folder, bench.cpus, "block", single=int(BLOCKING_READS * scale))
    scattered, ordered = spun["random 4 KiB reads"], spun["sequential 64 KiB reads"]
    return {
        "slot": slot,
        "single_spin": spun["single 4 KiB reads"]["p50_ns"],
        "random": scattered["operations"] / scattered["seconds"],
        "random_floor": 500_000,
        "sequential": ordered["operations"] * ordered["transfer_bytes"] / ordered["seconds"] / 1e9,
        "memcpy": memcpy / 1e9,
        "exchange_block": exchange,
        "single_block": slept["single 4 KiB reads"]["p50_ns"],
    }


def _memcpy_bytes_per_second() -> float:
    """DISK_BYTES in pieces into one buffer, the best of three: what a read from the page cache does at least."""
    source, target = memoryview(bytes(1) * DISK_BYTES), memoryview(bytearray(CHUNK_BYTES))
    best_s = float("inf")
    for _ in range(3):
        begun = time.perf_counter()
        for at in range(0, DISK_BYTES, CHUNK_BYTES):
            target[:] = source[at : at + CHUNK_BYTES]
        best_s = min(best_s, time.perf_counter() - begun)
    return DISK_BYTES / best_s


def run(*, cpus: tuple[int, int] | None = None, quick: bool = False, as_json: bool = False) -> int:
    """Measure and print; the exit code says whether every goal was met."""
    cpus = two_cpus(cpus)
    rounds, scale = (1, 0.2) if quick else (ROUNDS, 1.0)
    found = conditions(cpus)
    with reference_programs() as programs, tempfile.TemporaryDirectory(prefix="partvisor-bench-") as place:
        bench = Bench(cpus, SECONDS * scale, False, programs)
        measured = [one_round(bench, Path(place), scale) for _ in range(rounds)]
    rows = [row_of(goal, REFERENCES, measured) for goal in GOALS]
    found |= {"rounds": rounds, "disk_bytes": DISK_BYTES, "backing": "a file in the page cache"}
    if as_json:
        print_json({"rows": rows, "conditions": found, "rounds": measured})
    else:
        print_table(rows, "nothing was measured")
        print()
        print_record(found)
    return ExitCode.DONE if all(row["met"] for row in rows) else ExitCode.FAILED
