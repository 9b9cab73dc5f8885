"""What `assigned_to` needs of a config: the one partition that has the device, and a descriptor to be handed over."""

from collections.abc import Mapping
from typing import Any, Final

from runtime.config.architecture import Architecture
from runtime.config.devices import BackendKind, DeviceKind
from runtime.config.problem import Problem, spell
from runtime.config.toml_lines import Steps
from runtime.reserved_names import ROOT

Table = Mapping[str, Any]
Rows = list[tuple[Steps, Table]]
_WITH_A_DESCRIPTOR: Final = ((DeviceKind.DISK, BackendKind.FILE), (DeviceKind.NET, BackendKind.TAP))
ASSIGNABLE: Final = (Architecture.MICROKERNELIZED, Architecture.DISAGGREGATED)


def check(config: Table, devices: Rows, partitions: Rows) -> list[Problem]:
    machine = config.get("machine")
    architecture = machine.get("architecture") if isinstance(machine, Mapping) else None
    problems: list[Problem] = []
    for path, device in devices:
        if (owner := device.get("assigned_to")) is None or "name" not in device:
            continue
        at, found = (*path, "assigned_to"), spell(owner)
        having = [one for _, one in partitions if _has(one, device["name"])]
        if [one.get("name") for one in having] != [owner] or having[0].get("parent") != ROOT:
            words = f'the one partition of the root that has a [[partition.device]] named "{device["name"]}"'
            problems.append(Problem(at, found, words))
        if (device.get("kind"), device.get("backend")) not in _WITH_A_DESCRIPTOR:
            words = 'none but with kind = "disk" and backend = "file", or kind = "net" and backend = "tap"'
            problems.append(Problem(at, found, words))
        if isinstance(architecture, Architecture) and architecture not in ASSIGNABLE:
            words = (
                f"none, with architecture = {spell(architecture)}: there the root has no device to give away"
            )
            problems.append(Problem(at, found, words))
    return problems


def _has(partition: Table, device: str) -> bool:
    attached = [
        *(one.get("name") for one in partition.get("devices", partition.get("device", ())) or ()),
        *(one.get("device") for one in partition.get("emulated", ()) or ()),
    ]
    return device in attached
