"""Where each value of a TOML text stands. tomllib gives values only; an error message wants the line.

The text is known to be valid TOML (tomllib accepted it), so this only has to find its way, not to judge.
"""

import re
import tomllib
from typing import Final

Steps = tuple[str | int, ...]  # ("partition", 1, "args", "count")

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_BLANK: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SCALAR: Final = re.compile(r"[^,\]}#\n]*")
_STRING: Final = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})'  # up to two more quotes may belong to the text
    r"|'''.*?'''(?:'{0,2})"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)


def lines_of_values(text: str) -> dict[Steps, int]:
    """The line, from 1, of each value's key, of each table's first header, of each array item itself."""
    return _Scanner(text.replace("\r\n", "\n")).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text, self._at, self._line, self._line_at = text, 0, 1, 0
        self._lines: dict[Steps, int] = {}
        self._tables_seen: dict[Steps, int] = {}  # array of tables -> how many so far

    def scan(self) -> dict[Steps, int]:
        table: Steps = ()
        while self._skip_blank() < len(self._text):
            if self._text.startswith("[", self._at):
                table = self._header()
            else:
                self._key_and_value(table)
        return self._lines

    def _header(self) -> Steps:
        double = self._text.startswith("[[", self._at)
        self._at += 2 if double else 1
        keys = self._keys()
        self._skip_blank()
        self._at += 2 if double else 1
        path: Steps = ()
        for position, key in enumerate(keys):
            path = (*path, key)
            self._note(path)
            if double and position == len(keys) - 1:
                self._tables_seen[path] = self._tables_seen.get(path, 0) + 1
            if path in self._tables_seen:
                path = (*path, self._tables_seen[path] - 1)
                self._note(path)
        return path

    def _key_and_value(self, table: Steps) -> None:
        path = table
        for key in self._keys():
            path = (*path, key)
            self._note(path)
        self._skip_blank()
        self._at += 1  # "="
        self._skip_blank()
        self._value(path)

    def _keys(self) -> list[str]:
        keys = []
        while True:
            self._skip_blank()
            if match := _STRING.match(self._text, self._at):
                (key,) = tomllib.loads(f"{match[0]}=0")
                keys.append(key)
            else:
                match = _BARE_KEY.match(self._text, self._at)
                assert match is not None
                keys.append(match[0])
            self._at = match.end()
            self._skip_blank()
            if not self._text.startswith(".", self._at):
                return keys
            self._at += 1

    def _value(self, path: Steps) -> None:
        first = self._text[self._at]
        if first == "[":
            self._items(path, "]")
        elif first == "{":
            self._items(path, "}")
        else:
            match = _STRING.match(self._text, self._at) or _SCALAR.match(self._text, self._at)
            assert match is not None
            self._at = match.end()

    def _items(self, path: Steps, closing: str) -> None:
        self._at += 1
        index = 0
        while True:
            self._skip_blank()
            if self._text.startswith(closing, self._at):
                self._at += 1
                return
            if self._text.startswith(",", self._at):
                self._at += 1
                continue
            if closing == "}":
                self._key_and_value(path)
            else:
                self._note((*path, index))
                self._value((*path, index))
                index += 1

    def _skip_blank(self) -> int:
        match = _BLANK.match(self._text, self._at)
        assert match is not None
        self._at = match.end()
        return self._at

    def _note(self, path: Steps) -> None:
        self._line += self._text.count("\n", self._line_at, self._at)
        self._line_at = self._at
        self._lines.setdefault(path, self._line)
