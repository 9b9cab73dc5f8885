"""Line charts: percentile curves, distribution functions, load curves, anything over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from runtime.drawing.markup import Markup, number, tag
from runtime.drawing.scales import Scale

WIDTH: Final = 880
HEIGHT: Final = 380
LEFT: Final = 78
RIGHT: Final = 16
_TOP: Final = 14
_BOTTOM: Final = 50
DASHES: Final = ("", "7 4", "2 3", "9 3 2 3")
COLOURS: Final = 12  # classes c0 to c11 of the page's style


@dataclass(frozen=True, slots=True)
class Axis:
    scale: Scale
    label: str
    text: Callable[[float], str]  # of a mark


@dataclass(frozen=True, slots=True)
class Series:
    """One line. `key` ties it to a legend's entry; the tip is shown while the pointer is on it."""

    key: str
    points: Sequence[tuple[float, float]]
    colour: int
    dashes: int = 0
    tip: str = ""
    hidden: bool = False  # until somebody asks for it
    dots: bool = False
    joined: bool = True


def line_chart(series: Sequence[Series], x: Axis, y: Axis, description: str) -> Markup:
    """The whole drawing. Lines that come later lie on top."""
    return tag(
        "svg",
        tag("title", description),
        _grid(x, y),
        [_line(each, x.scale, y.scale) for each in series],
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        class_="chart",
    )


def _at(x_part: float, y_part: float) -> tuple[float, float]:
    """Parts of the axes to coordinates; y grows upwards."""
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - _TOP - _BOTTOM
    return LEFT + x_part * width, _TOP + (1 - y_part) * height


def _grid(x: Axis, y: Axis) -> Markup:
    left, bottom = _at(0, 0)
    right, top = _at(1, 1)
    parts: list[Markup] = []
    for minor, values in ((True, x.scale.minor_ticks()), (False, x.scale.ticks())):
        for value in values:
            at, _ = _at(x.scale.position(value), 0)
            parts.append(_rule(at, bottom, at, top, minor))
            if not minor:
                parts.append(tag("text", x.text(value), x=at, y=bottom + 18, text_anchor="middle"))
    for minor, values in ((True, y.scale.minor_ticks()), (False, y.scale.ticks())):
        for value in values:
            _, at = _at(0, y.scale.position(value))
            parts.append(_rule(left, at, right, at, minor))
            if not minor:
                parts.append(tag("text", y.text(value), x=left - 8, y=at + 4, text_anchor="end"))
    middle = (left + right) / 2
    parts.append(tag("text", x.label, x=middle, y=HEIGHT - 8.0, text_anchor="middle", class_="label"))
    parts.append(
        tag(
            "text",
            y.label,
            transform=f"translate(13 {number((top + bottom) / 2)}) rotate(-90)",
            text_anchor="middle",
            class_="label",
        )
    )
    return tag("g", parts, class_="axes")


def _rule(x1: float, y1: float, x2: float, y2: float, minor: bool) -> Markup:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_="minor" if minor else "major")


def _line(series: Series, x: Scale, y: Scale) -> Markup:
    places = [_at(x.position(x_value), y.position(y_value)) for x_value, y_value in series.points]
    path = "M" + "L".join(f"{number(left)} {number(top)}" for left, top in _without_repeats(places))
    parts: list[Markup] = []
    if series.joined and len(places) > 1:
        dashes = DASHES[series.dashes % len(DASHES)]
        parts.append(tag("path", d=path, class_="line", stroke_dasharray=dashes or None))
        parts.append(tag("path", d=path, class_="reach"))  # wide and invisible: easier to point at
    if series.dots or len(places) == 1:
        parts += [tag("circle", cx=left, cy=top, r=3.2) for left, top in places]
    return tag(
        "g",
        parts,
        class_=f"series c{series.colour % COLOURS}" + (" off" if series.hidden else ""),
        data_key=series.key,
        data_tip=series.tip or series.key,
    )


def _without_repeats(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points on a straight horizontal or vertical stretch say nothing but where it ends."""
    kept: list[tuple[float, float]] = []
    for place in places:
        flat = len(kept) >= 2 and any(
            abs(kept[-2][axis] - place[axis]) < 0.01 and abs(kept[-1][axis] - place[axis]) < 0.01
            for axis in (0, 1)
        )
        if flat:
            kept[-1] = place
        else:
            kept.append(place)
    return kept
