"""The verified load over an overlay whose root dies again and again: nothing that was acknowledged is lost."""

import os
import signal
import time
from pathlib import Path

import pytest

from partitions.storage.backends import FileBackend
from partitions.storage.overlay import OverlayBackend
from runtime.chaos.blocks import image_values
from runtime.chaos.checker import check
from runtime.chaos.history import read_history
from runtime.chaos.verdict import summary
from tests.machine.conftest import Boot, RunningMachine, machine_toml, until
from tests.machine.test_verified import BLOCKS

pytestmark = [pytest.mark.machine, pytest.mark.soak]
DISK_BYTES = 16 << 20
KILLS = 4


def restored(machine: RunningMachine) -> int:
    return sum(event["kind"] == "root.restored" for event in machine.events)


def test_what_an_overlay_acknowledged_outlives_its_roots(boot: Boot, tmp_path: Path) -> None:
    base, overlay, history, image = (tmp_path / name for name in ("base", "overlay", "history", "image"))
    base.write_bytes(bytes(DISK_BYTES))
    history.touch()
    machine = boot(
        machine_toml(
            '[[partition]]\nname = "guest"\nprogram = "partitions.guests.verified:main"\nmemory = "32MiB"\n'
            f'args = {{ device = "disk0", seed = 5, blocks = {BLOCKS}, seconds = 60 }}\n'
            '[[partition.device]]\nname = "disk0"\n'
            f'[[partition.file]]\nname = "history"\npath = "{history}"\nmode = "read-write"\n',
            devices='[[root.device]]\nname = "disk0"\nkind = "disk"\nbackend = "overlay"\n'
            f'base = "{base}"\npath = "{overlay}"\n',
            on_root_failure="restart",
        )
    )
    machine.wait_for("guest.verified_progress", "guest")
    for kills in range(KILLS):
        time.sleep(0.4)  # under load
        started = [event for event in machine.events if event["kind"] == "root.started"]
        os.kill(int(started[-1]["fields"]["pid"]), signal.SIGKILL)
        until(lambda kills=kills: restored(machine) > kills, lambda: machine.events[-20:])  # type: ignore[misc]
    os.kill(machine.pid("guest"), signal.SIGTERM)  # enough
    assert machine.wait() == 0, machine.errors
    disk = OverlayBackend(FileBackend.open(base, read_only=True), os.open(overlay, os.O_RDWR))
    found = bytearray(DISK_BYTES)
    disk.readv([memoryview(found)], 0)
    disk.close()
    image.write_bytes(found)
    descriptor = os.open(image, os.O_RDONLY)
    try:
        verdict = check([read_history(history)], image=dict(enumerate(image_values(descriptor, 0, BLOCKS))))
    finally:
        os.close(descriptor)
    assert verdict.passed, summary(verdict)
    assert verdict.completed > 0
    assert base.read_bytes() == bytes(DISK_BYTES)
