"""A network as it is offered: a switch, and perhaps a driver behind it. Each channel that is opened is a port."""

import socket
import threading
import weakref
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from bus import guids
from bus.native import Channel, GpaMap
from bus.seam import Seam
from partitions.calls.endpoint_service import EndpointService
from partitions.calls.serving import Caller
from partitions.hardware.watch import Condition, HardwareWatch
from partitions.machine_plan import DevicePlan
from partitions.net import capture_service
from partitions.net.address import address_of
from partitions.net.frames import ADDRESS_BYTES, MTU_MAX, MTU_MIN
from partitions.net.message_port import MessagePort
from partitions.net.message_service import ReceiveService, TransmitService
from partitions.net.server_session import Adapter
from partitions.net.switch import LearningSwitch
from partitions.net.tap import TapDriver
from partitions.net.uplink import Uplink
from partitions.net.user import UserDriver
from partitions.net.vsp import NetVsp
from partitions.sdk.loading import DriverLoadError
from partitions.sdk.net import NetDriver
from partitions.sdk.opening import make_context, open_driver
from partitions.stack.channel_client import ChannelClient

MTU_DEFAULT: Final = 1500


class NetDevice:
    """A DrivenDevice, a ClientDevice and a CalledBothWays."""

    interface: Final[UUID] = guids.NETWORK
    shares_channels = True

    def __init__(
        self, name: str, mtu: int, driver: NetDriver | None = None, watch: HardwareWatch | None = None
    ) -> None:
        self.name, self.mtu, self._driver = name, mtu, driver
        self.watch = watch or HardwareWatch(name, "network")
        self.switch: Final = LearningSwitch()
        self._lock = threading.Lock()
        self._servers: weakref.WeakSet[NetVsp] = weakref.WeakSet()
        self._message_ports: weakref.WeakValueDictionary[int, MessagePort] = weakref.WeakValueDictionary()
        self._uplink = None if driver is None else Uplink(driver, self.switch, self._link_changed, self.watch)

    def open(self, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam) -> NetVsp:
        raise TypeError(f"{self.name} has to know whom it serves")

    def open_for(
        self, client: ChannelClient, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam
    ) -> NetVsp:
        adapter = self._adapter_of(client.partition)
        server = NetVsp(channel, gpa_map, client, self.switch, adapter, record, seam)
        with self._lock:
            self._servers.add(server)
        return server

    def _adapter_of(self, partition: int) -> Adapter:
        is_well = self.watch.condition is Condition.WELL
        link_up = self._driver is None or (is_well and self._driver.link_up)
        return Adapter(self.mac_of(partition), self.mtu, link_up)

    def mac_of(self, partition: int) -> bytes:
        """Of a guest's adapter, whether it has opened its channel or not."""
        if self._driver is not None and self._driver.mac is not None:
            return self._driver.mac
        return address_of(self.name, partition)

    def take_socket(self, words: Mapping[str, Any], sock: socket.socket) -> None:
        """A TakesSockets: somebody captures."""
        capture_service.serve(self, words, sock)

    @property
    def leads_out(self) -> bool:
        """Its switch has a port to the outside."""
        return self._uplink is not None

    def _link_changed(self, up: bool) -> None:
        with self._lock:
            for server in self._servers:
                server.link_changed(up=up)
            for port in self._message_ports.values():
                port.link_changed(up=up)

    def open_messages(self, record: memoryview, seam: Seam) -> EndpointService:
        raise TypeError(f"{self.name} has to know whom it serves, and on which connection")

    def open_calls(self, caller: Caller, record: memoryview, seam: Seam) -> EndpointService:
        with self._lock:
            if (port := self._message_ports.get(caller.partition)) is None:
                port = self._message_ports[caller.partition] = MessagePort(self._adapter_of(caller.partition))
        return ReceiveService(port, seam) if caller.receives else TransmitService(port, self.switch, seam)

    def stick(self) -> None:
        self.switch.stick()

    def close(self) -> None:
        self.switch.end_captures()
        if self._uplink is not None:
            self._uplink.close()


def open_net(plan: DevicePlan, memory_fd: int | None, backing_fd: int | None) -> NetDevice:
    """A switch alone, with a TAP, or with the user's driver. DriverLoadError."""
    watch = HardwareWatch(plan.name, "network", plan.on_error, plan.error_threshold)
    if plan.backend == "tap":
        mtu = plan.mtu or MTU_DEFAULT
        return NetDevice(plan.name, mtu, TapDriver(make_context(plan, None, backing_fd), mtu), watch)
    if plan.backend == "user":
        mtu = plan.mtu or MTU_DEFAULT
        return NetDevice(plan.name, mtu, UserDriver(make_context(plan, None, backing_fd), mtu))
    if plan.driver is None:
        return NetDevice(plan.name, plan.mtu or MTU_DEFAULT)
    driver: NetDriver = open_driver(plan, memory_fd, backing_fd, (NetDriver,))
    mtu = min(plan.mtu or driver.mtu, driver.mtu)
    if not MTU_MIN <= mtu <= MTU_MAX or len(driver.mac or bytes(ADDRESS_BYTES)) != ADDRESS_BYTES:
        driver.close()
        raise DriverLoadError(
            f"{plan.driver}: an MTU of {mtu} and a MAC of {driver.mac!r}: give it one from {MTU_MIN} to {MTU_MAX},"
            f" and {ADDRESS_BYTES} bytes or None"
        )
    return NetDevice(plan.name, mtu, driver, watch)
