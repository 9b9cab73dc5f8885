"""A run as one offline page: bars, percentile curves, distributions, load curves, the hops, the conditions."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from bus.native import Histogram
from runtime.drawing.bars import Part, SplitBar, split_chart
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
from runtime.measure.figures import baseline_of, figures_of, median_ratio
from runtime.measure.results import Conditions, Mode, Row, Run, Status
from runtime.measure.results_chart import (
    GAP,
    bars_of,
    colours_of,
    in_order,
    panels_of,
    payload_text,
    short_name,
    tip_of,
)
from runtime.measure.trace_split import Step

_RETAKEN_COLOUR: Final = 4  # red; there are fewer payloads
LINES_SHOWN_MAX: Final = 10  # with more, the fastest of each group begin visible
STEPS_A_DECADE: Final = 24  # points of a percentile curve for each nine
NINES_MIN, NINES_MAX = 2.0, 6.0
_KINDS_OF_HOPS: Final = {step.text: step.where.value for step in Step}
CDF_PERCENTS: Final = (0.0, 0.1, 0.5, *map(float, range(1, 100)), 99.5, 99.9)


def run_page(run: Run, comparison: Comparison | None = None, baseline: str | None = None) -> str:
    """The whole document.

    Args:
        comparison: its second run is `run`; its verdicts come first.
        baseline: a transport; the tables say how each row stands to its row.
    """
    when = datetime.fromtimestamp(run.started_unix_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M UTC")
    subtitle = GAP.join(filter(None, (run.label, when, f"run {run.id}", f"revision {run.revision}")))
    colours = colours_of(run)
    sections = [
        _verdicts(comparison) if comparison is not None else None,
        _round_trips(run, colours, baseline),
        _load_curves(run, colours),
        _ways(run),
        _limit_over_time(run),
        _conditions(run),
    ]
    title = f"partvisor bench {run.bench}"
    footer = "Rounds whose conditions changed were taken again and count in no figure. Latencies in nanoseconds and up."
    return page(title, subtitle, [each for each in sections if each is not None], footer)


# -- round trips: a panel for each payload and placement ----------------------------------------------------


def _round_trips(run: Run, colours: Mapping[str, int], baseline: str | None) -> Markup | None:
    panels: dict[str, Markup] = {}
    for label, rows in panels_of(row for row in run.rows if row.mode is Mode.CLOSED).items():
        measured, missing = in_order(rows)
        groups = {row.group: colours[row.group] for row in rows}
        panels[label] = joined(
            swatches(groups) if len(groups) > 1 else None,
            bars_of(measured, missing, colours),
            _curves(measured, colours),
            _figures(run, measured, baseline),
        )
    if not panels:
        return None
    note = (
        "A request and its reply, one after the other. A bar is p50 divided by the limit, which is what two C processes"
        " need to hand each other as many bytes by spinning, measured just before each sample; the thin line reaches to"
        " p99. What carries no such payload stands with the smallest, and says its own."
    )
    return section("Round trip", note, tabs("trip", panels))


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
        name, colour, tip = short_name(row), colours[row.group], tip_of(row, figures)
        look = {"dashes": looks[row.name], "tip": tip, "hidden": row.name in hidden}
        curves.append(Series(name, percentile_points(whole, nines), colour, **look))  # type: ignore[arg-type]
        functions.append(Series(name, distribution_points(whole), colour, **look))  # type: ignore[arg-type]
    value_axis = Axis(latency, "round trip", duration)
    share_axis = Axis(LinearScale(0, 100), "share at or below, %", lambda value: f"{value:g}")
    entries = [
        LegendEntry(short_name(row), colours[row.group], looks[row.name], row.name in hidden, row.group)
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


def _figures(run: Run, rows: Sequence[Row], baseline: str | None) -> Markup:
    columns = ["row", "p50", "p90", "p99", "p99.9", "max", "× limit"]
    columns += [f"× {baseline}"] if baseline is not None else []
    columns += ["a second", "CPU", "switches", "wake-ups"]
    lines = []
    for row in rows:
        each = figures_of(row)
        line = [
            short_name(row),
            *map(duration, each.percentiles_ns.values()),
            duration(each.maximum_ns),
            three_digits(each.to_limit),
        ]
        if baseline is not None:
            other = baseline_of(run, row, baseline)
            line.append("–" if other is None else three_digits(median_ratio(row, other)))
        line += [
            three_digits(each.per_second),
            "–" if each.cpu_ns is None else duration(each.cpu_ns),
            _count(each.switches),
            _count(each.wake_ups),
        ]
        lines.append(line)
    return details(
        "All figures; CPU time, switches and wake-ups of both sides, an exchange", table(columns, lines)
    )


# -- open loop ----------------------------------------------------------------------------------------------


def _load_curves(run: Run, colours: Mapping[str, int]) -> Markup | None:
    panels: dict[str, Markup] = {}
    for label, rows in panels_of(_ok(row for row in run.rows if row.mode is Mode.OPEN)).items():
        by_name: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            by_name[short_name(row)].append(row)
        p50s: list[Series] = []
        p99s: list[Series] = []
        entries: list[LegendEntry] = []
        for name, own in by_name.items():
            own.sort(key=lambda row: row.offered_per_s or 0)
            colour = colours[own[0].group]
            dashes = sum(entry.colour == colour for entry in entries)
            entries.append(LegendEntry(name, colour, dashes, group=own[0].group))
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


def _ways(run: Run) -> Markup | None:
    """A panel for each kind of waiting: who sleeps takes so long that nothing of the others would be seen beside."""
    rows = [row for row in run.rows if row.hops]
    if not rows:
        return None
    kinds = dict.fromkeys(_kind_of_hop(hop.name) for row in rows for hop in row.hops)
    colours = {name: index for index, name in enumerate(kinds)}
    panels: dict[str, Markup] = {}
    for waiting in dict.fromkeys(row.waiting for row in rows):
        mine = [row for row in rows if row.waiting is waiting]
        panels[waiting.value] = split_chart(_split_bars(mine, colours), "p50 of each hop")
    lines = [
        [row.name, hop.name, *(duration(hop.latency.percentile(percent)) for percent in (50, 90, 99))]
        for row in rows
        for hop in row.hops
    ]
    note = (
        "Each hop's p50, in order, from a traced run of its own after the rounds. They add up to about the round trip's"
        " p50, not exactly: medians do not, and each stamp takes its time."
    )
    folded = details("All hops", table(("row", "hop", "p50", "p90", "p99"), lines, words=2))
    return section("Where the time goes", note, swatches(colours), tabs("hops", panels), folded)


def _split_bars(rows: Sequence[Row], colours: Mapping[str, int]) -> list[SplitBar]:
    sums = [sum(hop.latency.percentile(50) for hop in row.hops) or 1 for row in rows]
    bars = []
    for row, total in zip(rows, sums, strict=True):
        parts = [
            Part(
                hop.name,
                hop.latency.percentile(50) / max(sums),
                colours[_kind_of_hop(hop.name)],
                f"{hop.name}\np50 {duration(hop.latency.percentile(50))}, p99 {duration(hop.latency.percentile(99))}\n"
                f"{100 * hop.latency.percentile(50) / total:.0f} % of the sum",
            )
            for hop in row.hops
        ]
        bars.append(SplitBar(f"{row.transport}{GAP}{payload_text(row)}", parts, duration(total)))
    return bars


def _kind_of_hop(name: str) -> str:
    """Whose time it is; a hop that we do not know is a kind of its own."""
    return _KINDS_OF_HOPS.get(name, name)


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
    """One dot a round, a colour for each payload: whether the machine was the same all the time."""
    kept: dict[str, list[tuple[float, float]]] = defaultdict(list)
    retaken: list[tuple[float, float]] = []
    for label, rows in panels_of(row for row in run.rows).items():
        for one in (one for row in rows for one in row.rounds):
            into = retaken if one.changed else kept[label.partition(",")[0]]
            into.append((one.at_s, one.limit_ns))
    every = [dot for dots in (*kept.values(), retaken) for dot in dots]
    if len(every) < 2 or max(at_s for at_s, _ in every) <= 0:
        return None
    drawn = {label: (index, dots) for index, (label, dots) in enumerate(sorted(kept.items(), key=_by_limit))}
    if retaken:
        drawn["taken again"] = (_RETAKEN_COLOUR, retaken)
    series = [
        Series(key, sorted(dots), colour, tip=f"the limit before a sample: {key}", dots=True, joined=False)
        for key, (colour, dots) in drawn.items()
    ]
    values = [limit for _, limit in every]
    # Around what it was, never so narrow that a tremble looks like a landslide.
    latency = Axis(LogScale(min(values) / 1.5, max(values) * 1.5), "limit", duration)
    time = Axis(
        LinearScale(0, max(at_s for at_s, _ in every) * 1.02), "seconds since the run began", three_digits
    )
    note = (
        "What two C processes needed at the time, p50. A colour is a payload; a step within it means that the CPUs came"
        " to stand differently to each other: compare ratios then, not times."
    )
    entries = [LegendEntry(key, colour) for key, (colour, _) in drawn.items()]
    chart = line_chart(series, time, latency, "the limit over time")
    return section("The limit over time", note, legend(entries), chart)


def _by_limit(item: tuple[str, list[tuple[float, float]]]) -> float:
    return statistics.median(limit for _, limit in item[1])


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


def _ok(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.status is Status.OK]


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
