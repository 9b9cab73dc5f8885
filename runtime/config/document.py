"""A config file as it is read: TOML, the overrides of the command line, and what is said when it is refused."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from runtime.config.overrides import apply_overrides
from runtime.config.problem import Problem, problem_of_syntax_error
from runtime.exits import CommandError, ExitCode

FILE_BYTES_MAX: Final = 1 << 20


class ConfigError(CommandError):
    """The file was refused as a whole; `problems` has every mistake in it."""

    exit_code: ClassVar[ExitCode] = ExitCode.USAGE

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        super().__init__(source, problems)
        self.source, self.problems = source, tuple(problems)

    def __str__(self) -> str:
        lines = [problem.text(self.source) for problem in self.problems]
        if len(lines) > 1:
            lines.insert(0, f"{self.source}: {len(lines)} mistakes")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file before anything was checked, with what is needed to say where a mistake stands."""

    source: str  # as the user named the file
    folder: Path  # relative paths start here
    text: str
    tables: dict[str, Any]
    overridden: frozenset[tuple[str | int, ...]] = frozenset()  # paths of values that came from --set


def read(path: Path | str, overrides: Sequence[str] = ()) -> Document:
    """Parse a file and apply `--set` overrides. ConfigError: unreadable, not TOML, or a bad override."""
    source = str(path)
    try:
        with Path(path).open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
        if len(content) > FILE_BYTES_MAX:
            raise ConfigError(source, [Problem((), "a file above 1 MiB", f"at most {FILE_BYTES_MAX} bytes")])
        text = content.decode()
        tables = tomllib.loads(text)
    except OSError as error:
        problem = Problem((), f"a file that can't be read ({error.strerror})", "a readable TOML file")
        raise ConfigError(source, [problem]) from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise ConfigError(source, [problem_of_syntax_error(error)]) from error
    overridden, problems = apply_overrides(tables, overrides)
    if problems:
        raise ConfigError(source, problems)
    return Document(source, Path(path).absolute().parent, text, tables, overridden)
