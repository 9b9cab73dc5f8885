"""The arrows of docs/architecture.md: bus <- runtime <- partitions, and nothing against them."""

import ast
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent
ALLOWED: Final = {
    "bus": {"bus"},
    "runtime": {"bus", "runtime"},
    "partitions": {"bus", "partitions", "runtime"},
}
# What the word "ABI" covers: all of `runtime` that a partition may import.
RUNTIME_ABI: Final = {
    "runtime.abi",
    "runtime.call_arguments",
    "runtime.chaos.blocks",
    "runtime.chaos.history",
    "runtime.codec",
    "runtime.console",
    "runtime.firmware",
    "runtime.hypercalls",
    "runtime.lifeline",
    "runtime.measure.exchanges",
    "runtime.shares",
}
SOURCES: Final = sorted(path for package in ALLOWED for path in (ROOT / package).rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            base = node.module or ""
            modules |= {
                f"{base}.{alias.name}" if base in ("runtime", "bus") else base for alias in node.names
            }
    return modules


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_towards_the_bus(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    ours = {module for module in imported_modules(path) if module.split(".")[0] in ALLOWED}
    assert {module.split(".")[0] for module in ours} <= ALLOWED[package]
    if package == "partitions":
        assert {module for module in ours if module.startswith("runtime")} <= RUNTIME_ABI


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_one_idea_a_file(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 420
