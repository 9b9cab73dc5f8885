"""From an experiment's file, or from the tables in a journal, to a checked Experiment."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import msgspec
from msgspec import inspect

from runtime.chaos.experiment.checks.check import CheckError, check_of
from runtime.chaos.experiment.machine_files import machine_tables
from runtime.chaos.experiment.model import Experiment
from runtime.chaos.experiment.schedule import ScheduleError, draw
from runtime.chaos.faults.catalogue import FAULTS
from runtime.config.model import PATH_CHARACTERS_MAX
from runtime.config.problem import Problem, problem_of_syntax_error, spell
from runtime.config.shape_checks import Walk
from runtime.config.toml_lines import lines_of_values
from runtime.exits import CommandError, ExitCode

FILE_BYTES_MAX: Final = 1 << 20
_SEEDS_TRIED: Final = 20  # what a file can draw is drawn, so that no mistake waits for its trial


class ExperimentError(CommandError):
    """The file is wrong. One line a mistake, with what is allowed."""

    exit_code: ClassVar[ExitCode] = ExitCode.USAGE


def read_tables(path: Path) -> dict[str, Any]:
    """Raises ExperimentError: not a readable TOML file."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
        if len(content) > FILE_BYTES_MAX:
            raise ExperimentError(f"{path}: above {FILE_BYTES_MAX} bytes")
        return tomllib.loads(content.decode())
    except OSError as error:
        raise ExperimentError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ExperimentError(problem_of_syntax_error(error).text(str(path))) from None


def experiment_of(tables: Mapping[str, Any], folder: Path, source: str, text: str = "") -> Experiment:
    """Every mistake at once, each with its line where `text` has it. Raises ExperimentError.

    Args:
        folder: where relative paths start.
        source: the file, for messages.
    """
    walk = Walk(folder)
    walk.value(inspect.type_info(Experiment), tables, ())
    problems = walk.problems
    experiment = None
    if not problems:
        experiment = msgspec.convert(
            tables, Experiment, dec_hook=lambda kind, value: _path(folder, value) if kind is Path else value
        )
        problems = _deeper_problems(experiment)
    if problems or experiment is None:
        lines = lines_of_values(text) if text else {}
        placed = [
            Problem(problem.path, problem.found, problem.allowed, _line_of(problem, lines))
            for problem in problems
        ]
        raise ExperimentError("\n".join(problem.text(source) for problem in placed))
    return experiment


def load_experiment(path: Path) -> tuple[Experiment, dict[str, Any]]:
    """The experiment, and its tables as they stand in the file. Its machine is checked, too.

    Raises ExperimentError, ConfigError.
    """
    tables = read_tables(path)
    text = path.read_text()
    experiment = experiment_of(tables, path.absolute().parent, str(path), text)
    for architecture in experiment.experiment.architectures or (None,):
        machine_tables(experiment, architecture)
    return experiment, tables


def _path(folder: Path, value: object) -> Path:
    if not isinstance(value, str) or not 0 < len(value) <= PATH_CHARACTERS_MAX:
        raise ValueError(f"a path, 1 to {PATH_CHARACTERS_MAX} characters")
    return folder / value


def _deeper_problems(experiment: Experiment) -> list[Problem]:
    """What the shape alone cannot say: kinds of faults, parameters, checks."""
    problems = []
    for seed in range(_SEEDS_TRIED):
        try:
            draw(experiment, seed, FAULTS)
        except ScheduleError as error:
            found = experiment.faults[error.fault].kind
            problems.append(Problem(("fault", error.fault, "kind"), spell(found), str(error)))
            break
    for index, plan in enumerate(experiment.checks):
        try:
            check_of(plan)
        except CheckError as error:
            problems.append(Problem(("check", index, "kind"), spell(plan.kind), str(error)))
    return problems


def _line_of(problem: Problem, lines: Mapping[tuple[str | int, ...], int]) -> int | None:
    path = problem.path
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path)
