"""Lanes over time: who was there when, what lasted how long, what happened at which instant.

As wide as a line chart, with the same margins: under one with the same scale, instants stand below each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from runtime.drawing.lines import COLOURS, LEFT, RIGHT, WIDTH
from runtime.drawing.markup import Markup, tag
from runtime.drawing.scales import Scale

_LANE: Final = 34
_BAR: Final = 12
_NAME_ABOVE: Final = 4
_TOP: Final = 6
_BOTTOM: Final = 26
_MARK: Final = 4.5


@dataclass(frozen=True, slots=True)
class Span:
    """Something that lasted."""

    start: float
    end: float
    colour: int
    tip: str


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened."""

    at: float
    colour: int
    tip: str


@dataclass(frozen=True, slots=True)
class Lane:
    name: str
    spans: Sequence[Span] = ()
    marks: Sequence[Mark] = ()


def lane_chart(lanes: Sequence[Lane], scale: Scale, text: Callable[[float], str], description: str) -> Markup:
    """One lane below the other. `text` is of a mark of the time axis."""
    height = _TOP + _LANE * len(lanes) + _BOTTOM
    return tag(
        "svg",
        tag("title", description),
        _grid(scale, text, height),
        [_lane(lane, scale, _TOP + index * _LANE) for index, lane in enumerate(lanes)],
        viewBox=f"0 0 {WIDTH} {height}",
        role="img",
        class_="chart bars",
    )


def _x(part: float) -> float:
    return LEFT + part * (WIDTH - LEFT - RIGHT)


def _grid(scale: Scale, text: Callable[[float], str], height: float) -> Markup:
    parts: list[Markup] = []
    for value in scale.ticks():
        at = _x(scale.position(value))
        parts.append(tag("line", x1=at, y1=0.0, x2=at, y2=height - _BOTTOM + 4.0, class_="major"))
        parts.append(tag("text", text(value), x=at, y=height - 8.0, text_anchor="middle"))
    return tag("g", parts, class_="axes")


def _lane(lane: Lane, scale: Scale, top: float) -> Markup:
    y = top + _LANE - _BAR - 3.0
    parts = [tag("text", lane.name, x=LEFT + 2.0, y=y - _NAME_ABOVE, class_="name")]
    for span in lane.spans:
        left, right = _x(scale.position(span.start)), _x(scale.position(span.end))
        bar = tag("rect", x=left, y=y, width=max(right - left, 1.5), height=_BAR + 0.0, rx=2.5, class_="fill")
        parts.append(tag("g", bar, class_=f"bar c{span.colour % COLOURS}", data_tip=span.tip))
    for mark in lane.marks:
        at, middle = _x(scale.position(mark.at)), y + _BAR / 2
        path = (
            f"M{at - _MARK:.1f} {middle:.1f}L{at:.1f} {middle - _MARK:.1f}"
            f"L{at + _MARK:.1f} {middle:.1f}L{at:.1f} {middle + _MARK:.1f}Z"
        )
        diamond = tag("path", d=path, class_="fill")
        parts.append(tag("g", diamond, class_=f"bar mark c{mark.colour % COLOURS}", data_tip=mark.tip))
    return tag("g", parts)
