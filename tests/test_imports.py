"""The arrows of docs/architecture.md: bus <- runtime <- partitions, and nothing against them."""

import ast
from pathlib import Path
from typing import Final

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
    "runtime.machine.capture_wire",
    "runtime.machine.console",
    "runtime.machine.firmware",
    "runtime.hypercalls.caller",
    "runtime.machine.lifeline",
    "runtime.config.on_error",
    "runtime.config.sandbox",
    "runtime.config.tap_order",
    "runtime.loaded_code",
    "runtime.measure.exchanges",
    "runtime.config.shares",
}
LINES_MAX: Final = 420
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


def strangers(path: Path) -> set[str]:
    """What this file imports of ours and may not."""
    package = path.relative_to(ROOT).parts[0]
    ours = {module for module in imported_modules(path) if module.split(".")[0] in ALLOWED}
    found = {module for module in ours if module.split(".")[0] not in ALLOWED[package]}
    if package == "partitions" and path.relative_to(ROOT).parts[1] not in WHOLE_MACHINES:
        found |= {module for module in ours if module.startswith("runtime")} - RUNTIME_ABI
    return found


def test_imports_point_towards_the_bus() -> None:
    found = {str(path.relative_to(ROOT)): strangers(path) for path in SOURCES}
    assert {file: modules for file, modules in found.items() if modules} == {}


def test_one_idea_a_file() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert lines  # there are files
    assert {file: count for file, count in lines.items() if count > LINES_MAX} == {}
