"""The channels of one guest whose device is in a driver partition: here are their ports, and what to say of them."""

from typing import Any, Protocol

import trio

from bus.channel_messages import NO_INTERRUPT_VP
from partitions.drivers import stop_deadline
from partitions.drivers.messages import Serve, ServeFlags
from partitions.drivers.openings import OpeningOwner, Standing
from partitions.drivers.unserved_channels import UnservedChannels
from partitions.stack.channel_host import ChannelListener, Opening, OpenRequest
from partitions.stack.channel_ports import ChannelPorts, remove_ports
from partitions.stack.guest_memory import GpaWindows, GuestMemory
from partitions.stack.stack_resources import RootResources
from partitions.stack.vmbus_ports import FlagAllocator
from runtime.abi import Route
from runtime.hypercalls.caller import HypercallPort


class ChannelDriver(Protocol):
    """The driver partition, as its channels see it."""

    name: str
    partition: int
    call: HypercallPort
    stack: RootResources
    windows: GpaWindows
    flags: FlagAllocator
    queues: int
    stuck_ms: int

    @property
    def gives_service(self) -> bool: ...
    def begin_serving(self, standing: Standing) -> None: ...
    def go_on_serving(self, standing: Standing) -> None: ...
    def stop_serving(self, host: OpeningOwner, relid: int, opening: Opening) -> None: ...
    def statistics(self, host: OpeningOwner, relid: int) -> dict[str, Any]: ...


class DriverChannels(UnservedChannels):
    """A ChannelHost. This process never maps rings or pages of these channels."""

    def __init__(self, driver: ChannelDriver, listener: ChannelListener) -> None:
        self._driver, self.listener = driver, listener
        self.device = driver.name  # as the listener's guest knows it
        self._call = driver.call
        self.memory = GuestMemory(self._call, driver.windows, listener.partition, driver.partition)
        self._stopping: dict[
            int, trio.Event
        ] = {}  # openings that the driver was told to let go of: once it has

    @property
    def flags(self) -> FlagAllocator:
        return self._driver.flags

    def open(self, request: OpenRequest) -> None:
        if not self._driver.gives_service:
            raise ValueError(f"{self._driver.name} has failed")
        standing = self._standing(request)
        ports = ChannelPorts(
            self._call,
            self._driver.partition,
            self.listener.partition,
            request.action,
            request.opening.flag,
            request.plan.route,
        )
        ports.delete()  # what a predecessor may have made before it died
        ports.connect()
        self._driver.begin_serving(standing)

    def adopt(self, request: OpenRequest) -> None:
        self._driver.go_on_serving(self._standing(request))

    def _standing(self, request: OpenRequest) -> Standing:
        action, opening = request.action, request.opening
        ring_gpfn, ring_pages = self.memory.ring_pages(action.ring_gpadl)
        flags = ServeFlags(0)
        if request.plan.route is Route.BROKER:
            flags |= ServeFlags.BROKER_ROUTE
        if action.target_vp == NO_INTERRUPT_VP:
            flags |= ServeFlags.SILENT
        serve = Serve(
            opening.number,
            self.listener.partition,
            action.relid,
            opening.flag,
            flags,
            request.plan.waiting,
            ring_pages,
            action.downstream_page_offset,
            ring_gpfn,
            self.memory.grants_of_channel(action.relid),
            sub_channel=request.sub_channel,
        )
        serve.encode()  # ValueError: it cannot be told
        return Standing(self, action.relid, opening, serve)

    def close(self, relid: int, opening: Opening) -> None:
        if opening.number not in self._stopping:
            self._stopping[opening.number] = has_stopped = trio.Event()
            driver = self._driver
            stop_deadline.begin(
                driver.stack, driver.partition, driver.name, relid, driver.stuck_ms, has_stopped
            )
        self._driver.stop_serving(self, relid, opening)

    def bury(self, relid: int, opening: Opening) -> None:
        driver, guest = self._driver.partition, self.listener.partition
        remove_ports(self._call, driver, guest, relid, opening.connection_id, opening.flag)

    # -- what the driver says

    def opened(self, standing: Standing, status: int) -> None:
        if status:
            self.bury(standing.relid, standing.opening)
        self.listener.opened(standing.relid, standing.opening.number, status)

    def stopped(self, relid: int, opening: Opening) -> None:
        if (has_stopped := self._stopping.pop(opening.number, None)) is not None:
            has_stopped.set()
        self.bury(relid, opening)
        self.listener.closed(relid, opening.number)

    def lost(self, standing: Standing, failed: bool, reason: str) -> None:
        self.listener.lost(standing.relid, standing.opening.number, failed, reason)

    def asked(self, standing: Standing, count: int) -> None:
        """A driver that says more than the device has is not believed."""
        count = min(count, self._driver.queues - 1)
        self.listener.asked_for_sub_channels(standing.relid, standing.opening.number, count)

    def statistics(self, relid: int) -> dict[str, Any]:
        return {"served_by": [self._driver.name], **self._driver.statistics(self, relid)}
