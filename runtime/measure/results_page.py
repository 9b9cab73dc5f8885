"""A run as one offline page: bars, percentile curves, distributions, load curves, the hops, the conditions."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from bus.native import Histogram
from runtime.drawing.bars import Bar, Part, SplitBar, bar_chart, split_chart
from runtime.drawing.lines import Axis, Series, line_chart
from runtime.drawing.markup import Markup, joined, tag
from runtime.drawing.page import LegendEntry, details, facts, legend, page, section, swatches, table, tabs
from runtime.drawing.scales import (
    LinearScale,
    LogScale,
    PercentileScale,
    duration,
    log_scale_around,
    three_digits,
)
from runtime.measure.comparison import ComparedFigure, Comparison, Verdict
from runtime.measure.figures import Figures, figures_of
from runtime.measure.results import Conditions, Mode, Row, Run, Status
from runtime.sizes import format_size

LINES_SHOWN_MAX: Final = 10  # with more, the fastest of each group begin visible
STEPS_A_DECADE: Final = 24  # points of a percentile curve for each nine
NINES_MIN, NINES_MAX = 2.0, 6.0
CDF_PERCENTS: Final = (0.0, 0.1, 0.5, *map(float, range(1, 100)), 99.5, 99.9)
_GAP: Final = " · "


def run_page(run: Run, comparison: Comparison | None = None) -> str:
    """The whole document. With a comparison, whose second run is `run`, its verdicts come first."""
    when = datetime.fromtimestamp(run.started_unix_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M UTC")
    subtitle = _GAP.join(filter(None, (run.label, when, f"run {run.id}", f"revision {run.revision}")))
    colours = {group: index for index, group in enumerate(dict.fromkeys(row.group for row in run.rows))}
    sections = [
        _verdicts(comparison) if comparison is not None else None,
        _round_trips(run, colours),
        _load_curves(run, colours),
        _ways(run, colours),
        _limit_over_time(run),
        _conditions(run),
    ]
    title = f"partvisor bench {run.bench}"
    footer = "Rounds whose conditions changed were taken again and count in no figure. Latencies in nanoseconds and up."
    return page(title, subtitle, [each for each in sections if each is not None], footer)


# -- round trips: a panel for each payload and placement ----------------------------------------------------


def _round_trips(run: Run, colours: Mapping[str, int]) -> Markup | None:
    panels: dict[str, Markup] = {}
    for label, rows in _panels(row for row in run.rows if row.mode is Mode.CLOSED).items():
        measured = sorted(_ok(rows), key=lambda row: figures_of(row).to_limit)
        missing = [row for row in rows if row.status is not Status.OK]
        panels[label] = joined(
            _bars(measured, missing, colours), _curves(measured, colours), _figures(measured)
        )
    if not panels:
        return None
    note = (
        "A request and its reply, one after the other. A bar is p50 divided by the limit, which is what two C processes"
        " need to hand each other one cache line, measured just before each round; the thin line reaches to p99."
    )
    return section("Round trip", note, tabs("trip", panels))


def _bars(measured: Sequence[Row], missing: Sequence[Row], colours: Mapping[str, int]) -> Markup:
    figures = [figures_of(row) for row in measured]
    bars = [_bar(row, each, colours) for row, each in zip(measured, figures, strict=True)]
    bars += [
        Bar(_short(row), None, row.status.value, colours[row.group], f"{row.name}\n{row.reason}")
        for row in missing
    ]
    longest = max((bar.whisker or bar.value or 1 for bar in bars), default=1)
    scale = LogScale(
        min([1.0, *(bar.value for bar in bars if bar.value is not None)]), max(longest, 2) * 1.02
    )
    return bar_chart(bars, scale, lambda value: f"{three_digits(value)}×", "p50 as a ratio to the limit")


def _bar(row: Row, figures: Figures, colours: Mapping[str, int]) -> Bar:
    p50, p99 = figures.percentiles_ns[50], figures.percentiles_ns[99]
    return Bar(
        _short(row),
        figures.to_limit,
        f"{three_digits(figures.to_limit)}×{_GAP}{duration(p50)}",
        colours[row.group],
        _tip(row, figures),
        figures.to_limit * p99 / max(p50, 1),
    )


def _tip(row: Row, figures: Figures) -> str:
    lines = [f"{row.name} ({row.group})"]
    lines += [f"p{percent:g}: {duration(value)}" for percent, value in figures.percentiles_ns.items()]
    lines += [
        f"max: {duration(figures.maximum_ns)}",
        f"{three_digits(figures.to_limit)} × the limit",
        f"{three_digits(figures.per_second)} a second, {figures.rounds} rounds",
    ]
    return "\n".join(lines)


def _curves(rows: Sequence[Row], colours: Mapping[str, int]) -> Markup | None:
    """Percentile curves and distribution functions; one legend switches both."""
    if not rows:
        return None
    hidden = _hidden(rows)
    looks = _looks(rows)
    wholes = [row.latency for row in rows]
    latency = log_scale_around([value for each in wholes for value in (each.minimum, each.maximum)])
    nines = min(max(max(len(str(each.count)) - 1.0 for each in wholes), NINES_MIN), NINES_MAX)
    curves, functions = [], []
    for row, whole in zip(rows, wholes, strict=True):
        figures = figures_of(row)
        name, colour, tip = _short(row), colours[row.group], _tip(row, figures)
        look = {"dashes": looks[row.name], "tip": tip, "hidden": row.name in hidden}
        curves.append(Series(name, percentile_points(whole, nines), colour, **look))  # type: ignore[arg-type]
        functions.append(Series(name, distribution_points(whole), colour, **look))  # type: ignore[arg-type]
    value_axis = Axis(latency, "round trip", duration)
    share_axis = Axis(LinearScale(0, 100), "share at or below, %", lambda value: f"{value:g}")
    entries = [
        LegendEntry(_short(row), colours[row.group], looks[row.name], row.name in hidden)
        for row in sorted(rows, key=lambda row: colours[row.group])
    ]
    percentile_axis = Axis(PercentileScale(nines), "percentile", percent_text)
    return tag(
        "div",
        tag("h3", "Latency by percentile"),
        legend(entries),
        line_chart(curves, percentile_axis, value_axis, "latency by percentile"),
        tag("h3", "Distribution"),
        line_chart(functions, value_axis, share_axis, "cumulative distribution of latencies"),
    )


def percentile_points(whole: Histogram, nines: float) -> list[tuple[float, float]]:
    """(percentile, value), as far as there are values to tell one percentile from the next."""
    reach = min(nines, len(str(whole.count)) - 1 if whole.count < 10**nines else nines)
    steps = max(round(reach * STEPS_A_DECADE), 1)
    percents = [100 * (1 - 10 ** (-reach * step / steps)) for step in range(steps + 1)]
    return [(percent, float(whole.percentile(percent))) for percent in percents]


def distribution_points(whole: Histogram) -> list[tuple[float, float]]:
    """(value, percent of all that are not above it)."""
    points = [(float(whole.percentile(percent)), percent) for percent in CDF_PERCENTS]
    return [*points, (float(whole.maximum), 100.0)]


def percent_text(percent: float) -> str:
    return f"{percent:.10g} %"


def _figures(rows: Sequence[Row]) -> Markup:
    columns = (
        "row",
        "p50",
        "p90",
        "p99",
        "p99.9",
        "max",
        "× limit",
        "a second",
        "CPU",
        "switches",
        "wake-ups",
    )
    lines = []
    for row in rows:
        each = figures_of(row)
        lines.append(
            [
                _short(row),
                *map(duration, each.percentiles_ns.values()),
                duration(each.maximum_ns),
                three_digits(each.to_limit),
                three_digits(each.per_second),
                "–" if each.cpu_ns is None else duration(each.cpu_ns),
                _count(each.switches),
                _count(each.wake_ups),
            ]
        )
    return details(
        "All figures; CPU time, switches and wake-ups of both sides, an exchange", table(columns, lines)
    )


# -- open loop ----------------------------------------------------------------------------------------------


def _load_curves(run: Run, colours: Mapping[str, int]) -> Markup | None:
    panels: dict[str, Markup] = {}
    for label, rows in _panels(_ok(row for row in run.rows if row.mode is Mode.OPEN)).items():
        by_name: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            by_name[_short(row)].append(row)
        p50s: list[Series] = []
        p99s: list[Series] = []
        entries: list[LegendEntry] = []
        for name, own in by_name.items():
            own.sort(key=lambda row: row.offered_per_s or 0)
            colour = colours[own[0].group]
            dashes = sum(entry.colour == colour for entry in entries)
            entries.append(LegendEntry(name, colour, dashes))
            for percent, into in ((50.0, p50s), (99.0, p99s)):
                points = [(row.offered_per_s or 0, float(row.latency.percentile(percent))) for row in own]
                tip = "\n".join(
                    [f"{name}: p{percent:g}"]
                    + [f"{three_digits(load)}/s: {duration(value)}" for load, value in points]
                )
                into.append(Series(name, points, colour, dashes, tip, dots=True))
        loads = log_scale_around([load for each in p50s for load, _ in each.points])
        latencies = log_scale_around([value for each in (*p50s, *p99s) for _, value in each.points])
        x, y = (
            Axis(loads, "offered load, requests a second", three_digits),
            Axis(latencies, "latency", duration),
        )
        panels[label] = tag(
            "div",
            legend(entries),
            tag("h3", "p50"),
            line_chart(p50s, x, y, "p50 by offered load"),
            tag("h3", "p99"),
            line_chart(p99s, x, y, "p99 by offered load"),
        )
    if not panels:
        return None
    note = "Requests start when their time has come, whether or not the last reply is there; latency counts from then."
    return section("Latency under load", note, tabs("load", panels))


# -- the way of an exchange ---------------------------------------------------------------------------------


def _ways(run: Run, colours: Mapping[str, int]) -> Markup | None:
    rows = [row for row in run.rows if row.hops]
    if not rows:
        return None
    names = {
        name: index for index, name in enumerate(dict.fromkeys(hop.name for row in rows for hop in row.hops))
    }
    sums = [sum(hop.latency.percentile(50) for hop in row.hops) or 1 for row in rows]
    bars = []
    for row, total in zip(rows, sums, strict=True):
        parts = [
            Part(
                hop.name,
                hop.latency.percentile(50) / max(sums),
                names[hop.name],
                f"{hop.name}\np50 {duration(hop.latency.percentile(50))}, p99 {duration(hop.latency.percentile(99))}\n"
                f"{100 * hop.latency.percentile(50) / total:.0f} % of the sum",
            )
            for hop in row.hops
        ]
        bars.append(SplitBar(_short(row) + _GAP + _payload(row), parts, duration(total)))
    lines = [
        [row.name, hop.name, *(duration(hop.latency.percentile(percent)) for percent in (50, 90, 99))]
        for row in rows
        for hop in row.hops
    ]
    note = "Each hop's p50, in order. They add up to about the round trip's p50, not exactly: medians do not."
    folded = details("All hops", table(("row", "hop", "p50", "p90", "p99"), lines, words=2))
    named = swatches(names)
    return section("Where the time goes", note, split_chart(bars, "p50 of each hop"), named, folded)


# -- verdicts and conditions --------------------------------------------------------------------------------


def _verdicts(comparison: Comparison) -> Markup:
    note = (
        f"This run against {comparison.first.id} (revision {comparison.first.revision}): {comparison.summary}. A ratio"
        f" above 1 is slower. Intervals of 95 %; differences below {comparison.margin * 100:g} % do not count."
    )
    changed = [figure for figure in comparison.figures if figure.verdict in (Verdict.FASTER, Verdict.SLOWER)]
    first = _verdict_table(changed) if changed else None
    every = details("All rows and percentiles", _verdict_table(comparison.figures))
    return section("Compared", note, *([first, every] if first is not None else [every]))


def _verdict_table(figures: Sequence[ComparedFigure]) -> Markup:
    lines: list[list[str]] = []
    for figure in figures:
        found = figure.difference
        word = figure.verdict.value
        style = word if figure.verdict in (Verdict.FASTER, Verdict.SLOWER) else None
        ratio = (
            ["–", "–"] if found is None else [f"{found.ratio:.3f}", f"{found.low:.3f} to {found.high:.3f}"]
        )
        lines.append([figure.row, tag("span", word, class_=style), f"p{figure.percent:g}", *ratio])
    return table(("row", "verdict", "percentile", "ratio", "interval"), lines, words=3)


def _limit_over_time(run: Run) -> Markup | None:
    """One dot a round: whether the machine was the same all the time."""
    rounds = sorted(
        ((one.at_s, one.limit_ns, one.changed) for row in run.rows for one in row.rounds),
        key=lambda each: each[0],
    )
    if len(rounds) < 2 or rounds[-1][0] <= rounds[0][0]:
        return None
    kept = [(at_s, limit) for at_s, limit, changed in rounds if not changed]
    retaken = [(at_s, limit) for at_s, limit, changed in rounds if changed]
    series = [Series("counted", kept, 0, tip="the limit before a round that counts", dots=True, joined=False)]
    entries = [LegendEntry("counted", 0)]
    if retaken:
        tip = "the limit before a round that was taken again"
        series.append(Series("taken again", retaken, 4, tip=tip, dots=True, joined=False))
        entries.append(LegendEntry("taken again", 4))
    values = [limit for _, limit, _ in rounds]
    # Around what it was, never so narrow that a tremble looks like a landslide.
    latency = Axis(LogScale(min(values) / 1.5, max(values) * 1.5), "limit", duration)
    time = Axis(LinearScale(0, rounds[-1][0] * 1.02), "seconds since the run began", three_digits)
    note = (
        f"What two C processes needed at the time, p50; median {duration(statistics.median(values))}. Steps mean that"
        " the CPUs came to stand differently to each other: compare ratios then, not times."
    )
    drawn = line_chart(series, time, latency, "the limit over time")
    return section("The limit over time", note, legend(entries) if retaken else "", drawn)


def _conditions(run: Run) -> Markup:
    pairs = {
        name.replace("_", " "): _words(getattr(run.conditions, name)) for name in Conditions.__struct_fields__
    }
    pairs |= {f"version of {name}": version for name, version in run.versions.items()}
    missing = [
        [row.name, row.status.value, row.reason or ""] for row in run.rows if row.status is not Status.OK
    ]
    absent = (
        joined(tag("h3", "Not measured"), table(("row", "status", "why"), missing, words=3))
        if missing
        else None
    )
    content = [facts(pairs)] + ([absent] if absent is not None else [])
    return section("Conditions", "Figures hold under these. Under others only ratios may.", *content)


# -- names --------------------------------------------------------------------------------------------------


def _panels(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[f"{_payload(row)}, {row.placement.value}"].append(row)
    return found


def _ok(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.status is Status.OK]


def _short(row: Row) -> str:
    """In a panel, which says payload and placement."""
    return f"{row.transport}{_GAP}{row.waiting.value}"


def _payload(row: Row) -> str:
    return re.sub(r"(?<=[0-9])(?=[A-Z])", "\N{NO-BREAK SPACE}", format_size(row.payload_bytes))


def _hidden(rows: Sequence[Row]) -> set[str]:
    """Of many, all but the fastest of each group; `rows` are sorted by speed."""
    if len(rows) <= LINES_SHOWN_MAX:
        return set()
    fastest: dict[str, str] = {}
    for row in rows:
        fastest.setdefault(row.group, row.name)
    return {row.name for row in rows} - set(fastest.values())


def _looks(rows: Sequence[Row]) -> dict[str, int]:
    """Which dashes: lines of one group share a colour."""
    seen: dict[str, int] = defaultdict(int)
    looks = {}
    for row in rows:
        looks[row.name] = seen[row.group]
        seen[row.group] += 1
    return looks


def _count(value: float | None) -> str:
    return "–" if value is None else three_digits(value)


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
