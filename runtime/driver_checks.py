"""Checks of a config whose devices are in driver partitions."""

from collections.abc import Mapping
from typing import Any, Final

from runtime.architecture import Architecture
from runtime.config import DeviceKind
from runtime.toml_lines import Steps
from runtime.validate import Problem, spell

Table = Mapping[str, Any]


_WITH_DRIVERS: Final = frozenset(Architecture) - {Architecture.MICROKERNELIZED}


def has_drivers(config: Table) -> bool:
    machine = config.get("machine")
    return isinstance(machine, Mapping) and machine.get("architecture") in _WITH_DRIVERS


def memory_of_drivers(config: Table, devices: int, attached: int) -> int:
    """Deposited for all of them, beside the pages of memory disks. `attached`: the root's children with devices."""
    machine = config.get("machine")
    if not has_drivers(config) or not isinstance(machine, Mapping):
        return 0
    monitors = attached if machine["architecture"] is Architecture.HOSTED else 0
    return (devices + monitors) * int(machine.get("driver_memory", 0))


def check(
    config: Table, devices: list[tuple[Steps, Table]], partitions: list[tuple[Steps, Table]]
) -> list[Problem]:
    """A driver partition is named as its device and stands beside the root's children; an emulator cannot reach it."""
    if not has_drivers(config):
        return []
    problems = []
    architecture = config["machine"]["architecture"]
    names = {
        device["name"]
        for _, device in devices
        if "name" in device and device.get("kind") in (None, DeviceKind.DISK)
    }
    for path, partition in partitions:
        name = partition.get("name")
        if name in names:
            allowed = "any other name; this one is a driver partition's"
            problems.append(Problem((*path, "name"), spell(name), allowed))
        emulated = partition.get("emulated")
        for index, table in enumerate(emulated if isinstance(emulated, list) else ()):
            if isinstance(table, Mapping) and table.get("device") is not None:
                found = f"{spell(table['device'])}, which is in a driver partition"
                allowed = f'no emulated disk with architecture = "{architecture}": the root emulates it'
                problems.append(Problem((*path, "emulated", index, "device"), found, allowed))
    return problems
