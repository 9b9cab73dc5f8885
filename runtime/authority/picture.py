"""One HTML page: processes by what they share, a dot where a process holds a thing. Self-contained, works offline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from runtime.authority.vocabulary import HYPERVISOR, Holding, Kind
from runtime.drawing.markup import Markup, tag
from runtime.drawing.page import page, section

if TYPE_CHECKING:
    from runtime.authority.inspection import Report

_MATRICES: Final = {
    "Memory": (Kind.PAGES, Kind.SYNIC, Kind.VECTORS, Kind.REFERENCE, Kind.STATISTICS, Kind.TRACE),
    "Interrupts": (Kind.LINE, Kind.DOORBELL, Kind.WATCH),
    "Ways to others": (Kind.HYPERCALLS, Kind.CONSOLE, Kind.FIRMWARE, Kind.SOCKET, Kind.PIPE, Kind.PROCESS),
    "Files and devices": (Kind.FILE, Kind.STREAM),
}
_CELL: Final = 22  # pixels
_LEFT: Final = 330
_TOP: Final = 130
_NOTE: Final = "Filled: mapped. Ring: a descriptor of memory that is not mapped. Pale: for reading alone."


def authority_page(machine: str, report: Report) -> str:
    names = list(report.processes)
    sections = [
        section(title, _NOTE if title == "Memory" else "", _matrix(names, rows, report))
        for title, kinds in _MATRICES.items()
        if (rows := [held for held in report.holdings if held.kind in kinds])
    ]
    lines = [tag("li", f"{one.held.process}: {one.held.what}: {one.why}") for one in report.excess]
    lines += [tag("li", f"process {stranger}: unknown to the hypervisor") for stranger in report.strangers]
    lines += [tag("li", f"{who}: not looked at: {why}") for who, why in report.unreadable.items()]
    verdict = tag("ul", lines) if lines else tag("p", "Everything is explained, and granted by the config.")
    sections.insert(0, section("What should not be", "", verdict))
    return page(
        f"Authority in {machine}", "Read from /proc while it ran.", sections, "partvisor authority --html"
    )


def _matrix(names: list[str], held: list[Holding], report: Report) -> Markup:
    bad = {(one.held.process, one.held.kind, one.held.what) for one in report.excess}
    things = sorted({(str(one.kind), one.subject, one.what) for one in held})
    width, height = _LEFT + _CELL * len(names) + 60, _TOP + _CELL * len(things) + 10
    parts = [
        tag(
            "text", name, transform=f"translate({_x(column) + 4},{_TOP - 8}) rotate(-45)", fill="currentColor"
        )
        for column, name in enumerate(names)
    ]
    by_thing: dict[tuple[str, str, str], list[Holding]] = {}
    for one in held:
        by_thing.setdefault((str(one.kind), one.subject, one.what), []).append(one)
    for row, thing in enumerate(things):
        y = _TOP + _CELL * row + _CELL // 2
        label = f"{thing[0]}  {thing[2] or thing[1]}"
        parts.append(tag("text", label[:52], x=4, y=y + 4, fill="currentColor", font_size=12))
        parts.append(tag("line", x1=_LEFT, y1=y, x2=width - 60, y2=y, stroke="currentColor", opacity=0.15))
        parts += [
            _dot(_x(names.index(one.process)), y, one, (one.process, one.kind, one.what) in bad)
            for one in by_thing[thing]
            if one.process in names
        ]
    return tag("svg", parts, viewBox=f"0 0 {width} {height}", width=width, height=height, role="img")


def _x(column: int) -> int:
    return _LEFT + _CELL * column + _CELL // 2


def _dot(x: int, y: int, held: Holding, is_bad: bool) -> Markup:
    colour = "#d1242f" if is_bad else ("#8c959f" if held.process == HYPERVISOR else "#0969da")
    is_memory = held.kind in _MATRICES["Memory"]
    title = tag("title", f"{held.process}: {held.what} ({held.access}, {held.mapped_pages} pages mapped)")
    return tag(
        "circle",
        title,
        cx=x,
        cy=y,
        r=6,
        stroke=colour,
        stroke_width=2,
        fill="none" if is_memory and not held.mapped_pages else colour,
        fill_opacity=0.4 if held.access == "r" else 1,
    )
