"""Serial lines, as one of the classes of devices that have a driver.

A driver's code is imported where it runs, a passing-on device's in monitors.
"""

from collections.abc import Callable
from typing import Final

from partitions.drivers.device_classes import DeviceClass, open_backing_file
from partitions.drivers.driven_device import DrivenDevice, PassedOnDevice
from partitions.machine_plan import DevicePlan
from partitions.serial.backends import open_line
from partitions.serial.wire import SERIAL_INTERFACE
from partitions.storage.message_channel import Connect


def _open(plan: DevicePlan, memory_fd: int | None, backing_fd: int | None) -> DrivenDevice:
    from partitions.serial.device import open_serial

    return open_serial(plan, memory_fd, backing_fd)


def _pass_on(calls: Connect, receives: Connect) -> PassedOnDevice:
    from partitions.serial.passed_on import PassedOnLine

    return PassedOnLine(calls, receives)


def _open_backing(plan: DevicePlan, log: Callable[..., None]) -> int | None:
    """What its backend leads to, or, with a driver of the user's, the file."""
    return open_backing_file(plan, log) if plan.driver is not None else open_line(plan, log)


SERIAL: Final = DeviceClass(SERIAL_INTERFACE, _open, _pass_on, _open_backing)
