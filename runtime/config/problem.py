"""One mistake in a config file: where it stands, what stands there, what is allowed; and the words for it."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from runtime.config.toml_lines import Steps

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


def _key(key: Any) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+|--set", key) else json.dumps(key, ensure_ascii=False)
