"""The arrows of docs/architecture.md: bus <- runtime <- partitions, and nothing against them."""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
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
    "runtime.machine.capture_wire",
    "runtime.machine.console",
    "runtime.machine.firmware",
    "runtime.machine.host_interfaces",
    "runtime.hypercalls.caller",
    "runtime.machine.lifeline",
    "runtime.machine.saved_partition",
    "runtime.config.on_error",
    "runtime.config.sandbox",
    "runtime.config.tap_order",
    "runtime.loaded_code",
    "runtime.measure.exchanges",
    "runtime.config.shares",
}
LINES_MAX: Final = 400
WHOLE_MACHINES: Final = {
    "simulated"
}  # has a machine in one process, the hypervisor's state machine and the checks too
# Of two packages one knows the other; the way back would make a circle of them.
NEVER_IMPORTS: Final = {
    "runtime.config": {"runtime.machine"},
    "runtime.measure": {"runtime.commands"},
    "partitions.calls": {"partitions.drivers", "partitions.stack", "partitions.storage"},
    "partitions.emulated": {"partitions.drivers", "partitions.stack"},
    "partitions.stack": {"partitions.drivers", "partitions.hardware", "partitions.storage"},
    "partitions.vp": {"partitions.drivers", "partitions.emulated", "partitions.stack"},
}
SOURCES: Final = sorted(path for package in ALLOWED for path in (ROOT / package).rglob("*.py"))
C_SOURCES: Final = sorted(
    path for package in ALLOWED for kind in ("*.c", "*.h") for path in (ROOT / package).rglob(kind)
)


@cache
def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported_modules(path: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(syntax(path)):
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


@pytest.mark.parametrize("package", NEVER_IMPORTS)
def test_no_package_imports_what_is_built_on_it(package: str) -> None:
    files = sorted((ROOT / package.replace(".", "/")).rglob("*.py"))
    assert files
    found = {
        (path.name, module)
        for path in files
        for module in imported_modules(path)
        if ".".join(module.split(".")[:2]) in NEVER_IMPORTS[package]
    }
    assert found == set()


def neighbours(path: Path) -> set[str]:
    """The files beside this one that it imports, for types alone too."""
    package = ".".join(path.relative_to(ROOT).parts[:-1])
    found: set[str] = set()
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.ImportFrom) and node.module == package:
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(package + "."):
            found.add((node.module or "").removeprefix(package + ".").split(".")[0])
    return {name for name in found if (path.parent / f"{name}.py").exists()}


def test_files_of_a_package_know_each_other_in_one_direction() -> None:
    circles = {}
    for package in {path.parent for path in SOURCES}:
        graph = {path.stem: neighbours(path) for path in package.glob("*.py")}
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            circles[str(package.relative_to(ROOT))] = error.args[1]
    assert circles == {}


def test_one_idea_a_file() -> None:
    files = SOURCES + C_SOURCES
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert C_SOURCES
    assert SOURCES
    assert {file: count for file, count in lines.items() if count > LINES_MAX} == {}
