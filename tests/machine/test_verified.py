"""The verified load through whole machines of real processes, judged from the histories and the disk's file."""

import os
import signal
import time
from pathlib import Path

import pytest

from runtime.chaos.blocks import image_values
from runtime.chaos.checker import Cut, check
from runtime.chaos.history import Ending, read_history
from runtime.chaos.verdict import summary
from tests.machine.conftest import Boot, machine_toml

pytestmark = pytest.mark.machine

BLOCKS = 512


def verified_machine(tmp_path: Path, **seconds: float) -> str:
    """A guest for each `guestSEED`, which has so many; all on one disk."""
    guests = []
    for name, most in seconds.items():
        seed = int(name.removeprefix("guest"))
        (tmp_path / f"history{seed}").touch()
        guests.append(
            f'[[partition]]\nname = "guest{seed}"\nprogram = "partitions.guests.verified:main"\nmemory = "32MiB"\n'
            f'args = {{ device = "disk0", seed = {seed}, blocks = {BLOCKS}, seconds = {most} }}\n'
            '[[partition.device]]\nname = "disk0"\n'
            f'[[partition.file]]\nname = "history"\npath = "{tmp_path / f"history{seed}"}"\nmode = "read-write"\n'
        )
    device = (
        f'[[root.device]]\nname = "disk0"\nkind = "disk"\nbackend = "file"\npath = "{tmp_path / "disk"}"\n'
    )
    return machine_toml(*guests, devices=device + 'size = "16MiB"\n')


def image_of(tmp_path: Path) -> dict[int, int]:
    descriptor = os.open(tmp_path / "disk", os.O_RDONLY)
    try:
        return dict(enumerate(image_values(descriptor, 0, BLOCKS)))
    finally:
        os.close(descriptor)


def test_a_machine_keeps_what_it_acknowledged(boot: Boot, tmp_path: Path) -> None:
    machine = boot(verified_machine(tmp_path, guest1=2))
    told = machine.wait_for("guest.verified", "guest1")["fields"]
    assert machine.wait() == 0, machine.errors
    history = read_history(tmp_path / "history1")
    verdict = check([history], image=image_of(tmp_path))
    assert verdict.passed, summary(verdict)
    assert history.ending is Ending.FINISHED
    assert told["operations"] == verdict.operations == verdict.completed > 0
    assert (told["suspects"], told["failed"], told["gave_up"]) == (0, 0, False)


def test_a_killed_guest_leaves_a_history_that_the_next_boot_agrees_with(boot: Boot, tmp_path: Path) -> None:
    """Two guests on a disk, one of them killed under load; then another boot reads what they left."""
    machine = boot(verified_machine(tmp_path, guest1=60, guest2=1))
    machine.wait_for("guest.verified_progress", "guest1")
    os.kill(machine.pid("guest1"), signal.SIGKILL)
    machine.wait_for("guest.verified", "guest2")
    machine.wait()
    cut = Cut(time.monotonic_ns())
    machine = boot(verified_machine(tmp_path, guest3=0.5))
    assert machine.wait() == 0, machine.errors
    histories = [read_history(tmp_path / f"history{seed}") for seed in (1, 2, 3)]
    assert [history.ending for history in histories] == [Ending.NONE, Ending.FINISHED, Ending.FINISHED]
    verdict = check(histories, cuts=[cut], killed={1}, image=image_of(tmp_path), tearing=True)
    assert verdict.passed, summary(verdict)
    assert verdict.guests == 3
    assert verdict.unfinished > 0, "nothing was in flight when it was killed"
