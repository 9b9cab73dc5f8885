"""A network as it is offered: a switch, and perhaps a driver behind it. Each channel that is opened is a port."""

import threading
import weakref
from typing import Final
from uuid import UUID
from zlib import crc32

from bus import guids
from bus.native import Channel, GpaMap
from bus.seam import Seam
from partitions.drivers.driven_device import EndpointService, PassedOnDevice
from partitions.machine_plan import DevicePlan
from partitions.net.frames import ADDRESS_BYTES, MTU_MAX, MTU_MIN
from partitions.net.server_session import Adapter
from partitions.net.switch import LearningSwitch
from partitions.net.tap import TapDriver
from partitions.net.uplink import Uplink
from partitions.net.vsp import NetVsp
from partitions.sdk.loading import DriverLoadError
from partitions.sdk.net import NetDriver
from partitions.sdk.opening import make_context, open_driver
from partitions.stack.channel_client import ChannelClient
from partitions.storage.message_channel import Connect

MTU_DEFAULT: Final = 1500
_VENDOR: Final = bytes((0x00, 0x15, 0x5D))  # Hyper-V's adapters have it


class NetDevice:
    """A DrivenDevice and a ClientDevice."""

    interface: Final[UUID] = guids.NETWORK
    shares_channels = True

    def __init__(self, name: str, mtu: int, driver: NetDriver | None = None) -> None:
        self.name, self.mtu, self._driver = name, mtu, driver
        self.switch: Final = LearningSwitch()
        self._lock = threading.Lock()
        self._servers: weakref.WeakSet[NetVsp] = weakref.WeakSet()
        self._uplink = None if driver is None else Uplink(driver, self.switch, self._link_changed)

    def open(self, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam) -> NetVsp:
        raise TypeError(f"{self.name} has to know whom it serves")

    def open_for(
        self, client: ChannelClient, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam
    ) -> NetVsp:
        driver = self._driver
        mac = address_of(self.name, client.partition) if driver is None or driver.mac is None else driver.mac
        adapter = Adapter(mac, self.mtu, driver is None or driver.link_up)
        server = NetVsp(channel, gpa_map, client, self.switch, adapter, record, seam)
        with self._lock:
            self._servers.add(server)
        return server

    def _link_changed(self, up: bool) -> None:
        with self._lock:
            for server in self._servers:
                server.link_changed(up=up)

    def open_messages(self, record: memoryview, seam: Seam) -> EndpointService:
        raise TypeError(f"{self.name} is served through rings alone")

    def stick(self) -> None:
        self.switch.stick()

    def close(self) -> None:
        if self._uplink is not None:
            self._uplink.close()


def address_of(device: str, partition: int) -> bytes:
    """The same as long as the partition lives, and no other on this switch."""
    return _VENDOR + bytes((crc32(device.encode()) & 0xFF, partition >> 8 & 0xFF, partition & 0xFF))


def open_net(plan: DevicePlan, memory_fd: int | None, backing_fd: int | None) -> NetDevice:
    """A switch alone, with a TAP, or with the user's driver. DriverLoadError."""
    if plan.backend == "tap":
        mtu = plan.mtu or MTU_DEFAULT
        return NetDevice(plan.name, mtu, TapDriver(make_context(plan, None, backing_fd), mtu))
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
    return NetDevice(plan.name, mtu, driver)


def pass_on_nothing(connect: Connect) -> PassedOnDevice:
    """No monitor can: `validate` says so first."""
    raise ConnectionError("a network is not passed on: it is there with rings alone")
