"""Elements of SVG and HTML. Text is escaped unless it is markup already, so nothing can be forgotten."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Final, TypeAlias

_VOID: Final = frozenset({"br", "col", "hr", "input", "meta"})  # HTML: no content, no closing tag
_SPACES: Final = "\n\t\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}"
_DECIMALS: Final = 2  # of coordinates: a hundredth of a pixel


class Markup(str):
    """Text that is markup. Made by `tag` and `joined` alone, but for constants in this package's sources."""

    __slots__ = ()


Child: TypeAlias = "str | Iterable[str] | None"
Value: TypeAlias = "str | int | float | bool | None"


def tag(name: str, /, *children: Child, **attributes: Value) -> Markup:
    """An element. Attributes: "_" stands for "-", a trailing one is dropped; None and False leave it out."""
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{html.escape(_text(value))}"')
    opening = f"<{' '.join(words)}>"
    if name in _VOID:
        return Markup(opening)
    return Markup(f"{opening}{joined(*children)}</{name}>")


def joined(*children: Child) -> Markup:
    """Children one after the other: markup as it is, all else escaped."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(html.escape(_printable(child)))
        elif child is not None:
            parts.extend(joined(each) for each in child)
    return Markup("".join(parts))


def number(value: float) -> str:
    """A coordinate, as short as it goes."""
    text = f"{value:.{_DECIMALS}f}".rstrip("0").rstrip(".")
    return "0" if text in ("", "-0") else text


def _text(value: str | int | float) -> str:
    return number(value) if isinstance(value, float) else _printable(str(value))


def _printable(text: str) -> str:
    """Control characters and lone surrogates have no place in a document, however they are written."""
    return "".join(
        character if character in _SPACES or character.isprintable() else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )
