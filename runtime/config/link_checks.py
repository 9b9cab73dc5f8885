"""What links, switches and echoes need of a config: they have no backend, and join two partitions."""

from collections.abc import Mapping
from typing import Any, Final

from runtime.config.devices import DeviceKind
from runtime.config.problem import Problem, quoted, spell
from runtime.config.toml_lines import Steps
from runtime.reserved_names import ROOT

WITHOUT_BACKEND: Final = (
    DeviceKind.ECHO,
    DeviceKind.LINK,
    DeviceKind.SWITCH,
    DeviceKind.KEYBOARD,
    DeviceKind.MOUSE,
    DeviceKind.VIDEO,
)
_JOIN: Final = (DeviceKind.LINK, DeviceKind.SWITCH)
ENDS: Final = 2

Table = Mapping[str, Any]
Rows = list[tuple[Steps, Table]]


def not_passed_on(own_devices: Rows, devices: Rows) -> list[Problem]:
    """A parent passes on its disks, and nothing else. `own_devices`: of a partition below another."""
    kinds = {device.get("name"): device.get("kind") for _, device in devices}
    return [
        Problem(
            (*path, "name"), spell(device["name"]), f"a disk: the root alone offers one of kind {kinds[name]}"
        )
        for path, device in own_devices
        if (name := device.get("name")) is not None and kinds.get(name) not in (None, DeviceKind.DISK)
    ]


def check(devices: Rows, partitions: Rows) -> list[Problem]:
    """Each link and switch has two ends; those of a link agree about its rings."""
    problems: list[Problem] = []
    for path, device in devices:
        name, kind = device.get("name"), device.get("kind")
        if name is None or kind not in _JOIN:
            continue
        ends = [
            ((*where, "device", index), one, partition)
            for where, partition in partitions
            for index, one in enumerate(_tables(partition))
            if one.get("name") == name and partition.get("parent") == ROOT
        ]
        if len(ends) != ENDS:
            names = [partition["name"] for _, _, partition in ends if "name" in partition]
            found = f"{spell(name)} in {quoted(names) if names else 'no partition'}"
            problems.append(
                Problem((*path, "name"), found, "a [[partition.device]] of that name in two partitions")
            )
            continue
        first, second = ends[0][1].get("ring_bytes"), ends[1][1].get("ring_bytes")
        if kind is DeviceKind.LINK and first is not None and second is not None and first != second:
            allowed = f"{first}, as at the other end: both use the same rings"
            problems.append(Problem((*ends[1][0], "ring_bytes"), spell(int(second)), allowed))
    return problems


def _tables(partition: Table) -> list[Table]:
    items = partition.get("device")
    return [item for item in items if isinstance(item, Mapping)] if isinstance(items, list | tuple) else []
