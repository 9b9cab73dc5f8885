"""A disk that one partition drives itself: who holds its file, that it works, and whose it is afterwards."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.machine.conftest import PATIENCE_S, Boot, RunningMachine, idle_partition, machine_toml
from tests.machine.test_networks import in_a_network_of_its_own

pytestmark = [pytest.mark.machine, pytest.mark.soak]

PROGRAM = '''
import time


def owner(partition):
    """Writes its number of writes, over and over, with what every disk can do."""
    with partition.open_disk("disk0") as disk:
        before = int.from_bytes(disk.read(0, 512)[:8], "little")
        count = before
        while True:
            count += 1
            disk.write(0, count.to_bytes(8, "little") * 64)
            disk.flush()
            assert disk.read(0, 512) == count.to_bytes(8, "little") * 64
            if count == before + 20:
                partition.report("writes", before=before)
'''


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def holders(machine: RunningMachine, path: Path) -> list[str]:
    """Processes that have a descriptor of it, as /proc says."""
    machine.remember()
    found = []
    for process in machine._everyone.values():
        try:
            links = [str(fd.readlink()) for fd in Path(f"/proc/{process.pid}/fd").iterdir()]
            found += [process.name()] if str(path) in links else []
        except (OSError, psutil.NoSuchProcess):
            continue
    return found


def toml_of(tmp_path: Path, architecture: str = "microkernelized", **more: str) -> str:
    device = (
        f'[[root.device]]\nname = "disk0"\nkind = "disk"\nbackend = "file"\npath = "{tmp_path}/own.img"\n'
        'size = "64KiB"\nassigned_to = "one"\n'
    )
    one = '[[partition]]\nname = "one"\nprogram = "owning:owner"\nmemory = "16MiB"\n'
    attached = '[[partition.device]]\nname = "disk0"\n'
    return machine_toml(
        one + attached,
        idle_partition("two"),
        devices=device,
        architecture=architecture,
        on_root_failure="restart",
        **more,
    )


@pytest.mark.parametrize(
    "architecture", ["microkernelized", pytest.param("disaggregated", marks=pytest.mark.soak)]
)
def test_a_device_is_its_partitions_alone_and_the_roots_when_that_has_ended(
    boot: Boot, architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owning.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    machine, image = boot(toml_of(tmp_path, architecture)), tmp_path / "own.img"
    machine.wait_for("guest.writes", "one")
    until(lambda: holders(machine, image) == ["pv-one"])
    authority = json.loads(machine.command("authority", "--json").stdout)
    assert authority["clean"], authority["unexplained"]
    machine.command("crash", "root")  # which has no part in it
    machine.wait_for("root.restored")
    until(
        lambda: holders(machine, image) == ["pv-one"]
    )  # a standby has its parent's files until it has closed them
    os.kill(machine.pid("one"), signal.SIGKILL)
    machine.wait_for("device.returned")
    holder = "pv-root" if architecture == "microkernelized" else "pv-disk0"
    until(
        lambda: holders(machine, image) == [holder]
    )  # on its way to a driver it passes through the hypervisor
    added = machine.command("device", "add", "two", "disk0")  # so now it can be anybody's
    assert added.returncode == 0, added.stderr
    with image.open("rb") as file:
        assert int.from_bytes(file.read(8), "little") >= 20
    authority = json.loads(machine.command("authority", "--json").stdout)
    assert authority["clean"], authority["unexplained"]


NETWORK = '''
from partitions.net.errors import NetClosedError


def owner(partition):
    """Sends each frame of ours back to its sender, until nothing is at the other end."""
    if partition.name == "two":
        partition.wait_for_device("net0", 300)
    with partition.open_net("net0") as nic:
        partition.report("ready", mac=nic.mac.hex())
        while nic.link_up:
            for frame in nic.receive(16, 0.05):
                if frame[12:14] == b"\\x88\\xb5":
                    nic.send([frame[6:12] + nic.mac + frame[12:]])
    partition.report("link_down")
'''


@pytest.mark.parametrize("vanishes", [True, False], ids=["vanished", "there"])
@pytest.mark.parametrize("architecture", ["microkernelized", "disaggregated"])
def test_an_interface_of_the_hosts_is_its_partitions_alone_and_the_roots_when_that_has_ended(
    boot: Boot, architecture: str, vanishes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The root opens it, and has no descriptor of it once it is handed over; its successors do without."""
    (tmp_path / "owning_net.py").write_text(NETWORK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def work() -> None:
        device = (
            '[[root.device]]\nname = "net0"\nkind = "net"\nbackend = "tap"\ninterface = "pvown0"\n'
            'assigned_to = "one"\n'
        )
        one, two = (
            f'[[partition]]\nname = "{name}"\nprogram = "owning_net:owner"\nmemory = "32MiB"\n'
            for name in ("one", "two")
        )
        attached = '[[partition.device]]\nname = "net0"\n'
        toml = machine_toml(
            one + attached,
            two,
            devices=device,
            architecture=architecture,
            on_root_failure="restart",
        )
        machine = boot(toml)
        machine.wait_for("guest.ready", "one")
        assert holders(machine, Path("/dev/net/tun")) == ["pv-one"]
        authority = json.loads(machine.command("authority", "--json").stdout)
        assert authority["clean"], authority["unexplained"]
        _exchange("pvown0")
        machine.command("crash", "root")
        machine.wait_for("root.restored")
        _exchange("pvown0")
        assert holders(machine, Path("/dev/net/tun")) == ["pv-one"]
        if vanishes:
            subprocess.run(["ip", "link", "delete", "pvown0"], check=True)
            machine.wait_for("guest.link_down", "one")
            until(lambda: json.loads(machine.command("errors", "net0", "--json").stdout)["errors"] != [])
        else:
            os.kill(machine.pid("one"), signal.SIGKILL)
        machine.wait_for("device.returned")
        holder = "pv-root" if architecture == "microkernelized" else "pv-net0"
        until(lambda: holders(machine, Path("/dev/net/tun")) == [holder])
        added = machine.command("device", "add", "two", "net0")
        assert added.returncode == 0, added.stderr
        machine.wait_for("guest.ready", "two")
        _exchange("pvown0")
        authority = json.loads(machine.command("authority", "--json").stdout)
        assert authority["clean"], authority["unexplained"]
        machine.command("crash", "root" if architecture == "microkernelized" else "net0")
        _exchange("pvown0")  # by its next process
        machine.process.send_signal(signal.SIGTERM)
        machine.wait()

    in_a_network_of_its_own(work)


@pytest.mark.parametrize("architecture", ["microkernelized", "disaggregated"])
def test_an_interface_comes_and_goes_with_a_device_that_is_added_and_removed(
    boot: Boot, architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owning_net.py").write_text(NETWORK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def is_there() -> bool:
        return subprocess.run(["ip", "link", "show", "pvnew0"], capture_output=True).returncode == 0

    def work() -> None:
        two = '[[partition]]\nname = "two"\nprogram = "owning_net:owner"\nmemory = "32MiB"\n'
        machine = boot(machine_toml(two, architecture=architecture))
        machine.wait_for("machine.ready")
        added = machine.command("device", "add", "two", "net0", "kind=net", "backend=tap", "interface=pvnew0")
        assert added.returncode == 0, added.stderr
        machine.wait_for("guest.ready", "two")
        _exchange("pvnew0")
        authority = json.loads(machine.command("authority", "--json").stdout)
        assert authority["clean"], authority["unexplained"]
        assert machine.command("device", "remove", "two", "net0").returncode == 0
        until(lambda: not is_there())
        machine.process.send_signal(signal.SIGTERM)
        machine.wait()

    in_a_network_of_its_own(work)


def _exchange(interface: str) -> None:
    """A frame to whoever is behind the interface, until it comes back."""
    frame = b"\xff" * 6 + b"\2\0\0\0\0\7" + b"\x88\xb5" + bytes(range(46))
    deadline = time.monotonic() + PATIENCE_S
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)) as wire:
        wire.bind((interface, 0))
        wire.settimeout(0.2)
        while time.monotonic() < deadline:
            wire.send(frame)
            with contextlib.suppress(TimeoutError):
                answer = wire.recv(2000)
                if answer[:6] == frame[6:12] and answer[12:] == frame[12:]:
                    return
    raise AssertionError("nothing came back")
