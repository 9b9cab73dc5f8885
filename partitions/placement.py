"""Where a machine's devices live: `[machine] architecture`. The same backends, servers and guests in each of them.

microkernelized   in this process, beside the VMBus server: Hyper-V's root
disaggregated     each in a driver partition of its own; this process only offers
monolithic        each in a driver partition whose driver the hypervisor loads into its own process
hosted            each in a driver partition, the host; a monitor for each guest serves its rings and passes them on
microkernel       each in a driver partition that guests send to and wait for, without rings
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from partitions.drivers.device_classes import class_of
from partitions.drivers.partition import DriverPartition
from partitions.drivers.resident_partition import ResidentPartition
from partitions.drivers.server_partition import ServerPartition
from partitions.drivers.vmm_partition import BehindMonitors, Vmms
from partitions.machine_plan import DevicePlan
from partitions.on_demand import named
from partitions.sdk.loading import DriverLoadError
from partitions.stack.offered_device import OfferedDevice
from partitions.stack.stack_resources import RootResources
from partitions.storage.backends import BackendError
from runtime.abi import HypercallError
from runtime.hypercalls.caller import MappedSlot

DEVICE_MEMORY_GPFN: Final = 0x1_0000  # in the root's own space, one behind the other

Devices = dict[str, OfferedDevice]
_Tables = Iterable[Mapping[str, Any]]  # [[root.device]]


# They have no driver that could be put elsewhere: the process of the VMBus server does what there is to do, always. The
# kinds that have one are in partitions.drivers.device_classes.
_WITHOUT_DRIVER: Final[Mapping[str, str]] = {
    "link": "partitions.links.link_device:LinkDevice",
    "switch": "partitions.links.switch_device:SwitchDevice",
    "keyboard": "partitions.display.devices:KeyboardDevice",
    "mouse": "partitions.display.devices:MouseDevice",
    "video": "partitions.display.devices:VideoDevice",
}


def _open_without_driver(plan: DevicePlan) -> OfferedDevice:
    open_device: Callable[[DevicePlan], OfferedDevice] = named(_WITHOUT_DRIVER[plan.kind])
    return open_device(plan)


class DeviceError(Exception):
    """A device cannot be had as described. One line for the user."""


class Place(Protocol):
    """One row of PLACES. Both raise DeviceError."""

    def create(self, stack: RootResources, machine: Mapping[str, Any], tables: _Tables) -> Devices:
        """At boot."""

    def adopt(
        self, stack: RootResources, machine: Mapping[str, Any], tables: _Tables, drivers: _Tables
    ) -> Devices:
        """As a predecessor had them. `drivers`: what it saved of its driver partitions."""


class Here:
    """In this process."""

    def create(self, stack: RootResources, machine: Mapping[str, Any], tables: _Tables) -> Devices:
        call = stack.hypercalls
        return _open_here(tables, lambda gpfn, pages: [call.map_gpa_pages(gpfn, pages)], stack.log)

    def adopt(
        self, stack: RootResources, machine: Mapping[str, Any], tables: _Tables, drivers: _Tables
    ) -> Devices:
        return _open_here(tables, stack.hypercalls.claim_gpa_pages, stack.log)


def _open_here(
    tables: _Tables, get_pages: Callable[[int, int], list[MappedSlot]], log: Callable[..., None]
) -> Devices:
    """`get_pages(gpfn, pages)`: new ones for a device with memory, or those of a predecessor."""
    gpfn, devices = DEVICE_MEMORY_GPFN, Devices()
    for table in tables:
        plan = DevicePlan.from_table(table)
        if table["kind"] in _WITHOUT_DRIVER:
            devices[plan.name] = _open_without_driver(plan)
            continue
        try:
            memory_fd = None
            if plan.memory_pages:
                gpfn = table.get("gpfn", gpfn)
                memory_fd = get_pages(gpfn, plan.memory_pages)[0].fd
                gpfn += plan.memory_pages
            backing_fd = class_of(plan.kind).open_backing(plan, log)
            devices[plan.name] = class_of(plan.kind).open(plan, memory_fd, backing_fd)
        except (BackendError, DriverLoadError, HypercallError) as error:
            raise DeviceError(f"device {plan.name}: {error}") from error
    return devices


def fix_device_memory(tables: list[Mapping[str, Any]]) -> None:
    """Say in each table where its device's pages are, before one of the tables goes: a successor counts no more."""
    gpfn = DEVICE_MEMORY_GPFN
    for number, table in enumerate(tables):
        if table["kind"] not in _WITHOUT_DRIVER and (pages := DevicePlan.from_table(table).memory_pages):
            gpfn = table.get("gpfn", gpfn)
            tables[number] = {**table, "gpfn": gpfn}
            gpfn += pages


class OwnPartitions:
    """Each in a driver partition."""

    def __init__(self, kind: type[DriverPartition] = DriverPartition) -> None:
        self._kind = kind

    def create(self, stack: RootResources, machine: Mapping[str, Any], tables: _Tables) -> Devices:
        devices = Devices()
        for table in tables:
            if table["kind"] in _WITHOUT_DRIVER:
                devices[table["name"]] = _open_without_driver(DevicePlan.from_table(table))
                continue
            driver = self._kind(stack, table, machine)
            try:
                driver.create()
            except (BackendError, HypercallError) as error:
                raise DeviceError(f"device {driver.name}: {error}") from error
            devices[driver.name] = driver
        return devices

    def adopt(
        self, stack: RootResources, machine: Mapping[str, Any], tables: _Tables, drivers: _Tables
    ) -> Devices:
        saved = {state["name"]: state for state in drivers}
        devices = Devices()
        for table in tables:
            if table["kind"] in _WITHOUT_DRIVER:
                devices[table["name"]] = _open_without_driver(DevicePlan.from_table(table))
                continue
            driver = self._kind(stack, table, machine)
            try:
                driver.adopt_state(saved[driver.name])
            except HypercallError as error:
                raise DeviceError(f"device {driver.name}: {error}") from error
            devices[driver.name] = driver
        return devices


class Hosted:
    """Each in a driver partition, the host; what the guests see of it is in monitors."""

    def create(self, stack: RootResources, machine: Mapping[str, Any], tables: _Tables) -> Devices:
        servers = OwnPartitions(ServerPartition).create(stack, machine, tables)
        return self._through_monitors(servers, Vmms(stack, machine))

    def adopt(
        self, stack: RootResources, machine: Mapping[str, Any], tables: _Tables, drivers: _Tables
    ) -> Devices:
        servers = OwnPartitions(ServerPartition).adopt(stack, machine, tables, drivers)
        vmms = Vmms(stack, machine)
        for state in drivers:
            if "guest" in state:
                vmms.adopt(state)
        return self._through_monitors(servers, vmms)

    def _through_monitors(self, servers: Devices, vmms: Vmms) -> Devices:
        return {
            name: BehindMonitors(server, vmms) if isinstance(server, ServerPartition) else server
            for name, server in servers.items()
        }


PLACES: Final[Mapping[str, Place]] = {
    "microkernelized": Here(),
    "disaggregated": OwnPartitions(),
    "monolithic": OwnPartitions(ResidentPartition),
    "hosted": Hosted(),
    "microkernel": OwnPartitions(ServerPartition),
}
DEFAULT_ARCHITECTURE: Final = "microkernelized"


def place_of(machine: Mapping[str, Any]) -> Place:
    return PLACES[machine.get("architecture", DEFAULT_ARCHITECTURE)]


def drivers_among(devices: Devices) -> list[DriverPartition]:
    """Those that devices are in, and those that guests reach them through."""
    found: dict[int, DriverPartition] = {}
    for device in devices.values():
        match device:
            case DriverPartition():
                found[device.partition] = device
            case BehindMonitors(server=server, vmms=vmms):
                found[server.partition] = server
                found |= {vmm.partition: vmm for vmm in vmms.by_guest.values()}
    return list(found.values())
