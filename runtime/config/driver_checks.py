"""Checks of a config whose devices are in driver partitions."""

from collections.abc import Mapping
from typing import Any, Final

from runtime.config import program_checks
from runtime.config.architecture import DRIVEN, Architecture
from runtime.config.devices import DeviceKind
from runtime.config.problem import Problem, spell
from runtime.config.toml_lines import Steps

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
        device["name"] for _, device in devices if "name" in device and device.get("kind") in (None, *DRIVEN)
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


def backend_or_driver(path: Steps, device: Table) -> list[Problem]:
    """What its kind wants, and a driver that can be found. Whether it loads shows at boot, where it runs."""
    kind, backend, driver = device.get("kind"), device.get("backend"), device.get("driver")
    problems = []
    if kind is DeviceKind.DISK and "backend" in device and "driver" in device:
        if backend is None and driver is None:
            wanted = '"file", "memory" or "overlay", as kind = "disk" needs one; or a driver'
            problems.append(Problem((*path, "backend"), "nothing", wanted))
        elif backend is not None and driver is not None:
            problems.append(Problem((*path, "backend"), spell(backend), "no backend with a driver"))
    if kind is DeviceKind.CUSTOM:
        if "driver" in device and driver is None:
            wanted = 'a class as "package.module:Class", as kind = "custom" needs one'
            problems.append(Problem((*path, "driver"), "nothing", wanted))
        if backend is not None:
            problems.append(Problem((*path, "backend"), spell(backend), 'none with kind = "custom"'))
    if driver is None:
        if device.get("args"):
            problems.append(Problem((*path, "args"), spell(device["args"]), "none without a driver"))
        return problems
    instead = "hand over a path instead"
    problems += program_checks.check_driver(path, device)
    return problems + program_checks.check_args(path, device, program_checks.DRIVER_ARGS_BYTES_MAX, instead)
