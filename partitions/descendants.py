"""What is told to a parent about the partitions below it: their tables and their files, all with its birth.

Only the partition that creates another one needs to know what that is to be, so each level takes out what it creates
itself and hands on the rest. The tables go as a descriptor of sealed memory, because a tree of them is larger than a
program's arguments may be; behind it come the files of each table, in the tables' order.
"""

import fcntl
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]

_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@dataclass(frozen=True, slots=True)
class Described:
    """A [[partition]] table, the machine's defaults beside it, and the open descriptors of its files."""

    table: Mapping[str, Any]
    files: tuple[int, ...]

    @property
    def name(self) -> str:
        return str(self.table["name"])

    @property
    def parent(self) -> str:
        return str(self.table["parent"])


def children_of(name: str, described: Sequence[Described]) -> list[Described]:
    return [one for one in described if one.parent == name]


def below(name: str, described: Sequence[Described]) -> list[Described]:
    """Every partition of the tree under `name`, in the order of the file."""
    names = {name}
    while found := {one.name for one in described if one.parent in names} - names:
        names |= found
    return [one for one in described if one.name in names and one.name != name]


def pack(machine: Mapping[str, Any], described: Sequence[Described]) -> list[int]:
    """The descriptors that say it all; the first is new, and the caller's to close, as are the files behind it."""
    value = {"machine": dict(machine), "partitions": [one.table for one in described]}
    tables = os.memfd_create("descendants", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(tables, "wb", closefd=False) as file:
            file.write(msgpack.packb(value, use_bin_type=True))
        fcntl.fcntl(tables, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(tables)
        raise
    return [tables, *(fd for one in described for fd in one.files)]


def unpack(descriptors: Sequence[int]) -> tuple[Mapping[str, Any], list[Described]]:
    """The [machine] table and the partitions, from what `pack` made. Closes the first descriptor."""
    tables, *files = descriptors
    with open(tables, "rb") as file:
        file.seek(0)  # shared with whoever wrote it
        value = msgpack.unpackb(file.read(), raw=False)
    described, place = [], 0
    for table in value["partitions"]:
        count = len(table.get("file", ()))
        described.append(Described(table, tuple(files[place : place + count])))
        place += count
    return value["machine"], described
