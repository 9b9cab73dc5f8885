"""Guests that let go of their disk, or die, while it works for them: whoever serves it never notices.

The memory that a server's threads read and write belongs to a guest, and may be taken back at any moment. What the
server has mapped stays mapped until its threads are done with it.
"""

import json
from pathlib import Path
from typing import Final

import pytest

from runtime.chaos.loaded_machine import Load, LoadedMachine
from runtime.chaos.verdict import summary
from tests.machine.conftest import PATIENT

pytestmark = pytest.mark.machine

GUESTS: Final = 4


class _Machine(LoadedMachine):
    """Beside the verified guest, some that leave in the middle."""

    def __init__(self, folder: Path, load: Load, runtime_dir: Path, turns: int) -> None:
        self._turns = turns
        super().__init__(folder, load, runtime_dir)

    def _config(self) -> str:
        lines = [super()._config()]
        for number in range(GUESTS):
            seed = self.load.seed * 100 + number
            lines += [
                "[[partition]]",
                f'name = "leaver{number}"',
                'program = "tests.machine.guest_programs:leave_in_the_middle"',
                'memory = "32MiB"',
                f"args = {{ seed = {seed}, turns = {self._turns} }}",
                "[[partition.device]]",
                'name = "disk0"',
            ]
        return "\n".join(lines) + "\n"


@pytest.mark.parametrize("route", ["direct", "broker"])
@pytest.mark.parametrize("architecture", ["microkernelized", "disaggregated"])
@pytest.mark.parametrize(
    ("seed", "turns"), [(1, 8), *(pytest.param(seed, 150, marks=pytest.mark.soak) for seed in range(2, 6))]
)
def test_whoever_serves_a_guest_that_takes_everything_back_does_not_die_of_it(
    tmp_path: Path, runtime_dir: Path, architecture: str, route: str, seed: int, turns: int
) -> None:
    if seed == 1 and (architecture, route) != ("disaggregated", "direct"):
        pytest.skip("one, where time is short")
    settings: dict[str, int | str] = {"architecture": architecture, "signal_route": route, **PATIENT}
    load = Load(policy="restart", seed=seed, seconds=300, operations=1_000_000, settings=settings)
    machine = _Machine(tmp_path / "boot", load, runtime_dir, turns)
    try:
        machine.wait_for("guest.leaves", GUESTS, 240)
        assert machine.wait_until(lambda: leavers_gone(machine) == GUESTS)
        assert not machine.all_of("root.exited")
        assert machine.driver_deaths == 0
        machine.finish()
        judged = machine.judge()
    finally:
        machine.close()
    assert judged.verdict.passed, summary(judged.verdict)
    assert judged.verdict.unfinished == judged.verdict.failed == 0
    assert judged.left_behind == []
    told = judged.errors + json.dumps(machine.events)
    assert "Fatal Python error" not in told, "faulthandler's words"
    assert "signal 11" not in told
    assert "Traceback" not in told


def leavers_gone(machine: LoadedMachine) -> int:
    return sum(event["partition"].startswith("leaver") for event in machine.all_of("partition.exited"))
