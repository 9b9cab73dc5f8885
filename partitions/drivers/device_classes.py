"""The classes of devices that have a driver: what each is made of, wherever `partitions.placement` puts it.

A row says how a device of its kind is opened where its driver runs, and how a monitor passes on one that another
process serves. It stands in the package of its class, which is imported when the first such device is asked for. To
add a class is to write its row there, to name it here, to add its word to `DRIVEN` in runtime/config/architecture.py,
and its kind to the config.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from partitions.drivers.driven_device import DrivenDevice, PassedOnDevice
from partitions.machine_plan import DevicePlan
from partitions.on_demand import named
from partitions.storage.device import open_backing
from partitions.storage.message_channel import Connect

DEVICE_CLASSES: Final[Mapping[str, str]] = {
    "disk": "partitions.storage.device_class:DISK",
    "custom": "partitions.custom.device_class:CUSTOM",
    "echo": "partitions.custom.device_class:ECHO",
    "net": "partitions.net.device_class:NET",
    "serial": "partitions.serial.device_class:SERIAL",
}


def open_backing_file(plan: DevicePlan, log: Callable[..., None]) -> int | None:
    """The file at `path`, if there is one."""
    return None if plan.path is None and plan.base is None else open_backing(plan)


@dataclass(frozen=True, slots=True)
class DeviceClass:
    """What one of DEVICE_CLASSES names."""

    interface: UUID
    open: Callable[[DevicePlan, int | None, int | None], DrivenDevice]
    """(plan, memory, backing file): the device with its driver, which owns both descriptors. BackendError,
    DriverLoadError: it cannot be had, in one line."""

    pass_on: Callable[[Connect, Connect], PassedOnDevice]
    """In a monitor: what it offers its guest, on its connections to the host: that for calls, and, where the class has
    it, that on which it receives. ConnectionError, DiskError: none answers."""

    open_backing: Callable[[DevicePlan, Callable[..., None]], int | None] = open_backing_file
    """(plan, log), in the stack: what its driver is handed, each time it is started. BackendError."""


def class_of(kind: str) -> DeviceClass:
    """KeyError: devices of this kind have no driver."""
    found = named(DEVICE_CLASSES[kind])
    assert isinstance(found, DeviceClass)
    return found
