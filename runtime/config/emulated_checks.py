"""Checks of a config's emulated devices: what each kind takes, and that no two are in one place."""

from collections.abc import Mapping
from typing import Any, Final

from runtime.config.emulated import EmulatedKind
from runtime.config.problem import Problem, quoted, spell
from runtime.config.sizes import PAGE_BYTES
from runtime.config.toml_lines import Steps
from runtime.reserved_names import ROOT

SECTOR_BYTES: Final = 512  # of an IDE disk, whatever its backing device has
# By kind: ports from the first one on, and further ones at these distances; the first one on a PC.
_PORTS: Final[Mapping[EmulatedKind, tuple[int, tuple[int, ...]]]] = {
    EmulatedKind.UART: (0x3F8, tuple(range(8))),
    EmulatedKind.KEYBOARD: (0x60, (0, 4)),
    EmulatedKind.RTC: (0x70, (0, 1)),
    EmulatedKind.IDE: (0x1F0, (*range(8), 0x206)),
}
_ONLY_OF: Final = {"device": EmulatedKind.IDE, "mmio": EmulatedKind.UART, "input": EmulatedKind.UART}

Table = Mapping[str, Any]


def check_one(
    path: Steps, partition: Table, tables: list[tuple[Steps, Table]], devices: list[Table], all_known: bool
) -> list[Problem]:
    """`tables`: the partition's [[partition.emulated]]; `devices`: the root's, all of them if `all_known`."""
    problems: list[Problem] = []
    parent = partition.get("parent")
    if tables and parent is not None and parent != ROOT:
        allowed = f"none below a child of {spell(ROOT)}: the root's own children alone have emulated devices"
        problems.append(Problem((*path, "emulated"), f"{len(tables)} with parent {spell(parent)}", allowed))
    taken: set[int] = set()
    pages: set[int] = set()
    for table_path, table in tables:
        kind = table.get("kind")
        if kind is None:
            continue
        problems += _of_its_kind(table_path, table, kind)
        problems += _disk(table_path, table, kind, devices, all_known)
        if "port" in table:
            problems += _ports(table_path, table, kind, taken)
        if (mmio := table.get("mmio")) is not None:
            problems += _page(table_path, mmio, pages)
    return problems


def _of_its_kind(path: Steps, table: Table, kind: EmulatedKind) -> list[Problem]:
    return [
        Problem((*path, key), spell(table[key]), f"nothing with kind = {spell(kind.value)}")
        for key, only in _ONLY_OF.items()
        if table.get(key) is not None and kind is not only
    ]


def _disk(
    path: Steps, table: Table, kind: EmulatedKind, devices: list[Table], all_known: bool
) -> list[Problem]:
    name = table.get("device")
    if kind is not EmulatedKind.IDE or "device" not in table:
        return []
    path = (*path, "device")
    names = [device["name"] for device in devices if "name" in device]
    if name is None or (name not in names and all_known):
        return [
            Problem(path, "nothing" if name is None else spell(name), f"a [[root.device]]: {quoted(names)}")
        ]
    for device in devices:
        if device.get("name") == name and device.get("block_bytes", SECTOR_BYTES) != SECTOR_BYTES:
            return [
                Problem(
                    path,
                    f"{spell(name)}, of {device['block_bytes']}-byte blocks",
                    f"a disk of {SECTOR_BYTES}",
                )
            ]
    return []


def _ports(path: Steps, table: Table, kind: EmulatedKind, taken: set[int]) -> list[Problem]:
    first, offsets = _PORTS[kind]
    first = first if table["port"] is None else table["port"]
    ports = {first + offset for offset in offsets}
    both, before = ports & taken, set(taken)
    taken |= ports
    if both and before:
        found = f"{first:#x}, where another device has port {min(both):#x}"
        return [Problem((*path, "port"), found, "ports that no other emulated device of the partition has")]
    return []


def _page(path: Steps, mmio: int, pages: set[int]) -> list[Problem]:
    if mmio % PAGE_BYTES or mmio in pages:
        return [Problem((*path, "mmio"), spell(mmio), f"a multiple of {PAGE_BYTES} of its own")]
    pages.add(mmio)
    return []
