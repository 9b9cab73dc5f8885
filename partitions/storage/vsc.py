"""The storage VSC: a disk behind a VMBus channel, blocking (`Disk`) or for trio programs (`AsyncDisk`)."""

from partitions.storage.async_disk import AsyncDisk
from partitions.storage.disk import Disk

__all__ = ["AsyncDisk", "Disk"]
