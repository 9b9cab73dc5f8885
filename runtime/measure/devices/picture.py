"""`partvisor bench devices` as an offline page, and its split as an SVG that stands alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from runtime.drawing.bars import WIDTH, Part, SplitBar, split_chart, split_chart_height, split_parts
from runtime.drawing.markup import Markup, tag
from runtime.drawing.page import facts, page, section, swatches, table
from runtime.drawing.scales import duration, three_digits
from runtime.measure.devices.flow_split import Side
from runtime.measure.devices.paths import Place
from runtime.measure.devices.report import figure_rows, flow_rows, peer_rows, split_rows
from runtime.measure.devices.row import Row

UNACCOUNTED: Final = "unaccounted"
_COLOUR_NUMBERS: Final = {
    name: at for at, name in enumerate((*(place.value for place in Place), UNACCOUNTED))
}
_SIDE_COLOURS: Final = {  # those of the places that they are most like
    Side.GUEST.value: _COLOUR_NUMBERS[Place.GUEST.value],
    Side.OTHERS.value: _COLOUR_NUMBERS[Place.WAKE.value],
    Side.VSP.value: _COLOUR_NUMBERS[Place.VSP.value],
    Side.ROOT.value: _COLOUR_NUMBERS[Place.BACKEND.value],
    Side.HYPERVISOR.value: _COLOUR_NUMBERS[Place.HYPERVISOR.value],
    Side.CLIENT.value: _COLOUR_NUMBERS[Place.OUTSIDE.value],
}
_MARGIN: Final = 22.0
_HEAD: Final = 84.0
_COLOURS: Final = (
    "#2f6fdb",
    "#9aa7b5",
    "#d98324",
    "#c9a227",
    "#3f9d63",
    "#8a63c4",
    "#5b8fa8",
    "#d2d5da",
)
_STYLE: Final = (
    "text{font:12.5px system-ui,'Segoe UI',Helvetica,Arial,sans-serif;fill:#5c636e}"
    ".title{font-size:17px;font-weight:600;fill:#1d2025}.name,.figure{fill:#1d2025;font-size:13px}"
    ".inside{fill:#ffffff;font-size:11.5px}"
)
_WHERE: Final = (
    "Means over the operations of a traced machine, by place. What is unaccounted is the clock of who asked, less all"
    " parts; where it is below zero the parts are that much too long, and nothing is drawn for it."
)
_WHO: Final = (
    "In a flow all sides work at once, so no time is one side's alone: these are shares of the processor time of an"
    " operation, and spinning for the next one is in them. The side that is busy all the time sets the rate."
)

assert len(_COLOURS) == len(_COLOUR_NUMBERS)


def split_bars(rows: Sequence[Row]) -> list[SplitBar]:
    """One bar a row that was traced, each as long as the others: shares of the whole."""
    bars = []
    for row in rows:
        if (split := row.split) is None:
            continue
        named = [(place.value, ns) for place, ns in split.parts.items()]
        named.append((UNACCOUNTED, max(split.unaccounted_ns, 0.0)))
        longest = max(sum(ns for _, ns in named), 1e-9)
        parts = [
            Part(name, ns / longest, _COLOUR_NUMBERS[name], f"{name}: {duration(ns)}, {split.share(ns):.1%}")
            for name, ns in named
            if ns > 0
        ]
        figure = f"{duration(split.whole_ns)} ({split.share(split.unaccounted_ns):+.1%})"
        bars.append(SplitBar(row.operation.short, parts, figure))
    return bars


def flow_bars(rows: Sequence[Row]) -> list[SplitBar]:
    """One bar a flow, each as long as the others: shares of the processor time of all sides."""
    bars = []
    for row in rows:
        if (flow := row.flow) is None:
            continue
        parts = [
            Part(
                side.value,
                flow.share(side),
                _SIDE_COLOURS[side.value],
                f"{side.value}: {duration(flow.per_operation_ns(side))}, {flow.share(side):.1%};"
                f" busy for {flow.busy(side):.0%} of the time",
            )
            for side in flow.cpu_ns
            if flow.cpu_ns[side] > 0
        ]
        bars.append(SplitBar(row.operation.short, parts, duration(flow.whole_ns)))
    return bars


def split_svg(rows: Sequence[Row]) -> Markup:
    """White, whatever is around it; nothing is taken from outside."""
    bars = split_bars(rows)
    width, height = WIDTH + 2 * _MARGIN, _HEAD + split_chart_height(len(bars)) + _MARGIN
    colours = "".join(f".c{at} .fill{{fill:{colour}}}" for at, colour in enumerate(_COLOURS))
    legend: list[Markup] = []
    at = 0.0
    for name, number in _COLOUR_NUMBERS.items():
        legend.append(tag("rect", x=at, y=46.0, width=12, height=12, rx=3, fill=_COLOURS[number]))
        legend.append(tag("text", name, x=at + 18, y=56.5))
        at += 40 + 6.6 * len(name)
    title = tag("text", "Where the time of an operation goes, by device", x=0, y=14.0, class_="title")
    said = tag(
        "text", "Shares of the mean; behind each bar the whole, and what is unaccounted of it.", x=0, y=36
    )
    return tag(
        "svg",
        tag("title", "Where the time of an operation goes, by device"),
        tag("style", Markup(_STYLE + colours)),
        tag("rect", width=width, height=height, rx=10.0, fill="#ffffff"),
        tag("g", title, said, legend, transform=f"translate({_MARGIN:g} {_MARGIN:g})"),
        tag("g", split_parts(bars), transform=f"translate({_MARGIN:g} {_HEAD:g})"),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        role="img",
    )


def devices_page(rows: Sequence[Row], about: Mapping[str, Any]) -> Markup:
    """The document."""
    bars = split_bars(rows)
    where = [swatches(_COLOUR_NUMBERS), split_chart(bars, "Shares of the mean, by device")] if bars else []
    flows = flow_bars(rows)
    who = [swatches(_SIDE_COLOURS), split_chart(flows, "Shares of the processor time")] if flows else []
    sections = [
        section(
            "Each device", "p50 and p99 of operations that wait for their answer.", _table(figure_rows(rows))
        ),
        section(
            "Beside a peer", "Ours by the peer's, of one round's own two figures.", _table(peer_rows(rows))
        ),
        section("Where the time goes", _WHERE, *where, _table(split_rows(rows))),
        section("Who works in a flow", _WHO, *who, _table(flow_rows(rows))),
        section(
            "Conditions", "", facts({name.replace("_", " "): str(value) for name, value in about.items()})
        ),
    ]
    return page("Devices", "each class through a whole machine", sections, "partvisor bench devices")


def _table(rows: Sequence[Mapping[str, Any]]) -> Markup:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    words = 3 if "peer" in columns else 2
    cells = [[_text(row.get(name)) for name in columns] for row in rows]
    return table([name.replace("_", " ") for name in columns], cells, words)


def _text(value: object) -> str:
    if value is None:
        return "–"
    return three_digits(value) if isinstance(value, float) else str(value)
