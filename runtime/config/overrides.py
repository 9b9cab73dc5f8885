"""`--set partition.writer.args.count=3`: change one value of a parsed config file before it is checked."""

import os
import tomllib
from collections.abc import Sequence
from typing import Any, Final

from runtime.config.problem import Problem

_FORM: Final = "KEY.KEY=VALUE, where a partition or device goes by its name or number"
_STEPS_MAX: Final = 32


def apply_overrides(
    tables: dict[str, Any], overrides: Sequence[str]
) -> tuple[frozenset[tuple[str | int, ...]], list[Problem]]:
    """Change `tables` in place.

    Returns:
        The paths of the values that were set, and what is wrong with the overrides that could not be applied.
    """
    paths, problems = set(), []
    for override in overrides:
        try:
            paths.add(_apply(tables, override))
        except _Refused as refused:
            problems.append(Problem(("--set",), f"{override!r} ({refused.found})", refused.allowed))
    return frozenset(paths), problems


class _Refused(Exception):
    def __init__(self, found: str, allowed: str) -> None:
        super().__init__(found, allowed)
        self.found, self.allowed = found, allowed


def _apply(tables: dict[str, Any], override: str) -> tuple[str | int, ...]:
    key, equals, text = override.partition("=")
    steps = key.strip().split(".")
    if not equals or not all(steps) or len(steps) > _STEPS_MAX:
        raise _Refused("no KEY=VALUE", _FORM)
    place: Any = tables
    path: list[str | int] = []
    for step in steps[:-1]:
        if isinstance(place, list):
            index = _index(place, step)
            path.append(index)
            place = place[index]
        elif isinstance(place, dict):
            path.append(step)
            place = place.setdefault(step, {})
        else:
            raise _Refused(f"{step!r} inside a plain value", _FORM)
    last = steps[-1]
    if not isinstance(place, dict):
        raise _Refused(f"{last!r} is no key of a table", _FORM)
    value = _value(text.strip())
    if last in ("path", "restore") and isinstance(value, str):  # from the shell's directory, not the config's
        value = os.path.abspath(value)  # noqa: PTH100 - a text goes in and a text comes out
    place[last] = value
    return (*path, last)


def _index(tables: list[Any], step: str) -> int:
    names = [table.get("name") if isinstance(table, dict) else None for table in tables]
    if step in names:
        return names.index(step)
    if step.isascii() and step.isdigit() and len(step) < 6 and int(step) < len(tables):
        return int(step)
    allowed = ", ".join(f'"{name}"' for name in names if isinstance(name, str))
    raise _Refused(f'nothing named "{step}"', allowed or _FORM)


def _value(text: str) -> object:
    """As TOML reads it; a plain text where TOML can't."""
    try:
        values = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return values["value"] if values.keys() == {"value"} else text
