"""Devices that come and go on a whole machine that runs: what its guests see of it, and what its successors know."""

import json
from pathlib import Path

import pytest

from tests.machine.conftest import Boot, RunningMachine, machine_toml, until

pytestmark = pytest.mark.machine

PROGRAM = '''
import gc

from partitions.storage.errors import DiskClosedError


def plugged(partition):
    """Writes to a disk that comes, until it goes; again and again."""
    assert not partition.has_device("extra")
    partition.report("waits")
    while True:
        partition.wait_for_device("extra", 600)
        count = 0
        try:
            with partition.open_disk("extra") as disk:
                while True:
                    count += 1
                    disk.write(512, count.to_bytes(8, "little") * 64)
                    disk.flush()
                    assert disk.read(512, 512) == count.to_bytes(8, "little") * 64
                    if count == 5:
                        partition.report("writes")
        except DiskClosedError:
            pass
        del disk
        gc.collect()  # its pages are mapped as long as anything of it is there
        changes = []
        while not any(not change.arrived for change in changes):
            changes += partition.device_changes(5)
        partition.report(
            "lost", count=count, changes=[[change.arrived, change.kind, change.name] for change in changes]
        )
'''


def count_of(machine: RunningMachine, kind: str) -> int:
    return sum(event["kind"] == kind for event in machine.events)


def last(machine: RunningMachine, kind: str) -> dict[str, object]:
    fields: dict[str, object] = [event["fields"] for event in machine.events if event["kind"] == kind][-1]
    return fields


@pytest.mark.parametrize(
    "architecture", ["microkernelized", pytest.param("disaggregated", marks=pytest.mark.soak)]
)
def test_a_disk_comes_and_goes_and_no_root_forgets_it(
    boot: Boot, architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plugging.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    guest = '[[partition]]\nname = "{}"\nprogram = "{}"\nmemory = "16MiB"\n'
    toml = machine_toml(
        guest.format("one", "plugging:plugged"),
        guest.format("two", "partitions.guests.idle:main"),
        on_root_failure="restart",
        architecture=architecture,
    )
    machine, image = boot(toml), tmp_path / "extra.img"
    machine.wait_for("machine.ready")
    machine.wait_for("guest.waits")  # who looks only now whether it is there would find it
    words = ["extra", "kind=disk", "backend=file", f"path={image}", "size=1MiB"]
    for wrong, why in (
        (["add", "one", "extra"], "say what it is"),
        (["add", "one", "extra", "kind=disk"], "backend"),
        (["add", "nobody", *words], "nobody"),
        (["add", "one", "extra", "kind=disk", "backend=file", "path=/nowhere/at/all"], "no such file"),
        (["remove", "one", "extra"], "no device"),
    ):
        refused = machine.command("device", *wrong)
        assert refused.returncode != 0, wrong
        assert why in refused.stderr, (wrong, refused.stderr)
        assert refused.stderr.count("\n") == 1
    assert machine.command("device", "add", "one", *words).returncode == 0
    until(lambda: count_of(machine, "guest.writes") == 1)
    assert "already" in machine.command("device", "add", "one", "extra").stderr
    _is_listed(machine, ["one"])
    if architecture == "disaggregated":  # its file is handed to each new process of its driver
        assert machine.command("crash", "extra").returncode == 0
        until(lambda: count_of(machine, "driver.serving") == 2)
    machine.command("crash", "root")
    until(lambda: count_of(machine, "root.restored") == 1)
    _is_listed(machine, ["one"])
    assert machine.command("device", "add", "two", "extra").returncode == 0
    _is_listed(machine, ["one", "two"])
    removed = machine.command("device", "remove", "one", "extra", "--json")
    assert removed.returncode == 0, removed.stderr
    assert json.loads(removed.stdout)["let_go"]
    until(lambda: count_of(machine, "guest.lost") == 1)
    lost = last(machine, "guest.lost")
    assert lost["changes"] == [[True, "disk", "extra"], [False, "disk", "extra"]]
    with image.open("rb") as file:  # what was acknowledged is there
        file.seek(512)
        assert int.from_bytes(file.read(8), "little") in (
            int(str(lost["count"])),
            int(str(lost["count"])) - 1,
        )
    _is_listed(machine, ["two"])
    assert machine.command("device", "remove", "two", "extra").returncode == 0
    assert json.loads(machine.command("device", "list", "--json").stdout) == {"devices": []}
    assert not _holders(machine, image)
    assert machine.command("device", "add", "one", *words).returncode == 0  # as if it had never been there
    until(lambda: count_of(machine, "guest.writes") == 2)
    authority = json.loads(machine.command("authority", "--json").stdout)
    assert authority["clean"], authority["unexplained"]
    machine.command("stop")
    assert machine.wait() != 2, machine.errors


def _is_listed(machine: RunningMachine, partitions: list[str]) -> None:
    (row,) = json.loads(machine.command("device", "list", "--json").stdout)["devices"]
    assert (row["device"], row["kind"], row["partitions"]) == ("extra", "disk", partitions)


def _holders(machine: RunningMachine, path: Path) -> list[str]:
    machine.remember()
    return [
        process.name()
        for process in machine._everyone.values()
        if process.is_running() and any(file.path == str(path) for file in process.open_files())
    ]
