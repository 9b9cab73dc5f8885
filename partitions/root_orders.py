"""Faults on purpose that the platform orders by name of a driver: getting stuck, and dying at a step."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from bus.seam import Seam, Step
from partitions.drivers.driven_device import DrivenDevice
from partitions.drivers.partition import DriverPartition
from partitions.placement import Devices, drivers_among


def arm_seam(values: Mapping[str, Any], own: Seam, devices: Devices, log: Callable[..., None]) -> None:
    """Of this partition, or of one that has a device."""
    try:
        named = values["device"]
        seam = own if named is None else driver_named(named, devices).fault_site.seam
        seam.arm(Step.named(values["step"]), values["passes"], values["deaths"])
    except (KeyError, ValueError, TypeError) as error:
        log("root.seam_refused", error=str(error)[:200])


def get_stuck(driver: str | None, devices: Devices) -> None:
    """This partition, or one that has a device."""
    if driver is not None:
        with contextlib.suppress(KeyError):
            driver_named(driver, devices).stick()
        return
    for device in devices.values():
        if isinstance(device, DrivenDevice):
            device.stick()


def driver_named(name: str, devices: Devices) -> DriverPartition:
    """KeyError: there is no driver partition of that name."""
    return {driver.name: driver for driver in drivers_among(devices)}[name]
