"""`partvisor bench nbd`: a partition's disk as an NBD client finds it, beside other servers under the same fio job."""

import sys
from typing import Any, Final

from runtime.exits import ExitCode
from runtime.measure.devices_disk import API, DISK_BYTES, NBDKIT, ExportRow, measure_exports
from runtime.measure.goals import conditions
from runtime.measure.measured_cpus import two_cpus
from runtime.measure.paired_ratio import Interval, ratio_of
from runtime.reports import print_json, print_record, print_table

ROUNDS: Final = 6  # the fewest that know an interval
SECONDS: Final = 1.0
QUICK_SECONDS: Final = 0.5
API_AT_LEAST: Final = 4.0  # times the faster peer's reads

Goal = tuple[str, Interval, float]


def goals_of(rows: list[ExportRow]) -> list[Goal]:
    """(what, the ratio, at least). Of peers that were measured."""
    ours, *peers, api = rows
    there = [peer for peer in peers if peer.missing is None]
    found = [(f"our export, to {peer.name}", peer.ratio(ours), 1.0) for peer in there]
    if there:
        fastest = [
            max(figures, key=lambda one: one.per_second)
            for figures in zip(*(peer.figures for peer in there), strict=True)
        ]
        best = [one.per_second for one in fastest]
        ratio = ratio_of([one.per_second for one in api.figures], best)
        found.append((f"{API}, to the fastest peer", ratio, API_AT_LEAST))
    return found


def run(*, quick: bool = False, as_json: bool = False) -> int:
    """Measure and print; the exit code says whether every goal was met."""
    cpus = two_cpus()
    found = conditions(cpus)
    rounds, seconds = (2, QUICK_SECONDS) if quick else (ROUNDS, SECONDS)
    rows = measure_exports(rounds, seconds, cpus, lambda text: print(text, file=sys.stderr, flush=True))
    goals = goals_of(rows)
    is_met = all(ratio.value >= wanted for _, ratio, wanted in goals)
    found |= {
        "rounds": rounds,
        "seconds": seconds,
        "disk_bytes": DISK_BYTES,
        "job": "4 KiB random reads, 32 in flight",
    }
    if as_json:
        report: dict[str, Any] = {"rows": [row.to_json(rows[0]) for row in rows], "conditions": found}
        report["goals"] = [
            {"goal": text, "ratio": ratio.to_json(), "at_least": wanted, "met": ratio.value >= wanted}
            for text, ratio, wanted in goals
        ]
        print_json(report)
    else:
        print_table([_shown(row, rows[0]) for row in rows], "nothing was measured")
        print()
        lines = [
            {"goal": text, "ratio": ratio.text(), "wanted": f">= {wanted:g}", "met": ratio.value >= wanted}
            for text, ratio, wanted in goals
        ]
        print_table(lines, f"no peer is installed: no goal was measured; apt-get install {NBDKIT.split()[0]}")
        print()
        print_record(found)
    return ExitCode.DONE if goals and is_met else ExitCode.FAILED


def _shown(row: ExportRow, ours: ExportRow) -> dict[str, Any]:
    told = row.to_json(ours)
    cpu = told.get("server_cpu_us")
    return {
        "server": row.name,
        "reads_per_s": told.get("per_second", "-"),
        "server_cpu_us": "-" if cpu is None else cpu,
        "ours_by_it": "-" if row is ours or row.missing else row.ratio(ours).text(),
        "remark": row.missing or "",
    }
