"""What keyboards, mice and screens need of a config: one partition each, and viewers of this host alone."""

from collections.abc import Mapping
from typing import Any, Final

from runtime.config.devices import DeviceKind
from runtime.config.problem import Problem, quoted, spell
from runtime.config.screen_address import ScreenAddress
from runtime.config.toml_lines import Steps
from runtime.reserved_names import ROOT

Table = Mapping[str, Any]
Rows = list[tuple[Steps, Table]]

_KINDS: Final = (DeviceKind.KEYBOARD, DeviceKind.MOUSE, DeviceKind.VIDEO)
_OF_VIDEO: Final = ("width", "height", "vnc")


def check(devices: Rows, partitions: Rows) -> list[Problem]:
    problems: list[Problem] = []
    kinds = {device.get("name"): device.get("kind") for _, device in devices}
    for path, device in devices:
        kind = device.get("kind")
        if isinstance(kind, DeviceKind) and kind is not DeviceKind.VIDEO:
            problems += [
                Problem((*path, key), spell(device[key]), 'none but with kind = "video"')
                for key in _OF_VIDEO
                if device.get(key) is not None
            ]
        elif (address := device.get("vnc")) is not None:
            try:
                ScreenAddress.parse(address)
            except ValueError as error:
                problems.append(Problem((*path, "vnc"), spell(address), str(error)))
        if kind in _KINDS:
            problems += _one_partition(path, device, partitions)
    for path, partition in partitions:
        problems += _one_of_each(path, partition, kinds)
    return problems


def _one_partition(path: Steps, device: Table, partitions: Rows) -> list[Problem]:
    """Whoever looks at a screen types into that partition, and no other."""
    name = device.get("name")
    having = [
        partition
        for _, partition in partitions
        if partition.get("parent") == ROOT and name in [one.get("name") for one in _tables(partition)]
    ]
    if name is None or len(having) <= 1:
        return []
    names = quoted([partition["name"] for partition in having if "name" in partition])
    allowed = f"a {device['kind']} in one partition alone"
    return [Problem((*path, "name"), f"{spell(name)} in {names}", allowed)]


def _one_of_each(path: Steps, partition: Table, kinds: Mapping[Any, Any]) -> list[Problem]:
    """A partition has one screen, and one keyboard and mouse with it."""
    problems, seen = [], set()
    for index, one in enumerate(_tables(partition)):
        kind = kinds.get(one.get("name"))
        if kind in _KINDS and kind in seen:
            found = f"{spell(one['name'])}, a second {kind}"
            problems.append(Problem((*path, "device", index, "name"), found, f"one {kind} in a partition"))
        seen.add(kind)
    return problems


def _tables(partition: Table) -> list[Table]:
    items = partition.get("device")
    return [item for item in items if isinstance(item, Mapping)] if isinstance(items, list | tuple) else []
