"""Partitions, and a whole machine, that are paused: they stand still, nobody takes them for hung, they go on."""

import json
import time
from pathlib import Path

import psutil
import pytest

from tests.machine.conftest import Boot, RunningMachine, machine_toml, until

pytestmark = [pytest.mark.machine, pytest.mark.soak]

HANG_MS = 1_000  # so that nobody is taken for hung who only has no processor
STUCK_MS = 2_000
PAUSED_S = 2 * STUCK_MS / 1000
PROGRAM = '''
import time


def beating(partition):
    """Counts on its disk, and says in the end how long that took, by its own clock and by its host's."""
    integration = partition.integration
    own, hosts = partition.reference_time() * 100, time.monotonic_ns()
    with partition.open_disk("disk0", 64 << 10) as disk:
        count = 0
        while not integration.stopping.is_set():
            count += 1
            disk.write(0, count.to_bytes(8, "little") * 64)
            assert disk.read(0, 512) == count.to_bytes(8, "little") * 64
            if count == 10:
                partition.report("beats")
    own, hosts = partition.reference_time() * 100 - own, time.monotonic_ns() - hosts
    partition.report("left", count=count, own_ns=own, hosts_ns=hosts)
'''


def show(machine: RunningMachine, name: str) -> dict[str, object]:
    shown = machine.command("show", name, "--json")
    assert shown.returncode == 0, shown.stderr
    found: dict[str, object] = json.loads(shown.stdout)
    return found


def cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def test_what_is_paused_stands_still_and_goes_on(
    boot: Boot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beating.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    devices = '[[root.device]]\nname = "disk0"\nkind = "disk"\nbackend = "memory"\nsize = "64KiB"\n'
    guest = '[[partition]]\nname = "{}"\nprogram = "beating:beating"\nmemory = "16MiB"\nintegration = true\n'
    attached = '[[partition.device]]\nname = "disk0"\n'
    one = guest.format("one") + attached
    toml = machine_toml(one, devices=devices, on_root_failure="restart", hang_ms=HANG_MS, stuck_ms=STUCK_MS)
    machine = boot(toml)
    machine.wait_for("guest.beats", "one")
    for wrong in (["pause"], ["pause", "nobody"], ["pause", "root"], ["pause", "one", "--all"]):
        refused = machine.command(*wrong)
        assert refused.returncode != 0
        assert refused.stderr.count("\n") == 1
    _stands_still(machine, ["one"], ["pause", "one"])
    assert show(machine, "one")["heartbeat"] == "paused"
    assert machine.command("resume", "one").returncode == 0
    _stands_still(machine, ["one", "root"], ["pause", "--all"])
    resumed = machine.command("resume", "--all", "--json")
    assert set(json.loads(resumed.stdout)["names"]) == {"one", "root"}
    assert show(machine, "one")["heartbeat"] != "paused"
    time.sleep(2 * STUCK_MS / 1000)  # whoever was to be taken for hung would have been
    kinds = {event["kind"] for event in machine.events}
    assert not kinds & {"root.exited", "root.stuck", "root.restored", "partition.exited"}
    assert machine.command("pause", "--all").returncode == 0
    assert machine.command("stop").returncode == 0  # what is paused goes on, to hear of it
    assert machine.wait() == 0, machine.errors
    left = machine.wait_for("guest.left", "one")["fields"]
    assert left["hosts_ns"] - left["own_ns"] >= 2 * PAUSED_S * 10**9  # its own time stood still


def _stands_still(machine: RunningMachine, names: list[str], command: list[str]) -> None:
    """For longer than anybody is waited for: no processor time is used."""
    assert machine.command(*command).returncode == 0
    pids = [machine.pid(name) for name in names]
    until(lambda: all(psutil.Process(pid).status() == psutil.STATUS_STOPPED for pid in pids))
    before = [cpu_s(pid) for pid in pids]
    time.sleep(PAUSED_S)
    assert [cpu_s(pid) for pid in pids] == before
