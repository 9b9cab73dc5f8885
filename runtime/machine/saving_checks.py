"""Whether a partition can be saved, and whether a saved one fits the config in which it is to go on."""

import os
from collections.abc import Callable
from pathlib import Path

from runtime.abi import PAGE_BYTES
from runtime.config.devices import BackendKind, DeviceKind
from runtime.config.model import MachineConfig, PartitionConfig
from runtime.machine import saved_file
from runtime.machine.questions import RequestRefused
from runtime.machine.saved_partition import Description, SavedPartitionError
from runtime.reserved_names import ROOT


def saveable(config: MachineConfig, name: str) -> PartitionConfig:
    """RequestRefused: it can't be saved, and why."""
    found = [one for one in config.partitions if one.name == name and one.parent == ROOT]
    if not found:
        raise RequestRefused(f"no partition {name[:80]!r} of the root's own is configured")
    (partition,) = found
    if not partition.integration:
        raise RequestRefused(f"{name} can't be asked to come to rest: give it integration = true")
    if any(one.parent == name for one in config.partitions):
        raise RequestRefused(f"{name} has partitions of its own: save those, and end them first")
    for device in disks_of(config, partition):
        if config.device(device).backend is not BackendKind.FILE:
            raise RequestRefused(f"{name} has the disk {device}, whose blocks go with the machine")
    return partition


def disks_of(config: MachineConfig, partition: PartitionConfig) -> list[str]:
    """Offered to it, or emulated for it, each once."""
    names = [one.name for one in partition.devices]
    names += [one.device for one in partition.emulated if one.device is not None]
    return [name for name in dict.fromkeys(names) if config.device(name).kind is DeviceKind.DISK]


def image_for(
    config: MachineConfig,
    partition: PartitionConfig,
    path: Path,
    look: Callable[[], None] = lambda: None,
) -> int:
    """A descriptor of what this partition can go on from, checked: the caller's to close.

    SavedPartitionError: the file is none, is another partition's, or its disks have changed since. And what `look`
    raises, which is called for each chunk.
    """
    said, descriptor = saved_file.image(path, look)
    try:
        _check(config, partition, path, said)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check(config: MachineConfig, partition: PartitionConfig, path: Path, said: Description) -> None:
    if (said.partition, said.program) != (partition.name, partition.program):
        raise SavedPartitionError(
            f"{path}: of {said.partition}, which runs {said.program}; {partition.name} runs {partition.program}"
        )
    if set(disks_of(config, partition)) != {disk.device for disk in said.disks}:
        raise SavedPartitionError(f"{path}: its disks are {', '.join(sorted(d.device for d in said.disks))}")
    if [one.kind for one in partition.emulated] != [one.kind for one in said.devices]:
        had = ", ".join(one.kind for one in said.devices) or "none"
        raise SavedPartitionError(f"{path}: its emulated devices are {had}")
    if partition.vps != len(said.hypervisor.processors):
        raise SavedPartitionError(
            f"{path}: of {len(said.hypervisor.processors)} processors, not {partition.vps}"
        )
    if partition.memory // PAGE_BYTES < said.hypervisor.used_pages:
        need = said.hypervisor.used_pages * PAGE_BYTES >> 10
        raise SavedPartitionError(f"{path}: of {need} KiB of memory in use; memory = says less")
    if changed := saved_file.changed_disks(said.disks):
        raise SavedPartitionError(f"{path}: {', '.join(changed)} has changed since it was saved")
