"""Custom devices and echo, as two of the classes of devices that have a driver.

A driver's code is imported where it runs, a passing-on device's in monitors: the stack alone needs neither.
"""

from typing import Final

from partitions.custom.wire import CUSTOM_INTERFACE
from partitions.drivers.device_classes import DeviceClass
from partitions.drivers.driven_device import DrivenDevice, PassedOnDevice
from partitions.machine_plan import DevicePlan
from partitions.storage.message_channel import Connect


def _open_custom(plan: DevicePlan, memory_fd: int | None, backing_fd: int | None) -> DrivenDevice:
    from partitions.custom.device import open_custom

    return open_custom(plan, memory_fd, backing_fd)


def _open_echo(plan: DevicePlan, memory_fd: int | None, backing_fd: int | None) -> DrivenDevice:
    from partitions.custom.device import open_echo

    return open_echo(plan, memory_fd, backing_fd)


def _pass_on(calls: Connect, _: Connect) -> PassedOnDevice:
    from partitions.custom.device import PassedOnCustom

    return PassedOnCustom(calls)


CUSTOM: Final = DeviceClass(CUSTOM_INTERFACE, _open_custom, _pass_on)
ECHO: Final = DeviceClass(CUSTOM_INTERFACE, _open_echo, _pass_on)
