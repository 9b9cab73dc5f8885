"""Writes TOML for tests, and says on which line it put each value."""

import json
from typing import Any

Steps = tuple[str | int, ...]


class TomlWriter:
    """`text` is the file; `lines` has the line of each key, header and array item, counted from 1."""

    def __init__(self, tables: dict[str, Any], *, spread: bool = False) -> None:
        self.text = ""
        self.lines: dict[Steps, int] = {}
        self._spread = spread  # comments and blank lines wherever they may be
        self._body(tables, ())

    def _body(self, table: dict[str, Any], path: Steps) -> None:
        nested = {
            key: value for key, value in table.items() if _is_table(value) or _is_array_of_tables(value)
        }
        for key, value in table.items():
            if key not in nested and value is not None:
                self._note((*path, key))
                self.text += f"{_key(key)} = "
                self._value(value, (*path, key))
                self.text += "  # a = [1\n" if self._spread else "\n"
        for key, value in nested.items():
            for index, item in enumerate(value) if isinstance(value, list) else [(None, value)]:
                steps: Steps = (*path, key) if index is None else (*path, key, index)
                if self._spread:
                    self.text += "\n# [comment]\n\t"
                self._note((*path, key))
                self._note(steps)
                name = ".".join(_key(step) for step in steps if isinstance(step, str))
                self.text += f"[{name}]\n" if index is None else f"[[{name}]]\n"
                self._body(item, steps)

    def _value(self, value: Any, path: Steps) -> None:
        if isinstance(value, dict):
            self.text += "{"
            for position, (key, item) in enumerate(_present(value)):
                self.text += ", " if position else ""
                self._note((*path, key))
                self.text += f"{_key(key)} = "
                self._value(item, (*path, key))
            self.text += "}"
        elif isinstance(value, list):
            self.text += "["
            for index, item in enumerate(value):
                if self._spread:
                    self.text += " # ] \n "
                self._note((*path, index))
                self._value(item, (*path, index))
                self.text += ","
            self.text += "]"
        elif isinstance(value, str) and "\n" in value and self._spread:
            self.text += f'"""\n{_escaped(value, keep_newlines=True)}"""'
        elif (
            isinstance(value, str) and self._spread and not set(value) & set("'\n\\") and value.isprintable()
        ):
            self.text += f"'{value}'"
        elif isinstance(value, str):
            self.text += f'"{_escaped(value)}"'
        else:
            self.text += json.dumps(value)

    def _note(self, path: Steps) -> None:
        self.lines.setdefault(path, self.text.count("\n") + 1)


def write_toml(tables: dict[str, Any]) -> str:
    return TomlWriter(tables).text


def _present(table: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in table.items() if value is not None]


def _is_table(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and "inline" not in value


def _is_array_of_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_table(item) for item in value)


def _key(key: str) -> str:
    plain = key.isascii() and key.replace("-", "a").replace("_", "a").isalnum()
    return key if plain else f'"{_escaped(key)}"'


def _escaped(text: str, *, keep_newlines: bool = False) -> str:
    escaped = ""
    for character in text:
        if character == "\n" and keep_newlines:
            escaped += character
        elif character in '"\\' or not character.isprintable():
            escaped += f"\\U{ord(character):08x}"
        else:
            escaped += character
    return escaped
