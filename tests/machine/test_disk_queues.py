"""Several queues of one guest to one disk: sub-channels, each with a thread, while roots come and go."""

import random
import signal
import time
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from runtime.chaos.blocks import image_values
from runtime.chaos.checker import check
from runtime.chaos.loaded_machine import BOUND_S, Load, LoadedMachine, signal_process
from runtime.chaos.verdict import summary
from tests.machine.conftest import PATIENT, Boot, machine_toml
from tests.machine.under_load import judge, machines_under_load

pytestmark = pytest.mark.machine

BLOCKS: Final = 256
KILLS: Final = 2
KILLS_BY_SOAK: Final = 12


def _has_come_back(machine: LoadedMachine, exits: int) -> bool:
    return len(machine.all_of("root.exited")) > exits and machine.root_serves


@pytest.mark.parametrize("kills", [KILLS, pytest.param(KILLS_BY_SOAK, marks=pytest.mark.soak)])
def test_two_queues_are_one_disk_whatever_happens_to_the_root(
    tmp_path: Path, runtime_dir: Path, kills: int
) -> None:
    """Every byte that either thread reads, flushes included, is checked against the histories of both."""
    rng = random.Random(kills)
    load = Load(queues=2, seconds=60.0, blocks=BLOCKS, depth=16, settings=PATIENT)
    with machines_under_load(tmp_path, runtime_dir) as begin:
        machine = begin(load)
        relids = {event["fields"]["relid"] for event in machine.all_of("vmbus.channel_opened")}
        assert len(relids) == 2, "a primary and its sub-channel"
        for exits in range(kills):
            time.sleep(rng.uniform(0.1, 0.3))
            machine.kill_root()
            assert machine.wait_until(partial(_has_come_back, machine, exits)), machine.events[-20:]
        judge(machine)
    assert machine.takeovers == kills
    done = [event["fields"]["operations"] for event in machine.all_of("guest.queue_verified")]
    assert len(done) == 2
    assert min(done) > 0, "one of the queues did nothing"


@pytest.mark.soak
def test_so_they_are_when_their_driver_dies_or_its_root(tmp_path: Path, runtime_dir: Path) -> None:
    rng = random.Random(3)
    settings: dict[str, int | str] = {"architecture": "disaggregated", **PATIENT}
    load = Load(queues=2, seconds=60.0, blocks=BLOCKS, depth=16, settings=settings)
    with machines_under_load(tmp_path, runtime_dir) as begin:
        machine = begin(load)
        for turn in range(KILLS_BY_SOAK):
            time.sleep(rng.uniform(0.1, 0.3))
            exits, deaths = len(machine.all_of("root.exited")), machine.driver_deaths
            if turn % 2:
                machine.kill_root()
                assert machine.wait_until(partial(_has_come_back, machine, exits)), machine.events[-20:]
            else:
                machine.kill_driver()
                assert machine.wait_until(partial(_driver_has_come_back, machine, deaths)), machine.events[
                    -20:
                ]
        judge(machine)


def _driver_has_come_back(machine: LoadedMachine, deaths: int) -> bool:
    return machine.driver_deaths > deaths and machine.driver_serves


@pytest.mark.soak
@pytest.mark.parametrize("with_root", [False, True])
def test_a_guest_that_dies_with_its_queues_open_hurts_nobody(
    tmp_path: Path, runtime_dir: Path, with_root: bool
) -> None:
    """Another one has the same blocks, by two queues of its own."""
    load = Load(queues=2, guests=2, seconds=60.0, blocks=BLOCKS, depth=8, settings=PATIENT)
    with machines_under_load(tmp_path, runtime_dir) as begin:
        machine = begin(load)
        (first, _) = [event["fields"]["pid"] for event in machine.all_of("partition.started")]
        signal_process(first, signal.SIGKILL)
        if with_root:
            machine.kill_root()
            assert machine.wait_until(partial(_has_come_back, machine, 0)), machine.events[-20:]
        machine.finish()
        judged = machine.judge()
    with machine.image.open("rb") as image:
        found = dict(enumerate(image_values(image.fileno(), 0, BLOCKS)))
    killed = set(load.seeds[: load.queues])
    verdict = check(judged.histories, bound_s=BOUND_S, image=found, killed=killed, tearing=True)
    assert verdict.passed, summary(verdict)
    assert judged.left_behind == []


@pytest.mark.parametrize(
    "architecture",
    [
        "microkernelized",
        pytest.param("disaggregated", marks=pytest.mark.soak),
        pytest.param("monolithic", marks=pytest.mark.soak),
    ],
)
def test_queues_come_and_go_with_the_disk_and_a_bad_one_takes_it_along(boot: Boot, architecture: str) -> None:
    machine = boot(
        machine_toml(
            '[[partition]]\nname = "guest"\nprogram = "tests.machine.queue_programs:open_and_break"\n'
            'memory = "64MiB"\nvps = 2\n[[partition.device]]\nname = "disk0"\n',
            devices='[[root.device]]\nname = "disk0"\nkind = "disk"\nbackend = "memory"\nsize = "1MiB"\nqueues = 3\n',
            architecture=architecture,
        )
    )
    machine.wait_for("guest.done", "guest")
    assert machine.wait() == 0, machine.errors
    refused = machine.wait_for("guest.refused", "guest")
    assert "has 3 queues, not 4" in refused["fields"]["reason"]
    broken = [event for event in machine.events if event["kind"] == "vmbus.channel_broken"]
    assert len(broken) == 1
