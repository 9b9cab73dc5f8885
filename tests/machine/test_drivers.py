"""Drivers of the user's, of each class, in each of the five architectures: they serve, fail, or cannot be had."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from tests.machine.conftest import Boot, RunningMachine, machine_toml

pytestmark = pytest.mark.machine

ARCHITECTURES: Final = ("microkernelized", "disaggregated", "monolithic", "hosted", "microkernel")
HAS_THE_FILE: Final = {"microkernelized": "root", "monolithic": "hypervisor"}  # else the device's own process

DRIVERS: Final = '''
import os
import trio
from partitions.sdk import AsyncBlockDriver, AsyncCustomDriver, BackendError, BlockDriver, CustomDriver


class Memory(BlockDriver):
    def readv(self, views, offset):
        for view in views:
            view[:] = self.context.memory[offset : offset + len(view)]
            offset += len(view)

    def writev(self, views, offset):
        for view in views:
            self.context.memory[offset : offset + len(view)] = view
            offset += len(view)


class Fast(BlockDriver):
    @property
    def descriptor(self):
        return self.context.backing_fd


class Later(AsyncBlockDriver):
    async def readv(self, views, offset):
        await trio.sleep(0.001)
        os.preadv(self.context.backing_fd, views, offset)

    async def writev(self, views, offset):
        await trio.sleep(0.001)
        os.pwritev(self.context.backing_fd, views, offset)


class Dying(Later):
    """Its process dies at its 30th write and at its 70th, with others under way; the file knows which it was."""

    writes = 0

    async def writev(self, views, offset):
        self.writes += 1
        deaths = os.pread(self.context.backing_fd, 1, self.size_bytes - 1)[0]
        if deaths < 2 and self.writes == 30 + 40 * deaths:
            os.pwrite(self.context.backing_fd, bytes([deaths + 1]), self.size_bytes - 1)
            os._exit(9)
        await super().writev(views, offset)


class Upper(CustomDriver):
    """Its count outlives its processes."""

    def serve(self, requests):
        replies = []
        for request in requests:
            if request == b"die":
                os._exit(9)
            if request == b"raise":
                raise RuntimeError("on purpose")
            if request == b"error":
                raise BackendError(28, "full")
            if request == b"count":
                self.context.memory[0] += 1
                if self.context.memory[0] == 1:
                    os._exit(9)
                request = b"%d" % self.context.memory[0]
            replies.append(request.upper())
        return replies


class UpperLater(AsyncCustomDriver):
    async def serve(self, request):
        await trio.sleep(0.001)
        return self.context.args["prefix"].encode() + request.upper()


class Broken(CustomDriver):
    def __init__(self, context):
        raise ValueError("no such register")


NotAClass = 5
'''
GUEST: Final = """
import time
from partitions.custom.wire import CustomClosedError, CustomError


def main(partition):
    said = {}
    for name in ("memory", "fast", "later"):
        with partition.open_disk(name) as disk:
            with disk.open_queue(8, 4096) as queue:
                pass
            blocks = {n * 4096: bytes([n + 1]) * 4096 for n in range(8)}
            for offset, data in blocks.items():
                disk.write(offset, data)
            disk.flush()
            said[name] = all(disk.read(offset, 4096) == data for offset, data in blocks.items())
    with partition.open_custom("upper") as device:
        said["upper"] = device.exchange(b"hello").decode()
        said["large"] = device.exchange(b"x" * 100_000) == b"X" * 100_000
        said["batch"] = device.exchange_batch([b"%d" % n for n in range(100)]) == [b"%d" % n for n in range(100)]
        try:
            device.exchange(b"error")
        except CustomError as error:
            said["errno"] = error.errno
    with partition.open_custom("later-upper") as device:
        said["later-upper"] = [reply.decode() for reply in device.exchange_batch([b"a", b"b", b"c"])]
    with partition.open_echo("echo") as device:
        said["echo"] = device.exchange(bytes(64)) == bytes(64)
    partition.report("said", **said)
    time.sleep(partition.args.get("stay", 0))


def overwrite(disk, rounds, depth):
    # writes that overlap, each block again and again; what was acknowledged is read back
    with disk.allocate(depth * 4096) as buffer:
        for turn in range(rounds):
            for slot in range(depth):
                buffer.view[slot * 4096 : (slot + 1) * 4096] = bytes([turn + 1, slot] * 2048)
            disk.wait_all([disk.submit_write(slot * 4096, buffer, 4096, slot * 4096) for slot in range(depth)])
            for slot in range(depth):
                if disk.read(slot * 4096, 4096) != bytes([turn + 1, slot] * 2048):
                    return False
    return True


def dying(partition):
    with partition.open_disk("dying") as disk:
        partition.report("overwrote", well=overwrite(disk, 20, 8))
    with partition.open_custom("upper") as device:
        partition.report("count", count=int(device.exchange(b"count")), then=device.exchange(b"then").decode())
    with partition.open_custom("upper") as device:
        try:
            device.exchange(b"raise")
        except CustomClosedError:
            partition.report("closed")
    with partition.open_echo("echo") as device:
        partition.report("neighbour", well=device.exchange(bytes(64)) == bytes(64))


def knocking(partition):
    try:
        with partition.open_custom("upper") as device:
            device.exchange(b"anybody?")
    except Exception as error:
        partition.report("refused", error=type(error).__name__)
"""
ALL_WELL: Final = {
    "memory": True,
    "fast": True,
    "later": True,
    "upper": "HELLO",
    "large": True,
    "batch": True,
    "errno": 28,
    "later-upper": [">A", ">B", ">C"],
    "echo": True,
}
UPPER: Final = 'name = "upper"\nkind = "custom"\ndriver = "their_drivers:Upper"\nsize = "4KiB"\n'
DYING: Final = (
    'name = "dying"\nkind = "disk"\ndriver = "their_drivers:Dying"\npath = "dying.img"\nsize = "1MiB"\n'
)
ECHO: Final = 'name = "echo"\nkind = "echo"\n'
DEVICES: Final = (
    'name = "memory"\nkind = "disk"\ndriver = "their_drivers:Memory"\nsize = "1MiB"\n',
    'name = "fast"\nkind = "disk"\ndriver = "their_drivers:Fast"\npath = "fast.img"\nsize = "1MiB"\n',
    'name = "later"\nkind = "disk"\ndriver = "their_drivers:Later"\npath = "later.img"\nsize = "1MiB"\n',
    UPPER,
    'name = "later-upper"\nkind = "custom"\ndriver = "their_drivers:UpperLater"\nargs = { prefix = ">" }\n',
    ECHO,
)

BootWith = Callable[..., RunningMachine]


@pytest.fixture
def boot_with(tmp_path: Path, boot: Boot, monkeypatch: pytest.MonkeyPatch) -> BootWith:
    """boot_with(architecture, devices, program, args) -> a machine, its devices, one guest."""
    (tmp_path / "their_drivers.py").write_text(DRIVERS)
    (tmp_path / "their_guest.py").write_text(GUEST)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def begin(architecture: str, devices: tuple[str, ...], program: str, args: str = "{}") -> RunningMachine:
        names = [device.split('"')[1] for device in devices]
        guest = f'[[partition]]\nname = "guest"\nprogram = "their_guest:{program}"\nmemory = "48MiB"\nargs = {args}\n'
        guest += "".join(f'[[partition.device]]\nname = "{name}"\n' for name in names)
        tables = "".join(f"[[root.device]]\n{device}" for device in devices)
        return boot(machine_toml(guest, devices=tables, architecture=architecture))

    return begin


def fields_of(machine: RunningMachine, kind: str) -> dict[str, Any]:
    fields: dict[str, Any] = machine.wait_for(kind)["fields"]
    return fields


def holders(machine: RunningMachine, file: Path) -> set[str]:
    """From /proc: which processes of the machine have the file open."""
    names = {
        "root": machine.pid("root"),
        "hypervisor": machine.pid("hypervisor"),
        "platform": machine.pid("platform"),
    }
    for event in machine.events:
        if event["kind"] == "partition.started" and event["fields"]["pid"] not in names.values():
            names[event["partition"]] = event["fields"]["pid"]
    found = set()
    for name, pid in names.items():
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                if entry.readlink() == file.resolve():
                    found.add(name)
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_driver_of_each_class_serves_and_its_process_alone_has_its_file(
    architecture: str, boot_with: BootWith, tmp_path: Path
) -> None:
    machine = boot_with(architecture, DEVICES, "main", "{ stay = 60 }")
    assert fields_of(machine, "guest.said") == ALL_WELL
    for name in ("fast", "later"):
        assert holders(machine, tmp_path / f"{name}.img") == {HAS_THE_FILE.get(architecture, name)}
        assert (tmp_path / f"{name}.img").read_bytes()[:4097] == b"\1" * 4096 + b"\2"


@pytest.mark.parametrize(
    "architecture",
    ["disaggregated", *(pytest.param(name, marks=pytest.mark.soak) for name in ("hosted", "microkernel"))],
)
def test_what_had_no_reply_is_served_again_after_a_death_and_a_driver_that_raises_costs_its_channel(
    architecture: str, boot_with: BootWith
) -> None:
    """A disk's server dies twice among overlapping writes. `count` kills its server the first time: what the driver
    keeps in its memory has seen that request twice, the guest has one reply. `raise` never gets better."""
    machine = boot_with(architecture, (DYING, UPPER, ECHO), "dying")
    assert fields_of(machine, "guest.overwrote") == {"well": True}
    assert fields_of(machine, "guest.count") == {"count": 2, "then": "THEN"}
    machine.wait_for("guest.closed")
    assert fields_of(machine, "guest.neighbour") == {"well": True}
    assert machine.wait() == 0
    exits = [event["fields"]["device"] for event in machine.events if event["kind"] == "driver.exited"]
    assert exits == ["dying", "dying", "upper"]


@pytest.mark.parametrize(
    ("driver", "said"),
    [
        ("their_drivers:Broken", "no such register: mend that, or its args"),
        pytest.param(
            "their_drivers:NotAClass", "derive it from partitions.sdk.CustomDriver", marks=pytest.mark.soak
        ),
    ],
)
@pytest.mark.parametrize(
    "architecture", ["microkernelized", "disaggregated", pytest.param("monolithic", marks=pytest.mark.soak)]
)
def test_a_driver_that_cannot_be_loaded_is_one_line_and_one_attempt(
    architecture: str, driver: str, said: str, boot_with: BootWith
) -> None:
    device = UPPER.replace("their_drivers:Upper", driver)
    machine = boot_with(architecture, (device, ECHO), "knocking")
    code = machine.wait()
    if architecture == "microkernelized":
        assert code == 1
        assert said in machine.errors
        assert machine.errors.count("\n") == 1
        return
    (event,) = [event for event in machine.events if event["kind"] == "guest.driver_not_loaded"]
    assert said in event["fields"]["error"]
    assert event["partition"] == "upper"
    (ended,) = [
        one for one in machine.events if one["kind"] == "partition.exited" and one["partition"] == "upper"
    ]
    assert ended["fields"]["code"] == 78
    assert fields_of(machine, "driver.failed")["device"] == "upper"
    assert fields_of(machine, "guest.refused")["error"]
    exits = [event["fields"] for event in machine.events if event["kind"] == "driver.exited"]
    assert [each for each in exits if each["device"] == "upper"] == []  # which would have been tried again


def test_what_can_be_checked_without_loading_is_refused_before_anything_starts(
    boot_with: BootWith,
) -> None:
    machine = boot_with("microkernelized", (UPPER.replace("Upper", "Lower"),), "knocking")
    assert machine.wait() == 2
    assert "no such class" in machine.errors
    assert "Upper" in machine.errors
