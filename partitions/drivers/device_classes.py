"""The classes of devices that have a driver: what each is made of, wherever `partitions.placement` puts it.

A row says how a device of its kind is opened where its driver runs, and how a monitor passes on one that another
process serves. To add a class is to add a row here, its word to `DRIVEN` in runtime/config/architecture.py, and its
kind to the config.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from bus import guids
from partitions.custom.device import PassedOnCustom, open_custom, open_echo
from partitions.custom.wire import CUSTOM_INTERFACE
from partitions.drivers.driven_device import DrivenDevice, PassedOnDevice
from partitions.machine_plan import DevicePlan
from partitions.net.device import open_net
from partitions.net.device import pass_on_nothing as net_passed_on
from partitions.net.tap import open_tap
from partitions.serial.backends import open_line
from partitions.serial.device import open_serial
from partitions.serial.device import pass_on_nothing as line_passed_on
from partitions.serial.wire import SERIAL_INTERFACE
from partitions.storage.device import DiskDevice, open_backing
from partitions.storage.forwarded import ForwardedDisk
from partitions.storage.message_channel import Connect


def open_backing_file(plan: DevicePlan, log: Callable[..., None]) -> int | None:
    """The file at `path`, if there is one."""
    return None if plan.path is None else open_backing(plan)


def open_backing_line(plan: DevicePlan, log: Callable[..., None]) -> int | None:
    """Of a serial line: what its backend leads to, or, with a driver of the user's, the file."""
    return open_backing_file(plan, log) if plan.driver is not None else open_line(plan, log)


def open_backing_net(plan: DevicePlan, log: Callable[..., None]) -> int | None:
    """Of a network: its TAP, or, with a driver of the user's, the file."""
    return open_tap(plan, log) if plan.backend == "tap" else open_backing_file(plan, log)


@dataclass(frozen=True, slots=True)
class DeviceClass:
    """One row of DEVICE_CLASSES."""

    interface: UUID
    open: Callable[[DevicePlan, int | None, int | None], DrivenDevice]
    """(plan, memory, backing file): the device with its driver, which owns both descriptors. BackendError,
    DriverLoadError: it cannot be had, in one line."""

    pass_on: Callable[[Connect], PassedOnDevice]
    """In a monitor: what it offers its guest, on a connection to the host. ConnectionError, DiskError: none answers."""

    open_backing: Callable[[DevicePlan, Callable[..., None]], int | None] = open_backing_file
    """(plan, log), in the stack: what its driver is handed, each time it is started. BackendError."""


DEVICE_CLASSES: Final[Mapping[str, DeviceClass]] = {
    "disk": DeviceClass(guids.SCSI, DiskDevice, ForwardedDisk),
    "custom": DeviceClass(CUSTOM_INTERFACE, open_custom, PassedOnCustom),
    "echo": DeviceClass(CUSTOM_INTERFACE, open_echo, PassedOnCustom),
    "net": DeviceClass(guids.NETWORK, open_net, net_passed_on, open_backing_net),
    "serial": DeviceClass(SERIAL_INTERFACE, open_serial, line_passed_on, open_backing_line),
}
