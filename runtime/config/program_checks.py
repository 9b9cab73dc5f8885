"""Checks of what a config names by "package.module:name", and of what it hands over to it. Nothing of a user's is run,
but the packages around a module."""

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from runtime.config.problem import Problem, quoted, spell
from runtime.config.toml_lines import Steps

ARGS_BYTES_MAX: Final = 16 << 10  # of one partition, encoded; they travel in one hypercall
DRIVER_ARGS_BYTES_MAX: Final = 2 << 10  # of one device; the root saves those of all devices for its successor
_INTEGER_MIN: Final = -(1 << 63)  # of msgpack
_INTEGER_MAX: Final = (1 << 64) - 1

Table = Mapping[str, Any]


def check_program(path: Steps, partition: Table) -> list[Problem]:
    """Find the program without running it: its packages are imported, its module is only read."""
    return _named((*path, "program"), partition.get("program"), "function", _FUNCTIONS)


def check_driver(path: Steps, device: Table) -> list[Problem]:
    """The same for a driver. What it is derived from shows when it is loaded."""
    return _named((*path, "driver"), device.get("driver"), "class", (ast.ClassDef,))


_FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef)


def _named(path: Steps, program: object, noun: str, nodes: tuple[type[ast.stmt], ...]) -> list[Problem]:
    if not isinstance(program, str):
        return []
    module, _, name = program.partition(":")
    try:
        spec = importlib.util.find_spec(module)
    except Exception as error:  # a package's own code ran, so it can be anything
        return [
            Problem(
                path, f"{spell(program)} ({type(error).__name__}: {error})", "a module that can be imported"
            )
        ]
    if spec is None:
        return [
            Problem(path, f"{spell(program)} (no such module)", "a module that Python finds; see PYTHONPATH")
        ]
    if spec.origin is None or not spec.origin.endswith(".py"):
        return []  # compiled or frozen: it will show at boot
    try:
        body = ast.parse(Path(spec.origin).read_bytes(), spec.origin).body
    except (OSError, SyntaxError, ValueError) as error:
        return [Problem(path, f"{spell(program)} ({error})", "a module without a syntax error")]
    there = [node.name for node in body if isinstance(node, nodes) and hasattr(node, "name")]
    if name in there or name in _other_names(body):
        return []
    public = [each for each in there if not each.startswith("_")]
    return [Problem(path, f"{spell(program)} (no such {noun})", f"a {noun} of that module: {quoted(public)}")]


def _other_names(body: list[ast.stmt]) -> set[str]:
    """Names that a module may bind in any other way; a star import binds whatever one asks for."""
    names: set[str] = set()
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.alias):
                names.add(node.asname or node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
    return names


def check_args(path: Steps, partition: Table, bytes_max: int, instead: str) -> list[Problem]:
    if not isinstance(args := partition.get("args"), dict):
        return []
    path = (*path, "args")
    problems = list(_unsendable(args, path))
    if not problems and (size := len(msgspec.msgpack.encode(args))) > bytes_max:
        allowed = f"at most {bytes_max}; {instead}"
        problems.append(Problem(path, f"{size} bytes, encoded", allowed))
    return problems


def _unsendable(value: object, path: Steps) -> Iterator[Problem]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _unsendable(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unsendable(item, (*path, index))
    elif isinstance(value, int):
        if not _INTEGER_MIN <= value <= _INTEGER_MAX:
            yield Problem(path, spell(value), f"a whole number from {_INTEGER_MIN} to {_INTEGER_MAX}")
    elif not isinstance(value, str | float):
        yield Problem(
            path, spell(value), "a text, number, true, false, array or table (write dates as texts)"
        )
