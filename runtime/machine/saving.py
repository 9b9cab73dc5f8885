"""`partvisor save`: a partition comes to rest, what it is to know goes into a file, and it ends, or goes on.

What the machine has of a partition is made anew from the config when it is restored: its ports, channels, pages. What
its program knows, it says itself (`partition.on_save`), between two writes. Its disks are named, not copied.
"""

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from runtime.abi import RESTORED_FILE
from runtime.config.devices import BackendKind, DeviceKind
from runtime.config.model import MachineConfig, PartitionConfig, to_tables
from runtime.machine import saved_partition
from runtime.machine.questions import RequestRefused
from runtime.machine.saved_partition import DiskIdentity, SavedPartition, SavedPartitionError
from runtime.reserved_names import ROOT

if TYPE_CHECKING:
    from runtime.machine.platform import Platform


async def save(platform: "Platform", name: str, order: Mapping[str, Any]) -> Mapping[str, Any]:
    """`order`: {path, go_on}. RequestRefused: there is no file, and the partition runs as before."""
    path, go_on = Path(str(order["path"])), bool(order["go_on"])
    config = platform.config
    partition = saveable(config, name)
    state = os.memfd_create("state", os.MFD_CLOEXEC)
    freeze: dict[str, object] = {"name": name, "service": "vss"}
    try:
        await platform.ask_root("integration", **freeze, order={"operation": "freeze"})
        try:
            await platform.ask_hypervisor("pause", name=name)
            answer = await platform.ask_root(
                "device", [state], operation="state", name=name, device="", again=False
            )
            data = os.pread(state, int(answer["state_bytes"]), 0)
            size = await trio.to_thread.run_sync(_write, path, config, partition, data)
        except BaseException:
            with trio.CancelScope(shield=True), contextlib.suppress(RequestRefused, OSError):
                await _go_on(platform, freeze)
            raise
    except OSError as error:
        raise RequestRefused(f"{path}: {error.strerror or error}") from error
    finally:
        os.close(state)
    if go_on:
        await _go_on(platform, freeze)
    else:
        platform._roster.saved(name)
        await platform.ask_hypervisor("kill", name=name)
    platform.log.append("partition.saved", name, path=str(path), bytes=size, goes_on=go_on)
    return {"path": str(path), "bytes": size, "state_bytes": len(data), "goes_on": go_on}


async def _go_on(platform: "Platform", freeze: Mapping[str, object]) -> None:
    await platform.ask_hypervisor("resume", name=freeze["name"])
    with contextlib.suppress(RequestRefused):  # it was at rest for so long that it has gone on by itself
        await platform.ask_root("integration", **freeze, order={"operation": "thaw"})


def saveable(config: MachineConfig, name: str) -> PartitionConfig:
    """RequestRefused: it can't be saved, and why."""
    found = [one for one in config.partitions if one.name == name and one.parent == ROOT]
    if not found:
        raise RequestRefused(f"no partition {name[:80]!r} of the root's own is configured")
    (partition,) = found
    if partition.emulated:  # said first: no integration = true would help
        raise RequestRefused(
            f"{name} has emulated devices: neither they nor the processor that they interrupt can be saved"
        )
    if not partition.integration:
        raise RequestRefused(f"{name} can't be asked to come to rest: give it integration = true")
    if any(one.parent == name for one in config.partitions):
        raise RequestRefused(f"{name} has partitions of its own: save those, and end them first")
    for device in (config.device(one.name) for one in partition.devices):
        if device.kind is DeviceKind.DISK and device.backend is not BackendKind.FILE:
            raise RequestRefused(f"{name} has the disk {device.name}, whose blocks go with the machine")
    return partition


def _write(path: Path, config: MachineConfig, partition: PartitionConfig, state: bytes) -> int:
    disks = [
        DiskIdentity.of(device.name, str(device.path))
        for device in (config.device(one.name) for one in partition.devices)
        if device.kind is DeviceKind.DISK
    ]
    name, program = partition.name, partition.program
    return saved_partition.write(path, config.machine.name, name, program, time.time_ns(), disks, state)


def load_for(config: MachineConfig, partition: PartitionConfig, path: Path) -> SavedPartition:
    """A file that this partition can go on from. SavedPartitionError: it is none, or its disks have changed since."""
    saved = saved_partition.load(path)
    said = saved.description
    if (said.partition, said.program) != (partition.name, partition.program):
        raise SavedPartitionError(
            f"{path}: of {said.partition}, which runs {said.program}; {partition.name} runs {partition.program}"
        )
    attached = {one.name for one in partition.devices if config.device(one.name).kind is DeviceKind.DISK}
    if attached != {disk.device for disk in said.disks}:
        raise SavedPartitionError(f"{path}: its disks are {', '.join(sorted(d.device for d in said.disks))}")
    if changed := saved_partition.changed_disks(said.disks):
        raise SavedPartitionError(f"{path}: {', '.join(changed)} has changed since it was saved")
    return saved


def as_descriptor(saved: SavedPartition) -> int:
    """The state, as its program gets it: the caller's to close."""
    descriptor = os.memfd_create("saved", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.pwrite(descriptor, saved.state, 0)
    return descriptor


async def restore(platform: "Platform", name: str, order: Mapping[str, Any]) -> Mapping[str, Any]:
    """A partition that has ended goes on from the file {path}. RequestRefused: nothing has changed."""
    config, path = platform.config, Path(str(order["path"]))
    partition = saveable(config, name)
    exits = platform._roster.exits
    if name not in exits:
        raise RequestRefused(f"{name} runs: end it first, by partvisor kill {name}, or save it")
    if partition.files:
        raise RequestRefused(f"{name} has files: start a machine with partition.{name}.restore set instead")
    try:
        saved = await trio.to_thread.run_sync(load_for, config, partition, path)
    except SavedPartitionError as error:
        raise RequestRefused(f"{name} cannot go on from {error}") from error
    table = next(one for one in to_tables(config)["partition"] if one["name"] == name)
    table["file"] = [{"name": RESTORED_FILE}]
    state = as_descriptor(saved)
    try:
        await platform.ask_root(
            "device", [state], operation="create", name=name, table=table, device="", again=False
        )
    finally:
        os.close(state)
    platform.log.append("partition.restored", name, path=str(path))
    return {"path": str(path), "state_bytes": len(saved.state)}
