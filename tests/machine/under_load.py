"""Machines under the verified load, for tests that break them: begun, judged, and ended without a trace."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.chaos.loaded_machine import Judged, Load, LoadedMachine
from runtime.chaos.verdict import summary

Begin = Callable[[Load], LoadedMachine]


@contextmanager
def machines_under_load(folder: Path, runtime_dir: Path) -> Iterator[Begin]:
    """begin(load) -> a machine whose guests are at work. Each is ended, and must have left nothing."""
    machines: list[LoadedMachine] = []

    def begin(load: Load) -> LoadedMachine:
        number = len(machines)
        machine = LoadedMachine(folder / f"boot{number}", load, runtime_dir.with_name(f"run{number}"))
        machines.append(machine)
        machine.wait_for("guest.verified_progress")
        return machine

    try:
        yield begin
    finally:
        for machine in machines:
            machine.close()
    for machine in machines:
        assert machine.left_behind() == []


def judge(machine: LoadedMachine) -> Judged:
    """End the load, and look at what the guests saw."""
    machine.finish()
    judged = machine.judge()
    assert judged.verdict.passed, summary(judged.verdict)
    assert judged.exit_code == 0, judged.errors
    assert judged.verdict.unfinished == judged.verdict.failed == 0
    return judged
