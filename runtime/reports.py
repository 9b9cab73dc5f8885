"""How commands print: JSON for programs, tables for people; colours and frames only on a terminal."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from runtime.config.sizes import format_size

_GAP: Final = "  "


def print_json(value: object) -> None:
    """One document on one line, so that it can be followed and piped."""
    print(json.dumps(value, ensure_ascii=False, default=str), flush=True)


def print_table(rows: Sequence[Mapping[str, Any]], empty: str) -> None:
    """A row for each map, a column for each key; `empty` is said when there are no rows."""
    if not rows:
        print(empty)
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    headings = [_heading(column) for column in columns]
    cells = [[cell(column, row.get(column)) for column in columns] for row in rows]
    if sys.stdout.isatty():
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*headings, box=SIMPLE_HEAD, pad_edge=False)
        for line in cells:
            table.add_row(*map(Text, line))
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    for line in [headings, *cells]:
        print(_GAP.join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def print_record(record: Mapping[str, Any]) -> None:
    """One thing with its properties: plain values first, then each list and map under its own heading."""
    plain = {key: value for key, value in record.items() if not _is_nested(value)}
    width = max(map(len, map(_heading, plain)), default=0)
    for key, value in plain.items():
        print(f"{_heading(key):<{width}}{_GAP}{cell(key, value)}")
    for key, value in record.items():
        if not _is_nested(value):
            continue
        print(f"\n{_heading(key)}:")
        if isinstance(value, Mapping):
            print_record(value)
        else:
            print_table(value, "none")


def cell(column: str, value: object) -> str:
    """A value in words: sizes with their unit, nothing for None, no control characters."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and column.endswith("_bytes"):
        return format_size(value)
    if isinstance(value, list | tuple):
        return ", ".join(cell("", item) for item in value) or "-"
    if isinstance(value, Mapping):
        return " ".join(f"{key}={cell(key, item)}" for key, item in value.items()) or "-"
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return "".join(character if character.isprintable() else "?" for character in text)


def _heading(key: str) -> str:
    return key.removesuffix("_bytes").replace("_", " ")


def _is_nested(value: object) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(item, Mapping) for item in value)
    return isinstance(value, Mapping) and bool(value)
