"""Each value of a config file held against what its declaration (runtime.config.model) says of it.

msgspec stops at the first mistake, so this walks the same declarations by itself.
"""

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
from msgspec import inspect

from runtime.config.model import decode_value
from runtime.config.problem import Problem, spell
from runtime.config.shape import PATTERN_MEANINGS
from runtime.config.toml_lines import Steps


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
