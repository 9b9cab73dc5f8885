"""Horizontal bars, one a row with its name and figure; and bars made of parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from runtime.drawing.lines import COLOURS
from runtime.drawing.markup import Markup, tag
from runtime.drawing.scales import Scale

WIDTH: Final = 880
_ROW: Final = 26
_BAR: Final = 15
_NAMES: Final = 250  # room on the left
_FIGURES: Final = 150  # room on the right
_TOP: Final = 26
_BOTTOM: Final = 8
_NAME_CHARACTERS_MAX: Final = 38
_PART_TEXT_ROOM: Final = 7.2  # a character, about


@dataclass(frozen=True, slots=True)
class Bar:
    """One row. `value` None: there is no bar, and `figure` says why."""

    name: str
    value: float | None
    figure: str
    colour: int
    tip: str = ""
    whisker: float | None = None  # a second value, as p99 behind p50


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a split bar."""

    name: str
    share: float  # 0 to 1, of the longest bar of the chart
    colour: int
    tip: str


@dataclass(frozen=True, slots=True)
class SplitBar:
    name: str
    parts: Sequence[Part]
    figure: str


def bar_chart(bars: Sequence[Bar], scale: Scale, text: Callable[[float], str], description: str) -> Markup:
    """Bars begin at the scale's lower end."""
    height = bar_chart_height(len(bars))
    return tag(
        "svg",
        tag("title", description),
        bar_parts(bars, scale, text),
        viewBox=f"0 0 {WIDTH} {height}",
        role="img",
        class_="chart bars",
    )


def bar_chart_height(bars: int) -> int:
    return _TOP + _ROW * bars + _BOTTOM


def bar_parts(bars: Sequence[Bar], scale: Scale, text: Callable[[float], str]) -> list[Markup]:
    """What is in such a chart, WIDTH wide."""
    height = bar_chart_height(len(bars))
    return [_marks(scale, text, height), *(_bar(bar, scale, index) for index, bar in enumerate(bars))]


def split_chart(bars: Sequence[SplitBar], description: str) -> Markup:
    """Bars whose parts stand one after the other."""
    return tag(
        "svg",
        tag("title", description),
        split_parts(bars),
        viewBox=f"0 0 {WIDTH} {split_chart_height(len(bars))}",
        role="img",
        class_="chart bars",
    )


def split_chart_height(bars: int) -> int:
    return 4 + _ROW * bars + _BOTTOM


def split_parts(bars: Sequence[SplitBar]) -> list[Markup]:
    """What is in such a chart, WIDTH wide."""
    return [_split(bar, 4 + index * _ROW) for index, bar in enumerate(bars)]


def _x(part: float) -> float:
    return _NAMES + part * (WIDTH - _NAMES - _FIGURES)


def _marks(scale: Scale, text: Callable[[float], str], height: float) -> Markup:
    parts: list[Markup] = []
    for value in scale.ticks():
        at = _x(scale.position(value))
        parts.append(tag("line", x1=at, y1=_TOP - 6.0, x2=at, y2=height - _BOTTOM + 0.0, class_="major"))
        parts.append(tag("text", text(value), x=at, y=_TOP - 11.0, text_anchor="middle"))
    return tag("g", parts, class_="axes")


def _name(name: str, top: float) -> Markup:
    short = name if len(name) <= _NAME_CHARACTERS_MAX else name[: _NAME_CHARACTERS_MAX - 1] + "…"
    return tag("text", short, x=_NAMES - 10.0, y=top + 16.5, text_anchor="end", class_="name")


def _bar(bar: Bar, scale: Scale, index: int) -> Markup:
    top = _TOP + index * _ROW + 0.0
    y = top + (_ROW - _BAR) / 2
    if bar.value is None:
        missing = tag("text", bar.figure, x=_x(0) + 6, y=top + 17.0, class_="missing")
        return tag("g", _name(bar.name, top), missing, data_tip=bar.tip or bar.name)
    end = _x(scale.position(bar.value))
    parts = [
        _name(bar.name, top),
        tag("rect", x=_x(0), y=y, width=max(end - _x(0), 1.5), height=_BAR + 0.0, rx=2.5, class_="fill"),
    ]
    right = end
    if bar.whisker is not None and scale.position(bar.whisker) > scale.position(bar.value):
        right = _x(scale.position(bar.whisker))
        middle = y + _BAR / 2
        parts.append(tag("line", x1=end, y1=middle, x2=right, y2=middle, class_="whisker"))
        parts.append(tag("line", x1=right, y1=middle - 4, x2=right, y2=middle + 4, class_="whisker"))
    parts.append(tag("text", bar.figure, x=right + 7, y=top + 17.0, class_="figure"))
    return tag("g", parts, class_=f"bar c{bar.colour % COLOURS}", data_tip=bar.tip or bar.name)


def _split(bar: SplitBar, top: float) -> Markup:
    parts = [_name(bar.name, top)]
    at = 0.0
    for part in bar.parts:
        left, right = _x(at), _x(at + part.share)
        pieces = [
            tag(
                "rect",
                x=left,
                y=top + 3,
                width=max(right - left - 1, 0.5),
                height=_ROW - 6.0,
                rx=2.0,
                class_="fill",
            )
        ]
        if right - left > len(part.name) * _PART_TEXT_ROOM + 8:
            pieces.append(
                tag(
                    "text",
                    part.name,
                    x=(left + right) / 2,
                    y=top + 17.0,
                    text_anchor="middle",
                    class_="inside",
                )
            )
        parts.append(tag("g", pieces, class_=f"bar c{part.colour % COLOURS}", data_tip=part.tip))
        at += part.share
    parts.append(tag("text", bar.figure, x=_x(at) + 7, y=top + 17.0, class_="figure"))
    return tag("g", parts)
