"""Disks, as one of the classes of devices that have a driver."""

from typing import Final

from bus import guids
from partitions.drivers.device_classes import DeviceClass
from partitions.drivers.driven_device import PassedOnDevice
from partitions.storage.device import DiskDevice
from partitions.storage.message_channel import Connect


def _pass_on(calls: Connect, _: Connect) -> PassedOnDevice:
    from partitions.storage.forwarded import ForwardedDisk  # for monitors alone

    return ForwardedDisk(calls)


DISK: Final = DeviceClass(guids.SCSI, DiskDevice, _pass_on)
