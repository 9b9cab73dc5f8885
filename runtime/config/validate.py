"""Every mistake of a config file at once: where it stands, what stands there, what is allowed.

msgspec stops at the first mistake, so this walks the same declarations (runtime.config.model) by itself. Values
that are fine on their own are then held against each other (runtime.config.cross_checks), whatever else is wrong
with the file.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import inspect

from runtime.config.model import Document, MachineConfig, decode_value
from runtime.config.shape import PATTERN_MEANINGS
from runtime.config.toml_lines import Steps, lines_of_values

PROBLEMS_MAX: Final = 100  # a file that is wrong throughout; more lines would help nobody
_FOUND_CHARACTERS_MAX: Final = 60


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake. `path` is () for the file as a whole."""

    path: Steps
    found: str
    allowed: str
    line: int | None = None  # None: not from a line of the file

    @property
    def path_text(self) -> str:
        """partition[1].device[0].ring_bytes"""
        text = ""
        for step in self.path:
            text += f"[{step}]" if isinstance(step, int) else f".{_key(step)}" if text else _key(step)
        return text

    def text(self, source: str) -> str:
        where = source if self.line is None else f"{source}:{self.line}"
        path = f" {self.path_text}:" if self.path else ""
        return f"{where}:{path} found {self.found}; allowed: {self.allowed}"

    def fields(self) -> dict[str, object]:
        """For --json."""
        return {"path": self.path_text, "line": self.line, "found": self.found, "allowed": self.allowed}


def find_problems(document: Document) -> list[Problem]:
    """Check a whole document; an empty list means that `config.convert` accepts it."""
    from runtime.config.cross_checks import cross_check
    from runtime.config.tree_checks import check_tree

    walk = Walk(document.folder)
    decoded = walk.value(inspect.type_info(MachineConfig), document.tables, ())
    assert isinstance(decoded, dict)  # the outermost value of a TOML file is always a table
    problems = walk.problems + cross_check(decoded, walk.spelled) + check_tree(decoded, walk.spelled)
    lines = lines_of_values(document.text)
    placed = [
        Problem(problem.path, problem.found, problem.allowed, _line(problem.path, lines, document))
        for problem in problems
    ]
    placed.sort(key=lambda problem: problem.line or 0)
    if len(placed) > PROBLEMS_MAX:
        more = Problem((), f"{len(placed) - PROBLEMS_MAX} more mistakes", "none")
        placed = [*placed[:PROBLEMS_MAX], more]
    return placed


def problem_of_syntax_error(error: Exception) -> Problem:
    """What tomllib says, with its line in our own field."""
    if isinstance(error, RecursionError):
        return Problem((), "values nested too deeply", "TOML that nests a few levels")
    if isinstance(error, UnicodeDecodeError):
        return Problem((), f"bytes that are not UTF-8 (at byte {error.start})", "a TOML file in UTF-8")
    text = str(error)
    match = re.search(r" ?\(at line (\d+), column \d+\)", text)
    line = int(match[1]) if match else None
    text = text.replace(match[0], "") if match else text
    return Problem((), f"a syntax error ({text})", "TOML 1.0, see https://toml.io", line)


def spell(value: object) -> str:
    """A value as TOML would show it, cut to a sensible length."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = str(value)
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= _FOUND_CHARACTERS_MAX else f"{text[: _FOUND_CHARACTERS_MAX - 3]}..."


def quoted(names: Sequence[object]) -> str:
    """ "a", "b" — or `nothing` when there are none."""
    return ", ".join(json.dumps(name) for name in names) or "nothing"


class Walk:
    """Goes through a value and its declared shape side by side and collects what does not fit.

    `value` returns what it could decode: a dict for a table, with defaults filled in and bad keys left out,
    so that later checks see all that is sound. INVALID stands for a value that is not.
    """

    INVALID: Final = object()

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.problems: list[Problem] = []
        self.spelled: dict[Steps, object] = {}  # each leaf as the file has it, for messages

    def value(self, shape: inspect.Type, value: object, path: Steps) -> object:
        match shape:
            case inspect.Metadata():
                return self.value(shape.type, value, path)
            case inspect.UnionType():  # "T or left out"; TOML has no null
                (kind,) = (kind for kind in shape.types if not isinstance(kind, inspect.NoneType))
                return self.value(kind, value, path)
            case inspect.StructType():
                return self._table(shape, value, path)
            case inspect.VarTupleType():
                return self._array(shape, value, path)
        self.spelled[path] = value
        if (allowed := self._leaf_mistake(shape, value)) is not None:
            self._refuse(path, spell(value), allowed)
            return self.INVALID
        if isinstance(shape, inspect.CustomType):
            return decode_value(shape.cls, value, self._folder)
        return shape.cls(value) if isinstance(shape, inspect.EnumType) else value

    def _table(self, shape: inspect.StructType, value: object, path: Steps) -> object:
        if not isinstance(value, Mapping):
            keys = ", ".join(field.encode_name for field in shape.fields)
            return self._refuse(path, spell(value), f"a table with the keys {keys}")
        fields = {field.encode_name: field for field in shape.fields}
        for key in value:
            if key not in fields:
                close = difflib.get_close_matches(key, fields, 1)
                hint = f" (did you mean {close[0]}?)" if close else ""
                self._refuse((*path, key), "an unknown key", ", ".join(fields) + hint)
        decoded: dict[str, object] = {}
        for name, field in fields.items():
            if name in value:
                if (item := self.value(field.type, value[name], (*path, name))) is not self.INVALID:
                    decoded[name] = item
            elif field.required:
                self._refuse((*path, name), "nothing", self._describe(field.type))
            elif field.default_factory is not msgspec.NODEFAULT:
                decoded[name] = field.default_factory()
            elif isinstance(field.default, msgspec.Struct):
                decoded[name] = self.value(field.type, {}, (*path, name))
            else:
                decoded[name] = field.default
        return decoded

    def _array(self, shape: inspect.VarTupleType, value: object, path: Steps) -> object:
        if not isinstance(value, list):
            return self._refuse(path, spell(value), self._describe(shape))
        if shape.max_length is not None and len(value) > shape.max_length:
            return self._refuse(path, f"{len(value)} of them", f"at most {shape.max_length}")
        return [self.value(shape.item_type, item, (*path, index)) for index, item in enumerate(value)]

    def _leaf_mistake(self, shape: inspect.Type, value: object) -> str | None:
        """What is allowed, if `value` is not; None if it is fine."""
        match shape:
            case inspect.BoolType():
                fine = isinstance(value, bool)
            case inspect.IntType(ge=low, le=high):
                number = value if isinstance(value, int) and not isinstance(value, bool) else None
                fine = (
                    number is not None and (low is None or number >= low) and (high is None or number <= high)
                )
            case inspect.StrType(pattern=pattern, max_length=longest):
                fine = (
                    isinstance(value, str)
                    and (
                        pattern is None
                        or (re.search(pattern, value) is not None and not value.endswith("\n"))
                    )
                    and (longest is None or len(value) <= longest)
                )
            case inspect.EnumType(cls=cls):
                fine = isinstance(value, str) and value in [member.value for member in cls]
            case inspect.LiteralType(values=values):
                fine = not isinstance(value, bool | float) and value in values
            case inspect.DictType():
                fine = isinstance(value, dict)
            case inspect.CustomType(cls=cls):
                try:
                    decode_value(cls, value, self._folder)
                except ValueError as error:
                    return str(error)
                return None
            case _:
                raise NotImplementedError(f"a config field of type {shape}")
        return None if fine else self._describe(shape)

    def _describe(self, shape: inspect.Type) -> str:
        """What is allowed, in words."""
        match shape:
            case inspect.Metadata(type=kind):
                return self._describe(kind)
            case inspect.UnionType(types=kinds):
                return self._describe(next(kind for kind in kinds if not isinstance(kind, inspect.NoneType)))
            case inspect.BoolType():
                return "true or false"
            case inspect.IntType(ge=low, le=high):
                return f"a whole number from {low} to {high}"
            case inspect.StrType(pattern=pattern):
                return PATTERN_MEANINGS[pattern] if pattern else "a text"
            case inspect.EnumType(cls=cls):
                return " or ".join(json.dumps(member.value) for member in cls)
            case inspect.LiteralType(values=values):
                return " or ".join(json.dumps(value) for value in values)
            case inspect.DictType():
                return "a table"
            case inspect.CustomType(cls=cls):
                try:
                    decode_value(cls, None, self._folder)
                except ValueError as error:
                    return str(error)
            case inspect.VarTupleType(item_type=item):
                return f"an array, each item {self._describe(item)}"
            case inspect.StructType(fields=fields):
                return f"a table with the keys {', '.join(field.encode_name for field in fields)}"
        raise NotImplementedError(f"a config field of type {shape}")

    def _refuse(self, path: Steps, found: str, allowed: str) -> object:
        self.problems.append(Problem(path, found, allowed))
        return self.INVALID


def _line(path: Steps, lines: dict[Steps, int], document: Document) -> int | None:
    """Of the value, or of the innermost table around it. None if the command line gave the value."""
    if any(path[: len(override)] == override for override in document.overridden):
        return None
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path)


def _key(key: Any) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+|--set", key) else json.dumps(key, ensure_ascii=False)
