"""What `partvisor compare` prints: one table, then what may be said of it, in words; and the same as JSON."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from msgspec import to_builtins

from runtime.config.sizes import format_size
from runtime.drawing.scales import duration, three_digits
from runtime.measure.compare_noise import Statement, Verdict, times
from runtime.measure.compare_run import COLUMNS, PERCENTS, RESIDENT, Entry, Result
from runtime.measure.noise_test import ROUNDS_MIN
from runtime.measure.process_usage import Usage

Statements = Mapping[tuple[int, str], Sequence[Statement]]

HEADINGS: Final = dict(zip(COLUMNS, ("p50", "p99", "p99.9", "per second", "CPU", "switches"), strict=True))
OWN_MARK: Final = "*"
WITHIN_MARK: Final = "~"
UNKNOWN_MARK: Final = "?"
LEGEND: Final = (
    f"{OWN_MARK} the config's own, which the others are compared with: 12 x beyond noise, {WITHIN_MARK} within noise,"
    f" {UNKNOWN_MARK} nothing can be said.\n"
    "CPU and switches: of all processes, a request. Trusted: bytes of code, ours + the interpreter's and libraries'.\n"
    "Resident: all processes. Sees data: processes other than the guest. docs/isolation.md says how to read each."
)


def figures_of(entry: Entry, load: str) -> dict[str, float]:
    """Of all turns together, by column."""
    turns, latency = entry.figures(load), entry.latency(load)
    operations = sum(one.operations for one in turns)
    total = sum((one.total for one in turns), Usage())
    values = [
        *(float(latency.percentile(percent)) for percent in PERCENTS),
        operations / sum(one.seconds for one in turns),
        total.cpu_ns / operations,
        (total.voluntary_switches + total.involuntary_switches) / operations,
    ]
    return dict(zip(COLUMNS, values, strict=True))


_TEXTS: Final = (duration, duration, duration, three_digits, duration, three_digits)


def column_text(column: str, value: float) -> str:
    return _TEXTS[COLUMNS.index(column)](value)


def table_rows(result: Result, said: Statements) -> list[dict[str, str]]:
    """One line a load and variant, the loads one after the other."""
    rows = []
    for load in result.load_names:
        for index, entry in enumerate(result.entries):
            if not entry.is_measured:
                continue
            row = {
                "load": load,
                "architecture": entry.terms.architecture + (OWN_MARK if index == 0 else ""),
                "route": entry.terms.route,
                "waiting": entry.terms.waiting,
            }
            marks = {
                each.column: mark(each) for each in (*said.get((index, load), ()), *said.get((index, ""), ()))
            }
            for column, value in figures_of(entry, load).items():
                row[HEADINGS[column]] = f"{column_text(column, value)}{marks.get(column, '')}"
            row |= {
                "trusted": trusted_text(entry),
                "resident": f"{short_size(statistics.median(entry.resident_bytes))}{marks.get(RESIDENT, '')}",
                "sees data": seen_text(entry),
            }
            rows.append(row)
    return rows


def mark(statement: Statement) -> str:
    """ " 12.6 x", " ~" or " ?": behind a figure."""
    match statement.verdict:
        case Verdict.WITHIN:
            return f" {WITHIN_MARK}"
        case Verdict.UNKNOWN:
            return f" {UNKNOWN_MARK}"
        case Verdict.BEYOND:
            assert statement.ratio is not None
            return f" {times(statement.ratio.value)} x"


def short_size(size: float) -> str:
    """ "612 KiB", "61.2 MiB": three digits, which `format_size` would not round to."""
    for unit, power in (("MiB", 20), ("KiB", 10)):
        if size >= 1 << power:
            return f"{three_digits(size / (1 << power))} {unit}"
    return format_size(round(size))


def trusted_text(entry: Entry) -> str:
    found = entry.findings
    if found is None or found.code is None:
        return UNKNOWN_MARK
    return f"{short_size(found.code.ours)} + {short_size(found.code.others)}"


def seen_text(entry: Entry) -> str:
    """ "2: disk0, load.vmm"; at least so many where not all can be seen."""
    found = entry.findings
    if found is None:
        return UNKNOWN_MARK
    names = list(found.survey.seen_by)
    least = "" if found.survey.is_complete else ">="
    return f"{least}{len(names)}" + (f": {', '.join(names)}" if names else "")


def sentences(result: Result, said: Statements) -> list[str]:
    """A line for each variant and load: every column that differs, with its interval; then which do not."""
    lines = []
    if result.rounds < ROUNDS_MIN:
        return [
            f"nothing can be said of differences: rounds {result.rounds}, {ROUNDS_MIN} are needed (--rounds)"
        ]
    for (index, load), found in said.items():
        beyond = [each.text for each in found if each.verdict is Verdict.BEYOND]
        within = [each.column for each in found if each.verdict is Verdict.WITHIN]
        unknown: dict[str, list[str]] = {}
        for each in found:
            if each.verdict is Verdict.UNKNOWN:
                unknown.setdefault(each.why, []).append(each.column)
        parts = [
            *beyond,
            *([f"within noise: {', '.join(within)}"] if within else []),
            *(f"nothing can be said of {', '.join(columns)}: {why}" for why, columns in unknown.items()),
        ]
        about = f" ({load})" if load else ""
        lines.append(f"{result.entries[index].terms.name}{about}: {'; '.join(parts)}")
    return lines


def missing(result: Result) -> list[str]:
    """Variants without figures, and why."""
    return [
        f"{entry.terms.name}: {status_text(entry)}: {entry.reason}"
        for entry in result.entries
        if not entry.is_measured
    ]


def status_text(entry: Entry) -> str:
    return {"not possible": "not applicable"}.get(entry.status.value, entry.status.value)


def to_json(result: Result, said: Statements) -> dict[str, Any]:
    return {
        "run": result.id,
        "config": result.source,
        "label": result.label,
        "seed": result.seed,
        "rounds": result.rounds,
        "seconds": round(result.seconds, 1),
        "conditions": to_builtins(result.conditions),
        "variants": [_variant_json(result, index, said) for index in range(len(result.entries))],
    }


def _variant_json(result: Result, index: int, said: Statements) -> dict[str, Any]:
    entry = result.entries[index]
    found: dict[str, Any] = {**asdict(entry.terms), "own": index == 0, "status": status_text(entry)}
    if not entry.is_measured:
        return found | {"reason": entry.reason}
    found["loads"] = [_load_json(entry, load, said.get((index, load), ())) for load in result.load_names]
    latest = entry.turns[-1].boot.resident_bytes
    found["resident"] = {
        "bytes": round(statistics.median(entry.resident_bytes)),
        "by_process": dict(latest),
        "statements": [each.to_json() for each in said.get((index, ""), ())],
    }
    if (findings := entry.findings) is None:
        return found
    return found | {
        "sees_data": {name: list(how) for name, how in findings.survey.seen_by.items()},
        "could_map_data": list(findings.survey.could_map),
        "hidden_processes": list(findings.survey.hidden),
        "trusted": {
            "processes": list(findings.trusted),
            "ours_bytes": None if findings.code is None else findings.code.ours,
            "others_bytes": None if findings.code is None else findings.code.others,
            "by_process": {name: asdict(code) for name, code in findings.code_of.items()},
        },
    }


def _load_json(entry: Entry, load: str, said: Sequence[Statement]) -> dict[str, Any]:
    turns, figures = entry.figures(load), figures_of(entry, load)
    operations = sum(one.operations for one in turns)
    processes = dict.fromkeys(name for one in turns for name in one.usage)
    return {
        "load": load,
        "guests": list(turns[0].guests),
        "transfer_bytes": turns[0].transfer_bytes,
        "depth": turns[0].depth,
        "requests": operations,
        "p50_ns": figures["p50"],
        "p99_ns": figures["p99"],
        "p99.9_ns": figures["p99.9"],
        "per_second": round(figures["throughput"], 1),
        "cpu_ns_per_request": round(figures["CPU per request"], 1),
        "cpu_ns_by_process": {
            name: round(sum(one.usage.get(name, Usage()).cpu_ns for one in turns) / operations, 1)
            for name in processes
        },
        "switches_per_request": round(figures["switches per request"], 4),
        "statements": [each.to_json() for each in said],
    }
