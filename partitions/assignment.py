"""Devices that are one partition's own: it drives the backend itself, and this process has no descriptor of it.

The root opens what is behind the device, as it would for a driver partition, and hands it over with the birth of the
partition whose it is. Its server runs in there, in a thread: partitions.own_device. When that partition has ended, the
device is the root's.
"""

import errno
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from partitions.descendants import Described
from partitions.drivers.device_classes import class_of
from partitions.machine_plan import DevicePlan
from partitions.placement import DeviceError
from partitions.storage.backends import BackendError

FILE_PREFIX: Final = "device:"  # no configured file's name has a colon
_Tables = Iterable[Mapping[str, Any]]  # [[root.device]]


def kept_of(tables: _Tables) -> list[Mapping[str, Any]]:
    """Those that the root, or a driver partition of its own, has."""
    return [table for table in tables if table.get("assigned_to") is None]


def hand_over(child: Described, tables: _Tables, log: Callable[..., None]) -> Described:
    """The partition with the descriptors of the devices that are its own. DeviceError: one can't be had."""
    own = [table for table in tables if table.get("assigned_to") == child.name]
    if not own:
        return child
    opened: list[int] = []
    try:
        for table in own:
            descriptor = class_of(table["kind"]).open_backing(DevicePlan.from_table(table), log)
            if descriptor is None:
                raise BackendError(errno.ENODEV, "there is nothing behind it to be handed over")
            opened.append(descriptor)
    except BackendError as error:
        for descriptor in opened:
            os.close(descriptor)
        raise DeviceError(f"device {table['name']}: {error}") from error
    for table in own:
        if table.get("backend") == "tap":
            from partitions.net.tap import let_go

            let_go(table["name"])
    names = [{"name": FILE_PREFIX + table["name"]} for table in own]
    changed = {
        **child.table,
        "file": [*child.table.get("file", ()), *names],
        "assigned": {table["name"]: dict(table) for table in own},
    }
    return Described(changed, (*child.files, *opened))
