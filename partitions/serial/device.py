"""A serial line as it is offered: one driver, and a server for the channel of the one partition that has it."""

import threading
from typing import Final
from uuid import UUID

from bus.native import Channel, GpaMap
from bus.seam import Seam
from partitions.calls.endpoint_service import EndpointService
from partitions.calls.serving import Caller
from partitions.machine_plan import DevicePlan
from partitions.sdk.opening import open_driver
from partitions.sdk.serial import SerialDriver
from partitions.serial.backends import make_backend
from partitions.serial.message_service import ReadAhead, ReadService, WriteService
from partitions.serial.vsp import SerialVsp
from partitions.serial.wire import SERIAL_INTERFACE
from partitions.stack.channel_client import ChannelClient


class SerialDevice:
    """A DrivenDevice, a ClientDevice and a CalledBothWays."""

    interface: Final[UUID] = SERIAL_INTERFACE
    shares_channels = False

    def __init__(self, name: str, driver: SerialDriver) -> None:
        self.name, self._driver = name, driver
        self._lock = threading.Lock()  # of the driver: its calls come from several threads
        self._ahead = ReadAhead()

    def open(self, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam) -> SerialVsp:
        return SerialVsp(channel, self._driver, self._lock, record, seam)

    def open_for(
        self, client: ChannelClient, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam
    ) -> SerialVsp:
        return SerialVsp(channel, self._driver, self._lock, record, seam, client.budget)

    def open_messages(self, record: memoryview, seam: Seam) -> EndpointService:
        raise TypeError(f"{self.name} has to know on which connection it is called")

    def open_calls(self, caller: Caller, record: memoryview, seam: Seam) -> EndpointService:
        if caller.receives:
            return ReadService(self._driver, self._lock, self._ahead)
        return WriteService(self._driver, self._lock, record, seam)

    def stick(self) -> None:
        self._lock.acquire()

    def close(self) -> None:
        self._driver.close()


def open_serial(plan: DevicePlan, memory_fd: int | None, backing_fd: int | None) -> SerialDevice:
    """With a driver of ours or the user's. DriverLoadError."""
    if plan.driver is None:
        return SerialDevice(plan.name, make_backend(plan, backing_fd))
    return SerialDevice(plan.name, open_driver(plan, memory_fd, backing_fd, (SerialDriver,)))
