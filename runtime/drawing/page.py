"""One HTML file with everything in it: style, a little script for comfort, and the pieces that pages are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Final

from runtime.drawing.lines import COLOURS, DASHES
from runtime.drawing.markup import Markup, joined, tag

_FILES: Final = ("page.css", "page.js")
# Nothing may be fetched, whatever got into the page.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclass(frozen=True, slots=True)
class LegendEntry:
    """Stands for every line of this key in the drawings beside the legend."""

    key: str
    colour: int
    dashes: int = 0
    hidden: bool = False
    group: str = ""  # a heading for all entries of it


def page(title: str, subtitle: str, sections: Sequence[str], footer: str) -> Markup:
    """The document."""
    style, script = (
        Markup(resources.files(__package__).joinpath(name).read_text("utf-8")) for name in _FILES
    )
    theme = tag("button", "Light / dark", id="theme", type="button", hidden=True)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("title", title),
        tag("style", style),
    )
    heading = tag("header", tag("div", tag("h1", title), tag("p", subtitle, class_="soft")), theme)
    body = tag("body", heading, tag("main", sections), tag("footer", footer), tag("script", script))
    return joined(Markup("<!DOCTYPE html>\n"), tag("html", head, body, lang="en"), Markup("\n"))


def section(title: str, note: str, *content: str) -> Markup:
    return tag("section", tag("h2", title), tag("p", note, class_="soft") if note else None, content)


def tabs(name: str, panels: Mapping[str, str]) -> Markup:
    """One panel at a time, by its label; all of them where scripts do not run. `name` is unique in the page."""
    if len(panels) == 1:
        return joined(panels.values())
    ids = {label: f"{name}-{index}" for index, label in enumerate(panels)}
    buttons = [
        tag("button", label, type="button", role="tab", data_panel=ids[label], aria_selected="false")
        for label in panels
    ]
    bodies = [
        tag("div", tag("h3", label), content, id=ids[label], class_="panel", role="tabpanel")
        for label, content in panels.items()
    ]
    return joined(tag("div", buttons, class_="tabs", role="tablist"), bodies)


def legend(entries: Sequence[LegendEntry]) -> Markup:
    """Each entry switches its lines on and off. Stands in the same element as the drawings.

    With more than one group, a line for each.
    """
    groups = dict.fromkeys(entry.group for entry in entries)
    if len(groups) < 2:
        return tag("div", [_entry(entry) for entry in entries], class_="legend")
    lines = [
        tag("div", tag("span", group), [_entry(entry) for entry in entries if entry.group == group])
        for group in groups
    ]
    return tag("div", lines, class_="legend grouped")


def _entry(entry: LegendEntry) -> Markup:
    dashes = DASHES[entry.dashes % len(DASHES)] or None
    line = tag("line", x1=0, y1=4, x2=22, y2=4, stroke_dasharray=dashes)
    return tag(
        "button",
        tag("svg", line, viewBox="0 0 22 8", aria_hidden="true"),
        entry.key,
        type="button",
        class_=f"c{entry.colour % COLOURS}",
        data_key=entry.key,
        aria_pressed="false" if entry.hidden else "true",
    )


def swatches(colours: Mapping[str, int]) -> Markup:
    """What each colour stands for, where nothing can be switched."""
    entries = [tag("span", tag("i", class_=f"c{colour % COLOURS}"), name) for name, colour in colours.items()]
    return tag("div", entries, class_="swatches")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> Markup:
    """The first `words` columns are text, the rest are numbers and stand to the right."""
    heads = [tag("th", text, class_=None if at < words else "number") for at, text in enumerate(columns)]
    lines = [
        tag("tr", [tag("td", text, class_=None if at < words else "number") for at, text in enumerate(row)])
        for row in rows
    ]
    return tag("div", tag("table", tag("thead", tag("tr", heads)), tag("tbody", lines)), class_="scroll")


def facts(pairs: Mapping[str, str]) -> Markup:
    return tag("dl", [joined(tag("dt", name), tag("dd", value)) for name, value in pairs.items()])


def details(summary: str, *content: str) -> Markup:
    """Folded away until somebody wants it."""
    return tag("details", tag("summary", summary), content)
