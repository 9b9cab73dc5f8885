"""A row's figures, for tables and pages: percentiles, what an exchange cost, and ratios."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from bus.native import Histogram
from runtime.measure.results import Round, Row, Run, Status

PERCENTS: Final = (50.0, 90.0, 99.0, 99.9)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one row that is ok. Costs are of both sides, an exchange; None: nobody counted."""

    percentiles_ns: dict[float, int]
    maximum_ns: int
    to_limit: float  # median over the rounds of p50 / the limit just before
    per_second: float
    cpu_ns: float | None
    switches: float | None
    wake_ups: float | None
    rounds: int
    retaken: int  # rounds that do not count


def figures_of(row: Row) -> Figures:
    """Of a row that is ok; its rounds together."""
    counted, whole = row.counted, row.latency
    exchanges = sum(one.exchanges for one in counted)

    def an_exchange(*fields: str) -> float | None:
        """The sum of some costs of all rounds; None if one was not counted in one of them."""
        values = [getattr(one, field) for one in counted for field in fields]
        return None if None in values else sum(values) / exchanges

    return Figures(
        percentiles_ns={percent: whole.percentile(percent) for percent in PERCENTS},
        maximum_ns=whole.maximum,
        to_limit=statistics.median(limit_ratio(one) for one in counted),
        per_second=exchanges / sum(one.seconds for one in counted),
        cpu_ns=an_exchange("client_cpu_ns", "server_cpu_ns"),
        switches=an_exchange("voluntary_switches", "involuntary_switches"),
        wake_ups=an_exchange("wake_ups"),
        rounds=len(counted),
        retaken=len(row.rounds) - len(counted),
    )


def limit_ratio(one: Round, percent: float = 50.0) -> float:
    return one.latency.percentile(percent) / one.limit_ns


def baseline_of(run: Run, row: Row, transport: str) -> Row | None:
    """The row of that transport under the same terms as `row`: its payload, placement, mode and load.

    Of several that differ in waiting alone, the one that waits as `row` does, otherwise the first.
    """
    fits = [
        each
        for each in run.rows
        if each.transport == transport
        and each.status is Status.OK
        and (each.payload_bytes, each.placement, each.mode, each.offered_per_s)
        == (row.payload_bytes, row.placement, row.mode, row.offered_per_s)
    ]
    return next((each for each in fits if each.waiting is row.waiting), fits[0] if fits else None)


def table_row(run: Run, row: Row, baseline: str | None = None) -> dict[str, Any]:
    """One line of `bench show`. A row that was not measured says why, in place of its figures."""
    line: dict[str, Any] = {"row": row.name, "group": row.group, "status": row.status.value}
    if row.status is not Status.OK:
        return line | {"reason": row.reason}
    figures = figures_of(row)
    line |= {f"p{percent:g}_ns": value for percent, value in figures.percentiles_ns.items()}
    line |= {
        "max_ns": figures.maximum_ns,
        "to_limit": round(figures.to_limit, 3),
        "per_second": round(figures.per_second),
        "cpu_ns": None if figures.cpu_ns is None else round(figures.cpu_ns),
        "switches": _rounded(figures.switches, 3),
        "wake_ups": _rounded(figures.wake_ups, 3),
        "rounds": figures.rounds,
        "retaken": figures.retaken,
    }
    if baseline is not None:
        other = baseline_of(run, row, baseline)
        line["to_baseline"] = None if other is None else round(median_ratio(row, other), 3)
    return line


def median_ratio(row: Row, other: Row, percent: float = 50.0) -> float:
    """Median over the rounds of one's percentile to the other's; of the whole where they have not as many rounds."""
    if len(row.counted) != len(other.counted):
        return _positive(row.latency, percent) / _positive(other.latency, percent)
    pairs = zip(row.counted, other.counted, strict=True)
    return statistics.median(
        _positive(one.latency, percent) / _positive(two.latency, percent) for one, two in pairs
    )


def limits_ns(rows: Sequence[Row]) -> list[float]:
    """Every limit that was measured, in order of time."""
    rounds = [one for row in rows for one in row.rounds]
    return [one.limit_ns for one in sorted(rounds, key=lambda one: one.at_s)]


def _positive(histogram: Histogram, percent: float) -> float:
    return max(histogram.percentile(percent), 1)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
