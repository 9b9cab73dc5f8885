"""Devices that fail on purpose, on a whole machine: what each policy does about it, and what the records say."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.machine.conftest import Boot, RunningMachine, machine_toml, until
from tests.machine.test_networks import in_a_network_of_its_own

pytestmark = pytest.mark.machine

PROGRAM = '''
import contextlib
import threading
import time

from partitions.storage.errors import DiskClosedError, DiskCommandError


def one(partition, name, disk):
    """Writes and reads back, until its disk is taken; says when its luck changes."""
    before, count = "well", 0
    try:
        while True:
            count, now = count + 1, "well"
            try:
                disk.write(0, count.to_bytes(8, "little") * 64)
            except DiskCommandError as error:
                now = f"write: {error.sense.key}"
            try:
                disk.read(0, 512)
            except DiskCommandError:
                now += ", read fails"
            if now != before:
                before = now
                partition.report("luck", disk=name, now=now)
            time.sleep(0.002)
    except DiskClosedError:
        partition.report("luck", disk=name, now="closed")


def main(partition):
    with contextlib.ExitStack() as disks:
        for name in list(partition.devices):
            disk = disks.enter_context(partition.open_disk(name, 64 << 10))
            threading.Thread(target=one, args=(partition, name, disk), daemon=True).start()
            partition.report("opened", disk=name)
        threading.Event().wait()
'''
POLICIES = ("report", "retry", "degrade", "remove")


def luck(machine: RunningMachine, disk: str) -> list[str]:
    return [
        event["fields"]["now"]
        for event in machine.events
        if event["kind"] == "guest.luck" and event["fields"]["disk"] == disk
    ]


def records(machine: RunningMachine, device: str) -> list[dict[str, object]]:
    listed = machine.command("errors", device, "--json")
    assert listed.returncode == 0, listed.stderr
    rows: list[dict[str, object]] = json.loads(listed.stdout)["errors"]
    return rows


def all_records(machine: RunningMachine) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(machine.command("errors", "--json").stdout)["errors"]
    return rows


def states(machine: RunningMachine) -> dict[str, str]:
    """Of the guest's devices."""
    shown = json.loads(machine.command("show", "guest", "--json").stdout)["devices"]
    return {one["device"]: one["state"] for one in shown}


@pytest.mark.parametrize(
    "architecture", ["disaggregated", pytest.param("monolithic", marks=pytest.mark.soak)]
)
def test_a_disk_that_fails_is_dealt_with_as_its_policy_says(
    boot: Boot, architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unlucky.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    devices = "".join(
        f'[[root.device]]\nname = "{name}"\nkind = "disk"\nbackend = "memory"\nsize = "64KiB"\non_error = "{name}"\n'
        for name in POLICIES
    )
    attached = "".join(f'[[partition.device]]\nname = "{name}"\n' for name in POLICIES)
    guest = '[[partition]]\nname = "guest"\nprogram = "unlucky:main"\nmemory = "16MiB"\n'
    machine = boot(machine_toml(guest + attached, devices=devices, architecture=architecture))
    until(
        lambda: sum(event["kind"] == "guest.opened" for event in machine.events) == len(POLICIES),
        lambda: [machine.process.poll(), machine.errors, *machine.events],
    )
    for name in POLICIES:
        times = "2" if name == "retry" else "5"
        injected = machine.command("inject", name, "storage-error", "which=write", "--times", times)
        assert injected.returncode == 0, injected.stderr
    until(lambda: luck(machine, "report")[-1:] == ["well"])  # it failed, and was told so, and goes on
    assert len(luck(machine, "report")) == 2
    until(lambda: bool(records(machine, "retry")))
    assert luck(machine, "retry") == []  # its guest saw nothing
    assert [row["severity"] for row in records(machine, "retry")] == ["corrected"]
    until(lambda: "closed" in luck(machine, "remove"))
    until(lambda: any(row["condition"] == "degraded" for row in records(machine, "degrade")))
    until(lambda: len(luck(machine, "degrade")) >= 2)
    machine.command("heal")
    said = luck(machine, "degrade")
    assert "closed" not in said
    assert "read fails" not in said[-1]  # for reading it is as good as ever
    assert said[-1] != "well"
    # What a guest saw is written down after it saw it, by each driver for itself.
    until(lambda: [row["count"] for row in records(machine, "report")] == [5])
    (row,) = records(machine, "report")
    assert (row["operation"], row["errno"], row["source"]) == ("write", 5, "storage")
    until(lambda: {one["device"] for one in all_records(machine)} == set(POLICIES))
    assert all(one["first_ns"] <= one["last_ns"] for one in all_records(machine))
    until(lambda: states(machine)["remove"] == "failed")
    until(lambda: sum(event["kind"] == "hardware.error" for event in machine.events) >= len(POLICIES))


NETWORKS = """
import threading

from partitions.net.errors import NetClosedError


def one(partition, name):
    try:
        with partition.open_net(name, 64 << 10, 64 << 10) as nic:
            was = None
            while True:
                if nic.link_up != was:
                    was = nic.link_up
                    partition.report("luck", disk=name, now="up" if was else "down")
                nic.receive(16, 0.05)
    except NetClosedError:
        partition.report("luck", disk=name, now="closed")


def main(partition):
    threads = [threading.Thread(target=one, args=(partition, name)) for name in partition.devices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    threading.Event().wait()
"""


@pytest.mark.soak
@pytest.mark.parametrize("architecture", ["microkernelized", "disaggregated"])
def test_an_interface_that_vanishes_is_dealt_with_as_its_policy_says(
    boot: Boot, architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that says that the device is gone counts for as many as it takes."""
    (tmp_path / "vanishing.py").write_text(NETWORKS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def work() -> None:
        devices = "".join(
            f'[[root.device]]\nname = "{name}"\nkind = "net"\nbackend = "tap"\ninterface = "pv{name}"\n'
            f'on_error = "{name}"\n'
            for name in POLICIES
        )
        attached = "".join(f'[[partition.device]]\nname = "{name}"\n' for name in POLICIES)
        guest = '[[partition]]\nname = "guest"\nprogram = "vanishing:main"\nmemory = "16MiB"\n'
        machine = boot(machine_toml(guest + attached, devices=devices, architecture=architecture))
        until(lambda: all(luck(machine, name) == ["up"] for name in POLICIES), lambda: machine.events[-20:])
        for name in POLICIES:
            subprocess.run(["ip", "link", "delete", f"pv{name}"], check=True)
        until(lambda: luck(machine, "remove")[-1] == "closed", lambda: machine.events[-20:])
        # Whatever the policy is: there is nothing at the other end.
        left = [name for name in POLICIES if name != "remove"]
        until(
            lambda: all(luck(machine, name) == ["up", "down"] for name in left), lambda: machine.events[-20:]
        )
        until(lambda: all(records(machine, name) for name in POLICIES), lambda: machine.events[-20:])
        conditions = {"report": "well", "retry": "well", "degrade": "degraded", "remove": "removed"}
        for name in POLICIES:
            row = records(machine, name)[0]
            assert (row["source"], row["severity"], row["condition"]) == (
                "network",
                "fatal",
                conditions[name],
            )
        assert states(machine) == {"report": "open", "retry": "open", "degrade": "open", "remove": "failed"}
        machine.process.send_signal(signal.SIGTERM)
        machine.wait()

    in_a_network_of_its_own(work)
