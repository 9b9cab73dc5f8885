"""A run as bars: each row's round trip as a ratio to the limit. For the page, and for a picture that stands alone."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from runtime.config.sizes import format_size
from runtime.drawing.bars import Bar, bar_chart
from runtime.drawing.markup import Markup
from runtime.drawing.scales import LogScale, duration, three_digits
from runtime.measure.exchanges import PAYLOAD_BYTES_MIN
from runtime.measure.figures import Figures, figures_of
from runtime.measure.results import Placement, Row, Run, Status

GAP: Final = " · "
_LEFT_OF_LEAST: Final = 0.6  # so that the fastest has a bar, too
PLACED: Final = {
    Placement.SAME_CPU: "both on one CPU",
    Placement.TWO_CPUS: "a CPU each",
    Placement.UNPINNED: "unpinned",
}
RATIO_TEXT: Final = "p50 as a ratio to the limit"


def colours_of(run: Run) -> dict[str, int]:
    """By group, in the order of the run."""
    return {group: index for index, group in enumerate(dict.fromkeys(row.group for row in run.rows))}


def panels_of(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows of one payload and placement, by what they share. Those without a payload stand with the smallest one."""
    every = list(rows)
    payloads = [row.payload_bytes for row in every if row.payload_bytes >= PAYLOAD_BYTES_MIN]
    smallest = min(payloads, default=0)
    found: dict[str, list[Row]] = defaultdict(list)
    for row in every:
        found[f"{payload_text(max(row.payload_bytes, smallest))}, {PLACED[row.placement]}"].append(row)
    return found


def in_order(rows: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    """The measured ones, the fastest first, and the others."""
    every = list(rows)
    measured = [row for row in every if row.status is Status.OK]
    missing = [row for row in every if row.status is not Status.OK]
    return sorted(measured, key=lambda row: figures_of(row).to_limit), missing


def bars_of(measured: Sequence[Row], missing: Sequence[Row], colours: Mapping[str, int]) -> Markup:
    """A bar is p50 divided by the limit, its whisker reaches to p99."""
    bars, scale = bars_and_scale(measured, missing, colours)
    return bar_chart(bars, scale, ratio_text, RATIO_TEXT)


def bars_and_scale(
    measured: Sequence[Row], missing: Sequence[Row], colours: Mapping[str, int]
) -> tuple[list[Bar], LogScale]:
    bars = [_bar(row, colours) for row in measured]
    bars += [
        Bar(short_name(row), None, row.status.value, colours[row.group], f"{row.name}\n{row.reason}")
        for row in missing
    ]
    longest = max((bar.whisker or bar.value or 1 for bar in bars), default=1)
    least = min([1.0, *(bar.value for bar in bars if bar.value is not None)])
    return bars, LogScale(least * _LEFT_OF_LEAST, max(longest, 2) * 1.02)


def ratio_text(value: float) -> str:
    return f"{three_digits(value)}×"


def _bar(row: Row, colours: Mapping[str, int]) -> Bar:
    figures = figures_of(row)
    p50, p99 = figures.percentiles_ns[50], figures.percentiles_ns[99]
    return Bar(
        short_name(row),
        figures.to_limit,
        f"{ratio_text(figures.to_limit)}{GAP}{duration(p50)}",
        colours[row.group],
        tip_of(row, figures),
        figures.to_limit * p99 / max(p50, 1),
    )


def tip_of(row: Row, figures: Figures) -> str:
    lines = [f"{row.name} ({row.group})"]
    lines += [f"p{percent:g}: {duration(value)}" for percent, value in figures.percentiles_ns.items()]
    lines += [
        f"max: {duration(figures.maximum_ns)}",
        f"{three_digits(figures.to_limit)} × the limit",
        f"{three_digits(figures.per_second)} a second, {figures.rounds} rounds",
    ]
    return "\n".join(lines)


def short_name(row: Row) -> str:
    """In a panel, which says payload and placement."""
    name = f"{row.transport}{GAP}{row.waiting.value}"
    return name if row.payload_bytes >= PAYLOAD_BYTES_MIN else f"{name}{GAP}{payload_text(row)}"


def payload_text(of: Row | int) -> str:
    """With a space that does not break."""
    count = of if isinstance(of, int) else of.payload_bytes
    return re.sub(r"(?<=[0-9])(?=[A-Z])", "\N{NO-BREAK SPACE}", format_size(count))
