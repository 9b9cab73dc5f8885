"""The root's part in faults that whoever serves a device carries out: which processes that are, wherever they are.

storage-*             whose backend the disk's is: root, driver partition, host, or server
ring-*, memory-*      whoever serves the device's rings: root, driver partition, or the monitor of each guest that
                      there is now; a device that is reached without rings has none
kill-at-step          the process that is named: root, a driver partition, a monitor
"""

from collections.abc import Callable, Mapping
from typing import Final

from partitions.drivers.driven_device import DrivenDevice, medium_of
from partitions.drivers.partition import DriverPartition
from partitions.drivers.server_partition import ServerPartition
from partitions.drivers.vmm_partition import BehindMonitors
from partitions.faults import page_stalls
from partitions.faults.fault_site import FaultSite
from partitions.faults.faulty_medium import refusal
from partitions.placement import Devices, drivers_among
from runtime.chaos.faults.catalogue import FAULTS
from runtime.chaos.faults.kinds import Group
from runtime.chaos.faults.orders import Counts, FaultRefused, Order
from runtime.chaos.faults.ring_kinds import MEMORY_STALL
from runtime.chaos.faults.step_kinds import KILL_AT_STEP

ROOT: Final = "root"


class ServerOrders:
    """A FaultAgent that carries nothing out itself. For the root's trio task."""

    def __init__(self, own: FaultSite, devices: Callable[[], Devices]) -> None:
        self._own, self._devices = own, devices

    def inject(self, order: Order) -> None:
        """Raises FaultRefused."""
        for site in self._sites(order):
            site.inject(order)

    def heal(self, number: int | None) -> None:
        for site in self._all():
            site.heal(number)

    def counts(self) -> Mapping[int, Counts]:
        """Of one order for several processes, of all together."""
        found: dict[int, Counts] = {}
        for site in self._all():
            for number, counts in site.counts().items():
                before = found.get(number, Counts(0, 0))
                firsts = [first for first in (before.first_ns, counts.first_ns) if first]
                passes, fired = before.passes + counts.passes, before.fired + counts.fired
                found[number] = Counts(passes, fired, min(firsts, default=0))
        return found

    def _all(self) -> list[FaultSite]:
        return [self._own, *(driver.fault_site for driver in drivers_among(self._devices()))]

    def _sites(self, order: Order) -> list[FaultSite]:
        if order.kind == KILL_AT_STEP:
            return [self._process(order.target)]
        if (device := self._devices().get(order.target)) is None:
            there = ", ".join(self._devices()) or "none"
            raise FaultRefused(f"no device is named {order.target!r}; there is: {there}")
        if FAULTS[order.kind].group is Group.STORAGE:
            return [self._disk(device, order)]
        return self._rings(device, order)

    def _process(self, name: str) -> FaultSite:
        if name == ROOT:
            return self._own
        drivers = {driver.name: driver for driver in drivers_among(self._devices())}
        if name not in drivers:
            there = ", ".join([ROOT, *drivers])
            raise FaultRefused(f"{name!r} has no steps at which it could die; there is: {there}")
        return drivers[name].fault_site

    def _disk(self, device: object, order: Order) -> FaultSite:
        if isinstance(device, BehindMonitors):
            device = device.server
        if isinstance(device, DriverPartition):
            site, is_disk, read_only = device.fault_site, device.kind == "disk", device.read_only
        else:
            medium = medium_of(device)
            site, is_disk = self._own, medium is not None
            read_only = medium is not None and medium.read_only
        if not is_disk:
            raise FaultRefused(f"{order.target} is no disk")
        if (why := refusal(order, read_only=read_only)) is not None:
            raise FaultRefused(why)
        return site

    def _rings(self, device: object, order: Order) -> list[FaultSite]:
        if order.kind == MEMORY_STALL and (why := page_stalls.refusal()) is not None:
            raise FaultRefused(f"{order.kind}: {why}")
        match device:
            case BehindMonitors():
                if device.server.kind != "disk":
                    raise FaultRefused(f"{order.target}: monitors break the rings of disks alone")
                if not device.vmms.by_guest:
                    raise FaultRefused(f"{order.target}: no guest has a monitor yet")
                return [vmm.fault_site for vmm in device.vmms.by_guest.values()]
            case ServerPartition():
                raise FaultRefused(f"{order.target} is reached without rings in this architecture")
            case DriverPartition():
                return [device.fault_site]
            case DrivenDevice():
                return [self._own]
        raise FaultRefused(f"{order.target} has no server that could break its rings")
