"""A driver partition without a process: the hypervisor loads the driver into its own.

The stack deals with it as with any other. Pages, ports and messages are the same; only that nothing keeps the driver
from the hypervisor any more, so its death is the machine's.
"""

from typing import ClassVar

from partitions.drivers.partition import DriverPartition


class ResidentPartition(DriverPartition):
    module: ClassVar[str] = "partitions.drivers.resident_driver"

    def _start(self) -> None:
        self.call.load_driver(self.partition)
