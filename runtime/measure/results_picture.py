"""One panel of a run as an SVG that stands alone: for a README, on light and on dark pages.

Nothing is taken from outside: no style sheet, no script, no variable of a page. The ground is white, so that it reads
the same whatever is around it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from runtime.drawing.bars import WIDTH, bar_chart_height, bar_parts
from runtime.drawing.lines import COLOURS
from runtime.drawing.markup import Markup, tag
from runtime.exits import CommandError
from runtime.measure.results import Mode, Row, Run, Status
from runtime.measure.results_chart import GAP, bars_and_scale, in_order, panels_of, ratio_text

REFERENCES: Final = "C"  # the group of what is written in C
_OURS: Final = "partvisor"  # a group's first word
# What a reader of one picture wants to tell apart; a page has more colours.
_KINDS: Final = {
    "C programs, the limit among them": "#6b7686",
    "other ways, from Python": "#d98324",
    "partvisor": "#2f6fdb",
}
_MARGIN: Final = 22.0
_HEAD: Final = 84.0
_LINE: Final = 18.0
_LINE_CHARACTERS: Final = 135
_STYLE: Final = (
    "text{font:12.5px system-ui,'Segoe UI',Helvetica,Arial,sans-serif;fill:#5c636e}"
    ".title{font-size:17px;font-weight:600;fill:#1d2025}.name,.figure{fill:#1d2025;font-size:13px}"
    ".missing{font-style:italic}.major{stroke:#d5d7dc}.whisker{stroke:#1d2025;stroke-opacity:.45;stroke-width:1.4}"
)


def picture(run: Run, rows: Sequence[Row]) -> Markup:
    """The first panel of these rows: their smallest payload, in the first placement.

    Raises:
        CommandError: none of them was measured in a closed loop.
    """
    panels = panels_of(row for row in rows if row.mode is Mode.CLOSED)
    if not panels:
        raise CommandError(f"run {run.id} has no such row of a closed loop: there is nothing to draw")
    label, chosen = next(iter(panels.items()))
    measured, missing = in_order(chosen)
    kinds = list(_KINDS)
    colours = {row.group: kinds.index(_kind(row.group)) for row in chosen}
    bars, scale = bars_and_scale(measured, [], colours)
    foot = _foot(run, missing, label.partition(",")[0])
    width = WIDTH + 2 * _MARGIN
    height = _HEAD + bar_chart_height(len(bars)) + _LINE * len(foot) + _MARGIN
    style = _STYLE + "".join(
        f".c{index} .fill{{fill:{colour}}}" for index, colour in enumerate(_KINDS.values())
    )
    assert len(_KINDS) <= COLOURS
    return tag(
        "svg",
        tag("title", f"A request and its reply over every way to talk: {label}"),
        tag("style", Markup(style)),
        tag("rect", width=width, height=height, rx=10.0, fill="#ffffff"),
        tag("g", _head(label), transform=f"translate({_MARGIN:g} {_MARGIN:g})"),
        tag("g", bar_parts(bars, scale, ratio_text), transform=f"translate({_MARGIN:g} {_HEAD:g})"),
        tag("g", foot, transform=f"translate({_MARGIN:g} {height - _MARGIN - _LINE * len(foot):g})"),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        role="img",
    )


def _kind(group: str) -> str:
    limit, others, ours = _KINDS
    return limit if group == REFERENCES else ours if group.startswith(_OURS) else others


def _head(label: str) -> list[Markup]:
    parts = [
        tag("text", f"A request and its reply, {label}", x=0, y=14.0, class_="title"),
        tag(
            "text",
            "p50 as a ratio to the limit: two C processes that hand each other as many bytes, spinning."
            " The thin line reaches to p99.",
            x=0,
            y=36.0,
        ),
    ]
    at = 0.0
    for name, colour in _KINDS.items():
        parts.append(tag("rect", x=at, y=46.0, width=12, height=12, rx=3, fill=colour))
        parts.append(tag("text", name, x=at + 18, y=56.5))
        at += 40 + 6.6 * len(name)
    return parts


def _foot(run: Run, missing: Sequence[Row], payload: str) -> list[Markup]:
    """Lines of text: what was not measured and why, and under which conditions the rest was."""
    when = datetime.fromtimestamp(run.started_unix_ns / 1e9, UTC).strftime("%Y-%m-%d")
    about, lines = run.conditions, []
    for status in dict.fromkeys(row.status for row in missing):
        names = dict.fromkeys(row.transport for row in missing if row.status is status)
        what = f"{status.value} with {payload}" if status is Status.NOT_POSSIBLE else status.value
        lines += textwrap.wrap(f"{what}: {', '.join(names)}", _LINE_CHARACTERS)
    python = run.versions.get("python", "")
    words = [about.cpu_model, f"Linux {about.kernel}", f"Python {python}" if python else ""]
    words += [f"idle CPUs: {about.idle_cpus.value}", f"revision {run.revision}", when]
    lines += textwrap.wrap(GAP.join(filter(None, words)), _LINE_CHARACTERS)
    return [tag("text", line, x=0, y=14 + _LINE * index) for index, line in enumerate(lines)]
