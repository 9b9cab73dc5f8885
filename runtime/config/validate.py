"""Every mistake of a config file at once: where it stands, what stands there, what is allowed.

Each value is first held against its declaration (runtime.config.shape_checks). Values that are fine on their own are
then held against each other (runtime.config.cross_checks), whatever else is wrong with the file.
"""

from typing import Final

from msgspec import inspect

from runtime.config.cross_checks import cross_check
from runtime.config.document import Document
from runtime.config.model import MachineConfig
from runtime.config.problem import Problem
from runtime.config.shape_checks import Walk
from runtime.config.toml_lines import Steps, lines_of_values
from runtime.config.tree_checks import check_tree

PROBLEMS_MAX: Final = 100  # a file that is wrong throughout; more lines would help nobody


def find_problems(document: Document) -> list[Problem]:
    """Check a whole document; an empty list means that `runtime.config.loading.convert` accepts it."""
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


def _line(path: Steps, lines: dict[Steps, int], document: Document) -> int | None:
    """Of the value, or of the innermost table around it. None if the command line gave the value."""
    if any(path[: len(override)] == override for override in document.overridden):
        return None
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path)
