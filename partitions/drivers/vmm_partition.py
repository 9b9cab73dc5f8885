"""The stack's end of a virtual machine monitor: a partition for each guest, that serves the guest's rings and passes
every request on to the process that has the device, the host.

So a request goes through two processes, and back through both. The monitor has no device and nothing of another guest.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Final
from uuid import UUID

from bus.native import Channel, GpaMap
from bus.seam import Seam
from partitions.drivers.channels import DriverChannels
from partitions.drivers.openings import Standing
from partitions.drivers.partition import DriverPartition
from partitions.drivers.phase import Phase
from partitions.drivers.server_partition import ServerPartition
from partitions.stack.channel_host import ChannelListener, OpenRequest
from partitions.stack.served_channel import Service
from partitions.stack.stack_resources import RootResources
from runtime.abi import HypercallError

VMM_SUFFIX: Final = ".vmm"  # no configured name has a dot


class VmmPartition(DriverPartition):
    """Of one guest."""

    module: ClassVar[str] = "partitions.drivers.vmm"

    def __init__(self, stack: RootResources, guest: str, machine: Mapping[str, Any]) -> None:
        super().__init__(stack, {"name": guest + VMM_SUFFIX, "kind": "monitor"}, machine)
        self.guest = 0  # its partition
        self._links: list[str] = []  # devices, by the number that the monitor knows them by
        self._kinds: list[str] = []  # of those
        self._servers: dict[str, ServerPartition] = {}  # of those, as far as we are connected

    def link(self, server: ServerPartition) -> int:
        """Connect it to a device's host. The device's number. Raises as `ServerPartition.attach_client`."""
        if server.name not in self._links:
            self._links.append(server.name)
            self._kinds.append(server.kind)
        number = self._links.index(server.name)
        self._servers[server.name] = server
        if not server.has_client(self.partition):
            server.attach_client(self.partition, self.name, server.name, number, stands_for=self.guest)
        return number

    def look(self) -> None:
        """A monitor that has ended leaves its hosts alone, so that they can end."""
        super().look()
        if self.phase is Phase.ENDED:
            for server in self._servers.values():
                server.detach_client(self.partition)

    def _restart(self) -> None:
        try:
            for server in self._servers.values():
                self.link(server)
        except (HypercallError, LookupError) as error:
            self._failed(str(error))
            return
        super()._restart()

    def _open_backing(self) -> list[int]:
        return []

    def _more_arguments(self) -> dict[str, Any]:
        return {"kinds": self._kinds}

    def to_state(self) -> dict[str, Any]:
        return super().to_state() | {"guest": self.guest, "links": self._links, "kinds": self._kinds}

    def adopt_state(self, state: Mapping[str, Any]) -> None:
        super().adopt_state(state)
        self.guest, self._links = state["guest"], list(state["links"])
        self._kinds = list(state["kinds"])


class VmmChannels(DriverChannels):
    """A guest's channels to one device. The monitor has to know which."""

    def __init__(self, vmm: VmmPartition, listener: ChannelListener, server: ServerPartition) -> None:
        super().__init__(vmm, listener)
        self.device, self._server, self._number = server.name, server, vmm.link(server)
        self._vmm = vmm

    def _standing(self, request: OpenRequest) -> Standing:
        standing = super()._standing(request)
        serve = replace(standing.serve, device=self._number, kind=self._server.kind)
        return replace(standing, serve=serve)

    def statistics(self, relid: int) -> dict[str, Any]:
        return super().statistics(relid) | {"served_by": [self._vmm.name, self._server.name]}


class Vmms:
    """All monitors of one stack."""

    def __init__(self, stack: RootResources, machine: Mapping[str, Any]) -> None:
        self._stack, self._machine = stack, machine
        self.by_guest: Final[dict[int, VmmPartition]] = {}

    def of(self, listener: ChannelListener) -> VmmPartition:
        """HypercallError: it cannot be created."""
        if (vmm := self.by_guest.get(listener.partition)) is None:
            vmm = VmmPartition(self._stack, listener.name, self._machine)
            vmm.guest = listener.partition
            vmm.create()
            self.by_guest[vmm.guest] = vmm
        return vmm

    def adopt(self, state: Mapping[str, Any]) -> None:
        vmm = VmmPartition(self._stack, state["name"].removesuffix(VMM_SUFFIX), self._machine)
        vmm.adopt_state(state)
        self.by_guest[vmm.guest] = vmm


class BehindMonitors:
    """An OfferedDevice and a HostedDevice: guests reach it through monitors of their own."""

    def __init__(self, server: ServerPartition, vmms: Vmms) -> None:
        self.name, self.server, self.vmms = server.name, server, vmms

    @property
    def interface(self) -> UUID:
        return self.server.interface

    def make_host(self, listener: ChannelListener) -> VmmChannels:
        """HypercallError: there is no room for a monitor."""
        vmm = self.vmms.of(listener)
        channels = VmmChannels(vmm, listener, self.server)
        vmm.add_host(channels)
        return channels

    def open(self, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam) -> Service:
        raise TypeError(f"{self.name} is served by monitors")

    def hand_in(self, words: Mapping[str, Any], fd: int) -> None:
        """A HandsIn: the host process has the device."""
        self.server.hand_in(words, fd)

    def close(self) -> None:
        """The host process flushes and closes what it has, when it ends."""
