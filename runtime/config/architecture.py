"""Where a machine's devices live: the word of the config, and which driver partitions follow from it."""

import enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from runtime.config.model import MachineConfig

MONITOR_SUFFIX: Final = ".vmm"  # behind a guest's name; no configured name has a dot
_ROOT: Final = "root"
DRIVEN: Final = frozenset({"disk", "custom", "echo", "net", "serial"})  # kinds of devices that have a driver


class Architecture(enum.StrEnum):
    """Who runs the servers and backends of the root's devices."""

    MICROKERNELIZED = "microkernelized"  # the root
    DISAGGREGATED = "disaggregated"  # a driver partition for each device
    MONOLITHIC = "monolithic"  # the hypervisor, which loads the drivers into its own process
    HOSTED = "hosted"  # a process for each device; a monitor for each guest passes its requests on to them
    MICROKERNEL = "microkernel"  # a process for each device, which guests send to and wait for, without rings


def driver_names(config: "MachineConfig") -> tuple[str, ...]:
    """Of the driver partitions: each after its device, or, a guest's monitor, after its guest."""
    if config.machine.architecture is Architecture.MICROKERNELIZED:
        return ()
    driven = tuple(
        device.name for device in config.root.devices if device.kind in DRIVEN and device.assigned_to is None
    )
    if config.machine.architecture is not Architecture.HOSTED:
        return driven
    monitors = (
        partition.name + MONITOR_SUFFIX
        for partition in config.partitions
        if partition.parent == _ROOT and any(device.name in driven for device in partition.devices)
    )
    return driven + tuple(monitors)
