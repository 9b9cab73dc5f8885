"""Where a machine's devices live: the word of the config, and which driver partitions follow from it."""

import enum
from collections.abc import Iterable, Mapping
from typing import Final

from runtime.config.devices import DeviceConfig

MONITOR_SUFFIX: Final = ".vmm"  # behind a guest's name; no configured name has a dot
DRIVEN: Final = frozenset({"disk", "custom", "echo", "net", "serial"})  # kinds of devices that have a driver


class Architecture(enum.StrEnum):
    """Who runs the servers and backends of the root's devices."""

    MICROKERNELIZED = "microkernelized"  # the root
    DISAGGREGATED = "disaggregated"  # a driver partition for each device
    MONOLITHIC = "monolithic"  # the hypervisor, which loads the drivers into its own process
    HOSTED = "hosted"  # a process for each device; a monitor for each guest passes its requests on to them
    MICROKERNEL = "microkernel"  # a process for each device, which guests send to and wait for, without rings


def driver_names(
    architecture: Architecture, devices: Iterable[DeviceConfig], guests: Mapping[str, Iterable[str]]
) -> tuple[str, ...]:
    """Of the driver partitions: each after its device, or, a guest's monitor, after its guest.

    Args:
        devices: the root's.
        guests: the root's own partitions, each with the names of its devices.
    """
    if architecture is Architecture.MICROKERNELIZED:
        return ()
    driven = tuple(device.name for device in devices if device.kind in DRIVEN and device.assigned_to is None)
    if architecture is not Architecture.HOSTED:
        return driven
    monitors = (
        guest + MONITOR_SUFFIX
        for guest, attached in guests.items()
        if any(device in driven for device in attached)
    )
    return driven + tuple(monitors)
