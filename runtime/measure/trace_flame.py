"""A picture of splits: one SVG that stands alone. Each channel is a flame, upside down, of three rows.

The whole; below it where the time went; below that each hop. Widths are shares of the time of all its requests, so a
rare and long hop counts for what it took.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from runtime.drawing.markup import Markup, tag
from runtime.exits import CommandError
from runtime.measure.trace_split import Where

WIDTH: Final = 1100.0
_MARGIN: Final = 12.0
_ROW: Final = 24.0
_FLAME: Final = 3 * _ROW + 40.0
_CHARACTER: Final = 6.6  # its width, about
_COLOURS: Final = {
    Where.CLIENT.value: "#7fb3d5",
    Where.TRAVEL.value: "#c5cdd4",
    Where.WAKE.value: "#ec8f6a",
    Where.HYPERVISOR.value: "#e8c15a",
    Where.SERVER.value: "#86c79a",
    Where.BACKEND.value: "#b79ad6",
}
_STYLE: Final = "text { font: 11px sans-serif; fill: #222 } .title { font-size: 13px; font-weight: bold }"


def flame_svg(splits: Mapping[str, Sequence[Mapping[str, Any]]], totals: Mapping[str, str]) -> Markup:
    """Args: rows of `split_of` by title; what stands behind each title."""
    height = _MARGIN * 2 + _FLAME * len(splits)
    flames = [
        _flame(title, rows, totals.get(title, ""), _MARGIN + index * _FLAME)
        for index, (title, rows) in enumerate(splits.items())
    ]
    return tag(
        "svg",
        tag("title", "Where the time of a request goes"),
        tag("style", Markup(_STYLE)),
        tag("rect", width=WIDTH, height=height, fill="#ffffff"),
        flames,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH:g} {height:g}",
        width=WIDTH,
        height=height,
        role="img",
    )


def _flame(title: str, rows: Sequence[Mapping[str, Any]], total: str, top: float) -> Markup:
    groups: defaultdict[str, float] = defaultdict(float)
    for row in rows:
        groups[row["where"]] += row["share"]
    ordered = sorted(rows, key=lambda row: list(groups).index(row["where"]))  # each group's hops below it
    parts = [tag("text", f"{title}   {total}", x=_MARGIN, y=top + 14, class_="title")]
    parts.append(_box("all", 0.0, 1.0, top + 20, "#e9ecef", "the whole"))
    at = 0.0
    for where, share in groups.items():
        parts.append(_box(where, at, share, top + 20 + _ROW, _COLOURS[where], f"{where}: {share:.1%}"))
        at += share
    at = 0.0
    for row in ordered:
        tip = f"{row['hop']}: {row['share']:.1%}, p50 {row['p50_ns']} ns, p99 {row['p99_ns']} ns"
        parts.append(_box(row["hop"], at, row["share"], top + 20 + 2 * _ROW, _COLOURS[row["where"]], tip))
        at += row["share"]
    return tag("g", parts)


def _box(text: str, at: float, share: float, y: float, colour: str, tip: str) -> Markup:
    room = WIDTH - 2 * _MARGIN
    x, width = _MARGIN + at * room, max(share * room, 0.2)
    characters = int((width - 6) / _CHARACTER)
    shown = text if len(text) <= characters else text[: characters - 1] + "…" if characters > 3 else ""
    rect = tag("rect", x=x, y=y, width=width, height=_ROW - 2, fill=colour, stroke="#ffffff", rx=2)
    return tag("g", tag("title", tip), rect, tag("text", shown, x=x + 4, y=y + 15) if shown else None)


def write_svg(
    path: Path, splits: Mapping[str, Sequence[Mapping[str, Any]]], totals: Mapping[str, str]
) -> None:
    """Raises CommandError."""
    try:
        path.write_text(flame_svg(splits, totals))
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from error
