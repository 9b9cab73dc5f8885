"""A comparison as one offline page: the table, latencies, who pays, who sees the data, what is trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from runtime.drawing.bars import Bar, Part, SplitBar, bar_chart, split_chart
from runtime.drawing.lines import Axis, Series, line_chart
from runtime.drawing.markup import Markup, joined, tag
from runtime.drawing.page import LegendEntry, details, facts, legend, page, section, swatches, table, tabs
from runtime.drawing.scales import LogScale, PercentileScale, duration, log_scale_around, three_digits
from runtime.measure.compare_noise import Statement, Verdict, times
from runtime.measure.compare_run import COLUMNS, RESIDENT, Entry, Result
from runtime.measure.compare_table import (
    HEADINGS,
    Statements,
    column_text,
    figures_of,
    seen_text,
    short_size,
    status_text,
    trusted_text,
)
from runtime.measure.process_usage import Usage
from runtime.measure.results import Conditions
from runtime.measure.results_page import NINES_MAX, NINES_MIN, percent_text, percentile_points

HIGHER_IS_BETTER: Final = frozenset({"throughput"})
_GAP: Final = " · "
_OURS, _OTHERS = "partvisor's", "others'"
_GUEST: Final = "the guest"
_SEEN, _COULD, _NOT_THERE = "●", "○", "–"


def compare_page(result: Result, said: Statements) -> str:
    """The whole document."""
    when = datetime.fromtimestamp(result.started_unix_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M UTC")
    parts = (
        result.label,
        result.source,
        when,
        f"run {result.id}",
        f"rounds {result.rounds}",
        f"seed {result.seed}",
    )
    measured = [(index, entry) for index, entry in enumerate(result.entries) if entry.is_measured]
    sections = [
        _tables(result, said, measured),
        _latencies(result, measured),
        _who_pays(result, measured),
        _who_sees(measured),
        _what_is_trusted(measured),
        _memory(measured),
        _conditions(result),
    ]
    footer = (
        "Latencies are the guest's own; CPU time and switches were read from /proc, of every process of the machine."
        " A machine was booted once a round in each variant."
    )
    return page("partvisor compare", _GAP.join(filter(None, parts)), sections, footer)


_Measured = Sequence[tuple[int, Entry]]


# -- the table, and what may be said ------------------------------------------------------------------------


def _tables(result: Result, said: Statements, measured: _Measured) -> Markup:
    columns = ("variant", *HEADINGS.values(), "resident", "trusted", "sees data")
    panels: dict[str, Markup] = {}
    for load in result.load_names:
        lines = []
        for index, entry in measured:
            found = {each.column: each for each in (*said.get((index, load), ()), *said.get((index, ""), ()))}
            figures = figures_of(entry, load)
            cells = [_cell(column_text(column, figures[column]), found.get(column)) for column in COLUMNS]
            resident = sorted(entry.resident_bytes)[len(entry.turns) // 2]
            memory = _cell(short_size(resident), found.get(RESIDENT))
            lines.append([_name(entry, index == 0), *cells, memory, _trusted_cell(entry), seen_text(entry)])
        panels[load] = joined(
            table(columns, lines), details("Every difference with its interval", _words(result, said, load))
        )
    missing = [
        [each.terms.name, status_text(each), each.reason] for each in result.entries if not each.is_measured
    ]
    absent = (
        joined(tag("h3", "Without figures"), table(("variant", "", "why"), missing, words=3))
        if missing
        else None
    )
    note = (
        f"{result.own.terms.name} is how the config stands; below each other figure is its ratio to that. Red is worse"
        " and green is better, both beyond noise; a tilde means that the difference lies within it, a question mark"
        " that nothing can be said. CPU time and switches are those of all processes, a request; trusted is code of"
        " ours and, behind the plus, the interpreter's and libraries'."
    )
    return section("At a glance", note, tabs("table", panels), *([absent] if absent is not None else []))


def _name(entry: Entry, own: bool) -> Markup:
    """The architecture, and below it how interrupts travel and sides wait."""
    first, _, rest = entry.terms.name.partition(", ")
    return tag("span", tag("strong" if own else "span", first), tag("br"), tag("span", rest, class_="soft"))


def _trusted_cell(entry: Entry) -> Markup:
    ours, plus, others = trusted_text(entry).partition(" + ")
    return tag("span", ours, *([tag("br"), tag("span", f"+ {others}", class_="soft")] if plus else []))


def _cell(text: str, statement: Statement | None) -> Markup:
    """A figure, and below it how it stands to the config's own."""
    if statement is None:
        return tag("span", text)
    if statement.ratio is None:
        return tag("span", text, tag("br"), tag("span", "?", class_="soft"), title=statement.why)
    if statement.verdict is Verdict.WITHIN:
        return tag("span", text, tag("br"), tag("span", "~", class_="soft"), title=statement.text)
    worse = (statement.ratio.value > 1) != (statement.column in HIGHER_IS_BETTER)
    ratio = tag("span", f"{times(statement.ratio.value)}×", class_="slower" if worse else "faster")
    return tag("span", text, tag("br"), ratio, title=statement.text)


def _words(result: Result, said: Statements, load: str) -> Markup:
    lines = []
    for (index, of_load), found in said.items():
        if of_load not in (load, ""):
            continue
        for each in found:
            name = result.entries[index].terms.name
            if each.ratio is None:
                lines.append([name, each.column, f"{each.verdict.value}: {each.why}", "", ""])
                continue
            interval = f"{times(each.ratio.low)} to {times(each.ratio.high)}"
            lines.append([name, each.column, each.verdict.value, f"{times(each.ratio.value)}×", interval])
    return table(("variant", "column", "verdict", "ratio", "95 % interval"), lines, words=3)


# -- latencies ----------------------------------------------------------------------------------------------


def _latencies(result: Result, measured: _Measured) -> Markup:
    panels = {
        load: joined(_bars(load, measured), tag("div", *_curves(load, measured)))
        for load in result.load_names
    }
    note = "A bar is p50, the thin line reaches to p99. Both scales are logarithmic."
    return section("Latency", note, tabs("latency", panels))


def _bars(load: str, measured: _Measured) -> Markup:
    figures = {index: figures_of(entry, load) for index, entry in measured}
    own = figures[0]["p50"]
    bars = [
        Bar(
            entry.terms.name,
            figures[index]["p50"],
            duration(figures[index]["p50"])
            + ("" if index == 0 else f"{_GAP}{times(figures[index]['p50'] / own)}×"),
            index,
            "\n".join(
                [
                    entry.terms.name,
                    *(f"{name}: {column_text(name, value)}" for name, value in figures[index].items()),
                ]
            ),
            figures[index]["p99"],
        )
        for index, entry in measured
    ]
    low = min(each["p50"] for each in figures.values()) / 2
    high = max(each["p99"] for each in figures.values()) * 1.05
    return bar_chart(bars, LogScale(low, high), duration, "p50 of each variant")


def _curves(load: str, measured: _Measured) -> list[Markup]:
    wholes = {index: entry.latency(load) for index, entry in measured}
    values = [value for each in wholes.values() for value in (each.minimum, each.maximum)]
    nines = min(max(max(len(str(each.count)) - 1.0 for each in wholes.values()), NINES_MIN), NINES_MAX)
    series = [
        Series(entry.terms.name, percentile_points(wholes[index], nines), index, tip=entry.terms.name)
        for index, entry in measured
    ]
    x = Axis(PercentileScale(nines), "percentile", percent_text)
    y = Axis(log_scale_around(values), "latency", duration)
    entries = [LegendEntry(entry.terms.name, index) for index, entry in measured]
    return [tag("h3", "By percentile"), legend(entries), line_chart(series, x, y, "latency by percentile")]


# -- who pays -----------------------------------------------------------------------------------------------


def _who_pays(result: Result, measured: _Measured) -> Markup:
    panels: dict[str, Markup] = {}
    for load in result.load_names:
        cpu: dict[int, dict[str, float]] = {}
        switches: dict[int, dict[str, float]] = {}
        for index, entry in measured:
            turns = entry.figures(load)
            operations = sum(one.operations for one in turns)
            guests = {name for one in turns for name in one.guests}
            for name in dict.fromkeys(name for one in turns for name in one.usage):
                used = sum((one.usage.get(name, Usage()) for one in turns), Usage())
                who = _GUEST if name in guests else name
                cpu.setdefault(index, {})
                cpu[index][who] = cpu[index].get(who, 0) + used.cpu_ns / operations
                both = used.voluntary_switches + used.involuntary_switches
                switches.setdefault(index, {})
                switches[index][who] = switches[index].get(who, 0) + both / operations
        panels[load] = joined(
            tag("h3", "CPU time of a request"),
            _split(measured, cpu, duration),
            tag("h3", "Context switches of a request"),
            _split(measured, switches, three_digits),
        )
    note = (
        "Of every process of the machine, between the begin and the end of the load. Spinning is time, too."
    )
    return section("Who pays", note, tabs("pays", panels))


def _split(
    measured: _Measured, values: Mapping[int, Mapping[str, float]], text: Callable[[float], str]
) -> Markup:
    """Bars made of what each process has of the whole; a colour a process."""
    names = {
        name: at for at, name in enumerate(dict.fromkeys(name for each in values.values() for name in each))
    }
    longest = max((sum(each.values()) for each in values.values()), default=0) or 1
    bars = []
    for index, entry in measured:
        own = values.get(index, {})
        parts = [
            Part(name, value / longest, names[name], f"{entry.terms.name}\n{name}: {text(value)}")
            for name, value in own.items()
            if value / longest > 0.0005  # less is not to be seen
        ]
        bars.append(SplitBar(entry.terms.name, parts, text(sum(own.values()))))
    return joined(swatches(names), split_chart(bars, "what each process has of it"))


# -- trust --------------------------------------------------------------------------------------------------


def _who_sees(measured: _Measured) -> Markup:
    processes = list(
        dict.fromkeys(
            name
            for _, entry in measured
            if (found := entry.findings) is not None
            for name in (*found.survey.could_map, *found.trusted)
        )
    )
    lines = []
    for _, entry in measured:
        if (found := entry.findings) is None:
            lines.append([entry.terms.name, *("?" for _ in processes)])
            continue
        cells: list[str] = []
        for name in processes:
            if how := found.survey.seen_by.get(name):
                cells.append(tag("span", f"{_SEEN} {', '.join(how)}"))
            elif name in found.survey.could_map:
                cells.append(tag("span", f"{_COULD} holds its descriptors", class_="soft"))
            else:
                cells.append(tag("span", "no" if name in found.trusted else _NOT_THERE, class_="soft"))
        lines.append([entry.terms.name, *cells])
    note = (
        "Found in /proc while the load ran: processes that map the guest's pages, have the backing file open, or are"
        " joined by a socket to one that does. The hypervisor holds the descriptor of every page, so it could map any."
    )
    return section("Who sees the data", note, table(("variant", *processes), lines, words=len(processes) + 1))


def _what_is_trusted(measured: _Measured) -> Markup:
    values: dict[int, dict[str, float]] = {}
    lines: list[list[str]] = []
    for index, entry in measured:
        if (found := entry.findings) is None or found.code is None:
            continue
        values[index] = {name: found.code_added[name].ours for name in found.trusted}
        for name in found.trusted:
            sizes = (found.code_of[name], found.code_added[name])
            lines.append(
                [
                    entry.terms.name,
                    name,
                    *(short_size(each) for one in sizes for each in (one.ours, one.others)),
                ]
            )
    note = (
        "Bytes of code that have to be right: in the hypervisor, in the root, and in every process that sees the data."
        " Source text of Python modules and mapped pages of programs; a file counts once, where it comes first from the"
        " left. The bars are partvisor's own code; the interpreter and the libraries come on top of it, see below."
    )
    columns = ("variant", "process", _OURS, _OTHERS, f"{_OURS}, added", f"{_OTHERS}, added")
    folded = details("By process", table(columns, lines, words=2))
    return section("What is trusted", note, _split(measured, values, short_size), folded)


def _memory(measured: _Measured) -> Markup:
    values = {index: dict(entry.turns[-1].boot.resident_bytes) for index, entry in measured}
    note = "Of each process; a page that several share counts for its part in each, where /proc shows that."
    return section("Resident memory", note, _split(measured, values, short_size))


def _conditions(result: Result) -> Markup:
    pairs = {
        name.replace("_", " "): _text(getattr(result.conditions, name))
        for name in Conditions.__struct_fields__
    }
    return section("Conditions", "Figures hold under these. Under others only ratios may.", facts(pairs))


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
