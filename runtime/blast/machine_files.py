"""A config as one trial boots it: disks and histories of its own, and a driver that will misbehave around the target's.

What the config has to bring along: two disks, and guests that verify (partitions.guests.verified), at least one on the
target and one, the bystander, on another disk and not on the target.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from runtime.blast.faults import Fault
from runtime.chaos.experiment.machine_files import VERIFYING, to_toml
from runtime.config.architecture import Architecture
from runtime.config.document import read
from runtime.config.loading import load
from runtime.config.model import MachineConfig
from runtime.config.own_files import give_own_files
from runtime.exits import CommandError

FAULTY: Final = "partitions.faults.faulty_driver:FaultyDriver"
RECORD_BYTES: Final = (
    4096  # behind the target's end, where the driver notes what it did; behind that it is told to
)
LOAD_SECONDS: Final = 60  # more than any trial takes: the trial ends the load
LOAD_OPERATIONS: Final = 300_000  # of each guest: what its history has room for
GUEST_PATIENCE_S: Final = 3.0  # for an answer, before it gives up

Tables = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Guest:
    """One whose history is judged."""

    name: str
    device: str
    blocks: range  # of 4 KiB
    history: Path


@dataclass(frozen=True, slots=True)
class BlastMachine:
    """What is booted, and where to find what it leaves."""

    config: Path
    target: str
    guests: tuple[Guest, ...]
    images: Mapping[str, Path]  # by device
    record_at: int  # in the target's image
    drivers: tuple[str, ...]  # names of driver partitions and monitors

    def let_strike(self) -> None:
        """From now on the driver counts requests."""
        with self.images[self.target].open("r+b") as image:
            os.pwrite(image.fileno(), b"\1", self.record_at + RECORD_BYTES)

    def on(self, target: bool) -> tuple[Guest, ...]:
        """The guests on the target, or those that are not."""
        return tuple(guest for guest in self.guests if (guest.device == self.target) == target)


def choose_target(config: MachineConfig, source: str, wanted: str | None) -> str:
    """The device whose driver misbehaves. CommandError: this config has none, or no bystander."""
    verifying = [partition for partition in config.partitions if partition.program == VERIFYING]
    devices = [str(partition.args.get("device")) for partition in verifying]
    if not devices:
        remedy = f'add partitions with program = "{VERIFYING}", as configs/blast.toml has them'
        raise CommandError(f"{source}: no guest verifies what it reads; {remedy}")
    target = wanted or devices[0]
    if target not in devices:
        raise CommandError(f"{source}: no verifying guest is on {target}; --target {devices[0]}")
    if all(device == target for device in devices):
        raise CommandError(f"{source}: every verifying guest is on {target}; add one on another disk")
    device = next(each for each in config.root.devices if each.name == target)
    if device.read_only or device.size is None:
        raise CommandError(
            f"{source}: {target} is read-only or has no size; give it a size, without read_only"
        )
    return target


def prepare(
    source: str,
    overrides: Sequence[str],
    architecture: Architecture,
    target: str,
    fault: Fault,
    seed: int,
    after: int,
    folder: Path,
) -> BlastMachine:
    """Write it into `folder`, which is there and empty. ConfigError, OSError."""
    document = read(source, [*overrides, f"machine.architecture={architecture}"])
    tables, started_from = document.tables, document.folder
    size_bytes = _size_of(load(source, overrides), target)
    images = {
        device["name"]: folder / f"{device['name']}.img"
        for device in tables["root"]["device"]
        if device.get("kind") == "disk"
    }
    for device in tables["root"]["device"]:
        if device.get("path") is not None and device["name"] in images:
            device["path"] = str(images[device["name"]])
        if device["name"] == target:
            _misbehave(device, images[target], fault, seed, after, size_bytes)
    with images[target].open("wb") as image:
        image.truncate(size_bytes + 2 * RECORD_BYTES)
    guests = _own_files(tables, started_from, folder, seed)
    path = folder / "machine.toml"
    path.write_text(to_toml(tables))
    return BlastMachine(path, target, tuple(guests), images, size_bytes, load(path).drivers)


def _size_of(config: MachineConfig, target: str) -> int:
    size = next(device.size for device in config.root.devices if device.name == target)
    assert size is not None  # `choose_target` has seen to it
    return int(size)


def _misbehave(device: Tables, image: Path, fault: Fault, seed: int, after: int, size_bytes: int) -> None:
    """Put the driver that misbehaves around whatever the device has."""
    device.pop("backend", None)
    args = {"fault": fault.value, "after": after, "seed": seed, "record_at": size_bytes, "waits": True}
    if "driver" in device:
        args |= {"driver": device["driver"], "args": device.get("args", {})}
    device |= {"driver": FAULTY, "path": str(image), "args": args}


def _own_files(tables: Tables, started_from: Path, folder: Path, seed: int) -> list[Guest]:
    guests: list[Guest] = []
    for partition in tables.get("partition", []):
        verifies = partition["program"] == VERIFYING
        if verifies and not partition.get("file"):
            partition["file"] = [{"name": "history", "path": "history", "mode": "read-write"}]
        give_own_files(partition, started_from, folder)
        if not verifies:
            continue
        args = partition["args"]
        args |= {
            "seed": seed * 16 + len(guests) + 1,
            "seconds": LOAD_SECONDS,
            "operations": LOAD_OPERATIONS,
            "patience_s": GUEST_PATIENCE_S,
        }
        first = int(args.get("first_block", 0))
        blocks = range(first, first + int(args.get("blocks", 1024)))
        history = folder / f"{partition['name']}.{args.get('history', 'history')}"
        guests.append(Guest(partition["name"], args["device"], blocks, history))
    return guests
