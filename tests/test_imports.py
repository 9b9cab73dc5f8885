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
    "runtime.hypercalls.arguments",
    "runtime.chaos.blocks",
    "runtime.chaos.faults.catalogue",
    "runtime.chaos.faults.kinds",
    "runtime.chaos.faults.knobs",
    "runtime.chaos.faults.orders",
    "runtime.chaos.faults.ring_kinds",
    "runtime.chaos.faults.step_kinds",
    "runtime.chaos.faults.storage_kinds",
    "runtime.chaos.faults.filters",
    "runtime.chaos.faults.stack_kinds",
    "runtime.chaos.history",
    "runtime.chaos.sequence",
    "runtime.codec",
    "runtime.machine.console",
    "runtime.machine.firmware",
    "runtime.hypercalls.caller",
    "runtime.machine.lifeline",
    "runtime.config.sandbox",
    "runtime.loaded_code",
    "runtime.measure.exchanges",
    "runtime.config.shares",
}
WHOLE_MACHINES: Final = {
    "simulated"
}  # has a machine in one process, the hypervisor's state machine and the checks too
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
    if package == "partitions" and path.relative_to(ROOT).parts[1] not in WHOLE_MACHINES:
        assert {module for module in ours if module.startswith("runtime")} <= RUNTIME_ABI


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_one_idea_a_file(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 420
