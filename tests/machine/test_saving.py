"""A partition that is saved in the middle of its work, and goes on: in the same machine, and in another one."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.config.loading import load
from runtime.machine.saved_file import load as load_saved
from runtime.machine.saved_partition import SavedPartitionError
from runtime.machine.saving_checks import image_for
from tests.machine.conftest import PATIENCE_S, Boot, RunningMachine, idle_partition, machine_toml

pytestmark = [pytest.mark.machine, pytest.mark.soak]

BLOCKS = 1 << 14
PROGRAM = f'''
def counting(partition):
    """Block n of its disk says n, written once each and in order; that it has done so far is all that it knows."""
    count = int(partition.restored_state or b"0")
    began = count
    partition.on_save(lambda: str(count).encode())
    integration = partition.integration
    with partition.open_disk("disk0", 64 << 10) as disk:
        partition.report("goes_on", count=count)
        while count < {BLOCKS} and not integration.stopping.is_set():
            with integration.writing():
                assert disk.read(count * 512, 512) == bytes(512), count  # nobody was here before
                disk.write(count * 512, (count + 1).to_bytes(8, "little") * 64)
                count += 1
            if count == began + 30:
                partition.report("counts", count=count)
'''


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def values(machine: RunningMachine, kind: str) -> list[int]:
    return [event["fields"]["count"] for event in machine.events if event["kind"] == kind]


def history(image: Path) -> int:
    """How far it has come, where no number is missing or twice."""
    data = image.read_bytes()
    numbers = [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 512)]
    count = max(numbers)
    assert numbers == [*range(1, count + 1), *([0] * (len(numbers) - count))]
    return count


def test_a_partition_goes_on_where_it_was_saved(
    boot: Boot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "saving.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    image, file = tmp_path / "disk.img", tmp_path / "one.saved"
    toml = machine_toml(
        '[[partition]]\nname = "one"\nprogram = "saving:counting"\nmemory = "16MiB"\nintegration = true\n'
        '[[partition.device]]\nname = "disk0"\n',
        idle_partition("two"),
        devices=f'[[root.device]]\nname = "disk0"\nkind = "disk"\nbackend = "file"\npath = "{image}"\n'
        f'size = "{BLOCKS // 2}KiB"\n',
    )
    machine = boot(toml)
    machine.wait_for("guest.counts", "one")
    assert "integration" in machine.command("save", "two", str(file)).stderr
    assert "runs" in machine.command("restore", "one", __file__).stderr
    assert "No such file" in machine.command("save", "one", "/nowhere/at/all").stderr  # and it runs on
    _is_saved(machine, file, image)
    assert machine.command("restore", "one", str(file)).returncode == 0
    until(lambda: len(values(machine, "guest.counts")) == 2)
    assert values(machine, "guest.goes_on")[1] == _count_in(file)
    _is_saved(machine, file, image)
    machine.command("stop")
    machine.wait()
    another = boot(toml, f"partition.one.restore={file}")
    another.wait_for("guest.counts", "one")
    assert values(another, "guest.goes_on") == [_count_in(file)]
    another.command("stop")
    another.wait()
    assert history(image) > _count_in(file)  # nothing was lost or written again
    config_file = tmp_path / "again.toml"
    config_file.write_text(toml)
    config = load(config_file)
    with pytest.raises(
        SavedPartitionError, match="has changed"
    ):  # it has gone on, so it does not do so twice
        image_for(config, config.partitions[0], file)


def _is_saved(machine: RunningMachine, file: Path, image: Path) -> None:
    saved = machine.command("save", "one", str(file), "--json")
    assert saved.returncode == 0, saved.stderr
    assert not json.loads(saved.stdout)["goes_on"]
    machine.wait_for("partition.saved", "one")
    assert history(image) == _count_in(file)


def _count_in(file: Path) -> int:
    return int(load_saved(file).state)
