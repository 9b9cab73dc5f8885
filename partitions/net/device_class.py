"""Networks, as one of the classes of devices that have a driver.

A driver's code is imported where it runs, a passing-on device's in monitors, a backend's with the first of its kind.
"""

from collections.abc import Callable
from typing import Final

from bus import guids
from partitions.drivers.device_classes import DeviceClass, open_backing_file
from partitions.drivers.driven_device import DrivenDevice, PassedOnDevice
from partitions.machine_plan import DevicePlan
from partitions.storage.message_channel import Connect


def _open(plan: DevicePlan, memory_fd: int | None, backing_fd: int | None) -> DrivenDevice:
    from partitions.net.device import open_net

    return open_net(plan, memory_fd, backing_fd)


def _pass_on(calls: Connect, receives: Connect) -> PassedOnDevice:
    from partitions.net.passed_on import PassedOnNet

    return PassedOnNet(calls, receives)


def _open_backing(plan: DevicePlan, log: Callable[..., None]) -> int | None:
    """What its backend leads to, or, with a driver of the user's, the file."""
    match plan.backend:
        case "user":
            from partitions.net.user import open_user

            return open_user(plan, log)
        case "tap":
            from partitions.net.tap import open_tap

            return open_tap(plan, log)
    return open_backing_file(plan, log)


NET: Final = DeviceClass(guids.NETWORK, _open, _pass_on, _open_backing)
