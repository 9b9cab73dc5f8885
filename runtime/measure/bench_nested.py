"""`partvisor bench nested`: what each level of a tree adds to a disk request.

One machine with a load at each of three depths, all on the root's one disk: the load at depth 2 behind one partition
that passes the disk on, that at depth 3 behind two. They take turns in windows of one clock, so each round has all
three figures side by side, and a ratio is that of one round's own two values. Every block is checked.
"""

import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from runtime.config.loading import load
from runtime.exits import CommandError, ExitCode
from runtime.machine.events import Event
from runtime.machine.launch import run_in_foreground
from runtime.measure.goals import conditions
from runtime.reports import print_json, print_record, print_table

DEPTHS: Final = (1, 2, 3)
ROUNDS: Final = 10
QUICK_ROUNDS: Final = 3
WINDOW_MS: Final = 200
WAITING: Final = ("adaptive", "block")

_MACHINE: Final = """
[machine]
name = "bench-nested-{pid}"
memory = "512MiB"
waiting = "{waiting}"
[[root.device]]
name = "disk0"
kind = "disk"
backend = "memory"
size = "16MiB"
"""
_PARTITION: Final = """
[[partition]]
name = "{name}"
parent = "{parent}"
program = "partitions.guests.{program}:main"
memory = "{memory}MiB"
args = {{ {args} }}
[[partition.device]]
name = "disk0"
"""
_LOAD: Final = (
    'device = "disk0", depth = {depth}, turn = {turn}, turns = {turns}, '
    "rounds = {rounds}, window_ms = {window_ms}"
)


def machine_text(waiting: str, rounds: int, depths: Sequence[int] = DEPTHS) -> str:
    """A config with a load at each depth, below a chain of partitions that pass the disk on."""
    text, parent = _MACHINE.format(pid=os.getpid(), waiting=waiting), "root"
    for depth in range(1, max(depths) + 1):
        if depth in depths:
            turn = {"depth": depth, "turn": list(depths).index(depth), "turns": len(depths)}
            args = _LOAD.format(**turn, rounds=rounds, window_ms=WINDOW_MS)
            text += _PARTITION.format(
                name=f"load{depth}", parent=parent, program="nested_load", memory=32, args=args
            )
        if depth < max(depths):
            memory = 64 * (max(depths) - depth) + 16
            text += _PARTITION.format(
                name=f"parent{depth}", parent=parent, program="parent", memory=memory, args=""
            )
            parent = f"parent{depth}"
    return text


def measure(waiting: str, rounds: int) -> dict[int, Mapping[str, Any]]:
    """What the load at each depth reported. CommandError: a block was wrong, or a load did not finish."""
    results: dict[int, Mapping[str, Any]] = {}
    complaints: list[str] = []

    def listen(event: Event, encoded: bytes) -> None:
        if event.kind == "guest.nested_load":
            results[event.fields["depth"]] = event.fields
        elif event.kind in ("output", "machine.ending"):
            complaints.append(str(event.fields.get("text") or event.fields.get("reason")))

    with tempfile.TemporaryDirectory(prefix="partvisor-bench-") as place:
        config = Path(place) / "machine.toml"
        config.write_text(machine_text(waiting, rounds))
        if run_in_foreground(load(config), listen) == ExitCode.INTERRUPTED:
            raise KeyboardInterrupt
    if set(results) != set(DEPTHS):
        raise CommandError(f"a load did not finish: {' '.join(complaints[-3:])}")
    if bad := [depth for depth in DEPTHS if results[depth]["mismatches"] or not results[depth]["whole"]]:
        raise CommandError(f"at depth {bad[0]} a block was not what was written to it")
    return results


def row(waiting: str, depth: int, results: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """One depth's figures; the ratio is the median over the rounds of p50 to p50 at depth 1.

    Raises CommandError: of one of the two no round was measured.
    """
    found, first = results[depth], results[DEPTHS[0]]
    pairs = list(zip(found["round_p50_ns"], first["round_p50_ns"], strict=False))
    if not pairs:
        raise CommandError(f"depth {depth}: no window was met in time; this host is too busy to measure on")
    return {
        "waiting": waiting,
        "depth": depth,
        "read_p50_ns": found["read_p50_ns"],
        "read_p99_ns": found["read_p99_ns"],
        "write_p50_ns": found["write_p50_ns"],
        "write_p99_ns": found["write_p99_ns"],
        "ratio": round(statistics.median(ours / theirs for ours, theirs in pairs), 2),
        "queued_reads_per_second": found["queued_reads_per_second"],
    }


def run(*, quick: bool = False, as_json: bool = False) -> int:
    """Measure and print. There is no goal: the figures are what they are."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    found = conditions(tuple(sorted(os.sched_getaffinity(0))))
    measured = {}
    for waiting in WAITING:
        seconds = rounds * len(DEPTHS) * WINDOW_MS / 1000
        print(f"waiting {waiting}: about {seconds:.0f} s", file=sys.stderr, flush=True)
        measured[waiting] = measure(waiting, rounds)
    rows = [row(waiting, depth, measured[waiting]) for waiting in WAITING for depth in DEPTHS]
    found |= {"rounds": rounds, "window_ms": WINDOW_MS, "block_bytes": 4096, "backing": "memory"}
    if as_json:
        rounds_p50 = {
            waiting: {str(depth): results[depth]["round_p50_ns"] for depth in DEPTHS}
            for waiting, results in measured.items()
        }
        print_json({"rows": rows, "conditions": found, "round_p50_ns": rounds_p50})
    else:
        print_table(rows, "nothing was measured")
        print()
        print_record(found)
    return ExitCode.DONE
