"""Faults of devices on whole machines: orders reach whoever serves, outlive it, and are undone without a trace."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bus.seam import Step
from runtime.chaos.faults.catalogue import FAULTS
from runtime.chaos.faults.knobs import Knobs
from runtime.chaos.faults.orders import Order
from runtime.chaos.history import Ending
from runtime.chaos.loaded_machine import DRIVER, Load, LoadedMachine
from runtime.chaos.running_machine import PATIENCE_S
from runtime.chaos.verdict import summary
from runtime.exits import CommandError
from tests.machine.conftest import PATIENT
from tests.machine.under_load import machines_under_load

pytestmark = pytest.mark.machine

Start = Callable[..., LoadedMachine]


@pytest.fixture
def start(tmp_path: Path, runtime_dir: Path) -> Iterator[Start]:
    with machines_under_load(tmp_path, runtime_dir) as begin:

        def of_architecture(architecture: str, **load: Any) -> LoadedMachine:
            settings: dict[str, int | str] = {"architecture": architecture, **PATIENT}
            return begin(Load(**{"seconds": 60.0, "depth": 8, **load}, settings=settings))

        yield of_architecture


def inject(
    machine: LoadedMachine,
    kind: str,
    knobs: Knobs | None = None,
    target: str = DRIVER,
    **parameters: int | str,
) -> int:
    order = Order(0, kind, target, FAULTS[kind].settle(parameters), knobs or Knobs(), seed=9)
    return int(machine.request("inject", order=order.to_table())["number"])


def row_of(machine: LoadedMachine, number: int) -> dict[str, Any]:
    rows = machine.request("injected")["injected"]
    return next(row for row in rows if row["order"]["number"] == number)


def fires(machine: LoadedMachine, number: int, times: int = 1) -> dict[str, Any]:
    """Once it has struck so often: what is told of it."""
    ends = time.monotonic() + PATIENCE_S
    while (row := row_of(machine, number))["fired"] < times and time.monotonic() < ends:
        time.sleep(0.02)
    assert row["fired"] >= times, row
    return row


def heal(machine: LoadedMachine) -> None:
    machine.request("heal", number=0)
    assert machine.request("injected")["injected"] == []


def goes_on(machine: LoadedMachine) -> None:
    """The guest gets answers, now that nothing is armed."""
    seen = len(machine.all_of("guest.verified_progress"))
    machine.wait_for("guest.verified_progress", seen + 1)


def judge(machine: LoadedMachine) -> None:
    machine.finish()
    judged = machine.judge()
    assert judged.verdict.passed, summary(judged.verdict)
    assert judged.verdict.unfinished == 0
    assert all(history.ending is Ending.FINISHED for history in judged.histories)
    assert judged.exit_code == 0, judged.errors


def test_orders_outlive_a_driver_partition_and_its_decisions_go_on(start: Start) -> None:
    machine = start("disaggregated")
    slow = inject(machine, "storage-slow", Knobs(times=60), delay_ms=5)
    passes = fires(machine, slow)["passes"]
    machine.kill_driver()
    assert machine.wait_until(lambda: machine.driver_deaths == 1 and machine.driver_serves)
    row = fires(machine, slow, 60)
    assert row["fired"] == 60, "all processes together"
    assert row["passes"] >= max(passes, 60)
    steps = inject(machine, "kill-at-step", Knobs(space=20), step=Step.PUBLISH.text, deaths=2)
    with pytest.raises(CommandError, match="already"):
        inject(machine, "kill-at-step")
    assert machine.wait_until(lambda: machine.driver_deaths == 3 and machine.driver_serves)
    assert machine.driver_has_died_at(Step.PUBLISH)
    assert row_of(machine, steps)["fired"] == 2
    stuck = inject(machine, "storage-stuck", Knobs(times=1))
    fires(machine, stuck)
    inject(machine, "ring-delayed", Knobs(times=3))
    heal(machine)
    goes_on(machine)
    assert machine.driver_deaths == 3, "it was healed before anybody found it stuck"
    judge(machine)


def test_orders_outlive_the_root_and_a_power_cut_comes_once(start: Start) -> None:
    machine = start("microkernelized")
    slow = inject(machine, "ring-delayed", Knobs(space=5), delay_ms=1)
    passes = fires(machine, slow, 3)["passes"]
    cut = inject(machine, "storage-power-cut", Knobs(space=30, times=1))
    machine.wait_for("root.restored")
    assert row_of(machine, cut)["fired"] == 1
    assert fires(machine, slow, row_of(machine, slow)["fired"] + 3)["passes"] > passes
    heal(machine)
    goes_on(machine)
    assert len(machine.all_of("root.restored")) == 1
    fires(machine, inject(machine, "ring-not-drained"))
    machine.kill_root()
    heal(machine)  # nobody may be there to hear it
    machine.wait_for("root.restored", 2)
    goes_on(machine)
    refused = {
        "storage-error": "nobody",
        "ring-lost": "nobody",
        "kill-at-step": "guest1",
    }
    for kind, target in refused.items():
        with pytest.raises(CommandError, match="there is"):
            inject(machine, kind, target=target)
    with contextlib.suppress(
        CommandError
    ):  # in a sandbox it is refused, and not tried, which would be the end
        inject(machine, "memory-stall", Knobs(times=1))
    heal(machine)
    goes_on(machine)
    assert len(machine.all_of("root.restored")) == 2


@pytest.mark.parametrize(
    "architecture", [pytest.param(one, marks=pytest.mark.soak) for one in ("hosted", "microkernel")]
)
def test_orders_reach_those_who_serve_by_messages(start: Start, architecture: str) -> None:
    """Storage at the host or server, whose native path steps aside; rings at the monitors, where there are any."""
    machine = start(architecture)
    numbers = [inject(machine, "storage-slow", Knobs(times=20), delay_ms=1)]
    if architecture == "hosted":
        numbers.append(inject(machine, "ring-delayed", Knobs(times=20), delay_ms=1))
    else:
        with pytest.raises(CommandError, match="without rings"):
            inject(machine, "ring-delayed")
    for number in numbers:
        assert fires(machine, number, 20)["fired"] == 20
    heal(machine)
    goes_on(machine)
    judge(machine)
