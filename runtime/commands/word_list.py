"""Options whose value is some words of a few: "a,b"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import click


def refuse_unknown(
    option: str, words: Sequence[str], allowed: Sequence[str], context: click.Context | None = None
) -> None:
    """UsageError: one is not among those."""
    for word in words:
        if word not in allowed:
            raise click.UsageError(f"{option} {word}: {', '.join(allowed)} are possible", context)


class WordList(click.ParamType[tuple[str, ...]]):
    """A tuple of words, each once, in the order given; with `default=""` none where nothing is said."""

    name = "words"

    def __init__(self, *allowed: str) -> None:
        self._allowed: Final = allowed

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        found = tuple(dict.fromkeys(filter(None, (word.strip() for word in str(value).split(",")))))
        refuse_unknown(param.opts[0] if param is not None else "", found, self._allowed, ctx)
        return found
