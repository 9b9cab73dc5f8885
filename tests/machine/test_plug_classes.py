"""Networks, serial lines and devices of the user's own that come while the machine runs, stay over a reboot, and go."""

import json
from pathlib import Path

import pytest

from tests.machine.conftest import Boot, RunningMachine, machine_toml, until

pytestmark = [pytest.mark.machine, pytest.mark.soak]

PROGRAM = '''
import os
import threading

from partitions.sdk.custom import CustomDriver
from partitions.sdk.net import NetDriver
from partitions.sdk.serial import SerialDriver


class Tidy:
    """Its file says afterwards that it was closed in good order."""

    def close(self):
        os.lseek(self.context.backing_fd, 0, os.SEEK_END)
        os.write(self.context.backing_fd, b"closed\\n")
        super().close()


class Capitals(Tidy, CustomDriver):
    def answer(self, request):
        return request.upper()


class Mirror(Tidy, NetDriver):
    """Sends each frame back to who sent it."""

    def __init__(self, context):
        super().__init__(context)
        self._frames = []

    def transmit(self, frames):
        self._frames += [bytes(frame[6:12] + b"\\2\\0\\0\\0\\0\\1" + frame[12:]) for frame in map(bytes, frames)]
        return len(frames)

    def receive(self, limit):
        frames, self._frames = self._frames[:limit], self._frames[limit:]
        return frames


class Paper(Tidy, SerialDriver):
    def write(self, data):
        return os.write(self.context.backing_fd, data)

    def read(self, limit):
        return b""


def use_custom(partition):
    with partition.open_custom("custom1") as custom:
        assert custom.exchange(b"word", 100) == b"WORD"


def use_net(partition):
    with partition.open_net("net1") as nic:
        frame = b"\\2\\0\\0\\0\\0\\1" + nic.mac + b"\\x88\\xb5" + bytes(range(46))
        nic.send([frame])
        while frame[14:] not in [one[14:] for one in nic.receive(3, 0.5)]:
            nic.send([frame])


def use_serial(partition):
    with partition.open_serial("serial1") as line:
        line.write(b"line\\n")
        assert line.flush(30)


USES = {"custom1": use_custom, "net1": use_net, "serial1": use_serial}


def main(partition):
    """Uses each device in a thread of its own, all at once: it is their first use of the bus."""
    lock, used, both = threading.Lock(), [], threading.Barrier(len(USES))

    def one(name):
        both.wait()
        partition.wait_for_device(name, 600)
        USES[name](partition)
        with lock:
            used.append(name)

    threads = [threading.Thread(target=one, args=(name,)) for name in USES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    partition.report("used", names=sorted(used))
    threading.Event().wait()
'''
DRIVERS = {"custom1": "Capitals", "net1": "Mirror", "serial1": "Paper"}


def count_of(machine: RunningMachine, kind: str) -> int:
    return sum(event["kind"] == kind for event in machine.events)


@pytest.mark.parametrize("architecture", ["microkernelized", "disaggregated"])
def test_devices_of_every_class_come_stay_over_a_reboot_and_are_closed_when_they_go(
    boot: Boot, architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "classes.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    # The root has loaded the module by then, and finds the drivers in it.
    guest = '[[partition]]\nname = "one"\nprogram = "classes:main"\nmemory = "32MiB"\n'
    machine = boot(machine_toml(guest, architecture=architecture))
    machine.wait_for("machine.ready")
    files = {name: tmp_path / f"{name}.txt" for name in DRIVERS}
    for name, driver in DRIVERS.items():
        files[name].touch()
        words = [name, f"kind={name[:-1]}", f"driver=classes:{driver}", f"path={files[name]}"]
        added = machine.command("device", "add", "one", *words)
        assert added.returncode == 0, added.stderr
    until(lambda: count_of(machine, "guest.used") == 1, lambda: machine.events[-20:])
    assert machine.command("reboot").returncode == 0
    until(lambda: count_of(machine, "machine.rebooted") == 1, lambda: machine.events[-20:])
    until(lambda: count_of(machine, "guest.used") == 2, lambda: machine.events[-20:])
    before = {name: file.read_bytes().count(b"closed") for name, file in files.items()}
    for name in DRIVERS:
        removed = machine.command("device", "remove", "one", name, "--json")
        assert removed.returncode == 0, removed.stderr
        assert json.loads(removed.stdout)["let_go"]
        assert files[name].read_bytes().count(b"closed") == before[name] + 1
    assert json.loads(machine.command("device", "list", "--json").stdout) == {"devices": []}
    assert count_of(machine, "vmbus.connected") == 2  # one a life, whatever the threads did
    machine.command("stop")
    assert machine.wait() != 2, machine.errors
