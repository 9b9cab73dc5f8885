"""A custom device as it is offered, with its driver; and one that a monitor passes on."""

import threading
from typing import Final
from uuid import UUID

from bus.native import Channel, GpaMap
from bus.seam import Seam
from partitions.custom.async_vsp import AsyncCustomVsp, Called
from partitions.custom.message_client import Connect, MessageCustom
from partitions.custom.message_service import CustomService
from partitions.custom.vsp import CustomVsp
from partitions.custom.wire import CUSTOM_INTERFACE, CustomClosedError, CustomError
from partitions.echo.driver import EchoDriver
from partitions.machine_plan import DevicePlan
from partitions.sdk.context import DriverContext
from partitions.sdk.custom import AsyncCustomDriver, CustomDriver
from partitions.sdk.opening import make_context, open_driver
from partitions.stack.served_channel import Service
from partitions.storage.backends import BackendError


class CustomDevice:
    """A DrivenDevice. Any number of partitions may open it."""

    interface: Final[UUID] = CUSTOM_INTERFACE

    def __init__(self, name: str, driver: CustomDriver | AsyncCustomDriver) -> None:
        self.name, self.driver = name, driver
        self._called: CustomDriver | None = driver if isinstance(driver, CustomDriver) else None
        self._lock = threading.Lock()

    def open(self, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam) -> Service:
        if isinstance(self.driver, AsyncCustomDriver):
            return AsyncCustomVsp(channel, gpa_map, self.driver, self._lock)
        return CustomVsp(channel, gpa_map, self.driver, self._lock)

    def open_messages(self, record: memoryview, seam: Seam) -> CustomService:
        if isinstance(self.driver, AsyncCustomDriver) and self._called is None:
            self._called = Called(self.driver)
        assert self._called is not None
        return CustomService(self._called, self._lock, seam)

    def stick(self) -> None:
        self._lock.acquire()

    def close(self) -> None:
        self.driver.close()


BASES: Final = (CustomDriver, AsyncCustomDriver)


def open_custom(plan: DevicePlan, memory_fd: int | None, backing_fd: int | None) -> CustomDevice:
    """With the user's driver. DriverLoadError."""
    return CustomDevice(plan.name, open_driver(plan, memory_fd, backing_fd, BASES))


def open_echo(plan: DevicePlan, memory_fd: int | None, backing_fd: int | None) -> CustomDevice:
    return CustomDevice(plan.name, EchoDriver(make_context(plan, memory_fd, backing_fd)))


class _Forwarding(CustomDriver):
    """Every request is the host's to answer."""

    def __init__(self, name: str, client: MessageCustom) -> None:
        super().__init__(DriverContext(name, "custom", {}, None, 512, False, None, None))
        self._client = client

    def opened(self) -> CustomDriver:
        self._client.begin()
        return self

    def answer(self, request: bytes) -> bytes:
        try:
            return self._client.call(request)
        except CustomError as error:
            raise BackendError(error.errno, str(error.args[1])) from error

    def close(self) -> None:
        self._client.close()


class PassedOnCustom(CustomDevice):
    """A PassedOnDevice: a guest's requests, one at a time, to the host and back."""

    def __init__(self, connect: Connect) -> None:
        """ConnectionError: there is no host."""
        name = "passed on"
        try:
            super().__init__(name, _Forwarding(name, MessageCustom(connect)))
        except CustomClosedError as error:
            raise ConnectionError(str(error)) from error

    def settled(self) -> None:
        """The host waits for nothing."""
