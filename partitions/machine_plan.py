"""What a parent was told to build: the platform's tables, as typed values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self
from uuid import UUID, uuid5

from partitions.descendants import Described, below, pack
from partitions.emulated.plan import EmulatedPlan
from partitions.integration.services import INSTANCES, RING_BYTES, SERVICES
from partitions.storage.overlay import overlay_bytes
from runtime.abi import (
    CPU_WEIGHT_DEFAULT,
    GUEST_PRIVILEGES,
    PAGE_BYTES,
    PARENT_PRIVILEGES,
    WHOLE_PROCESSOR,
    PartitionProperty,
    Privilege,
    Route,
)
from runtime.config.shares import CpuShare

_INSTANCE_NAMESPACE = UUID("6f6e6c79-7061-5274-a973-6f7273686f77")  # ours; never on a wire by itself


def instance_guid(partition: str, device: str) -> UUID:
    """The instance GUID of a device as offered to one partition: the same at every boot, so a guest knows it again.

    Both ends compute it from the names in the config; the name itself is not on the wire.
    """
    return INSTANCES.get(device) or uuid5(_INSTANCE_NAMESPACE, f"{partition}/{device}")


# Keys of a [[partition]] table, and what the hypervisor takes if nobody says anything.
_SHARES: Final = {
    "weight": (PartitionProperty.CPU_WEIGHT, CPU_WEIGHT_DEFAULT),
    "cap": (PartitionProperty.CPU_CAP, WHOLE_PROCESSOR),
    "reserve": (PartitionProperty.CPU_RESERVE, 0),
}


def _share(value: int | str) -> int:
    return CpuShare.parse(value) if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """A real device of the root: one [[root.device]] table."""

    name: str
    kind: str  # a row of partitions.drivers.device_classes, or "link" or "switch"
    backend: str | None  # "file" or "memory"; None: only a disk has one
    path: str | None
    size_bytes: int | None
    read_only: bool
    block_bytes: int
    driver: str | None = None  # "package.module:Class", in the place of a backend
    args: Mapping[str, Any] = field(default_factory=dict)  # the driver's
    mtu: int | None = None  # of a network; None: as its driver says
    interface: str | None = None  # the TAP behind it
    on_error: str | None = None  # what is done when it fails; None: it is reported
    error_threshold: int | None = None
    base: str | None = None  # of an overlay: what is below it
    queues: int = 1  # of a disk: channels that one guest may have to it
    width: int | None = None  # of a screen, at most; None: as its device says
    height: int | None = None

    @property
    def memory_pages(self) -> int:
        """Pages that the hypervisor keeps for it, of a memory disk or a driver's; 0 for one that is kept elsewhere."""
        if self.backend == "overlay":
            return 0 if self.path else -(-overlay_bytes(self.size_bytes or 0) // PAGE_BYTES)
        is_memory = self.backend == "memory" or (self.driver is not None and self.path is None)
        return -(-(self.size_bytes or 0) // PAGE_BYTES) if is_memory else 0

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Self:
        return cls(
            name=table["name"],
            kind=table["kind"],
            backend=table.get("backend"),
            path=table.get("path"),
            size_bytes=table.get("size"),
            read_only=table.get("read_only", False),
            block_bytes=table.get("block_bytes", 512),
            driver=table.get("driver"),
            args=table.get("args", {}),
            mtu=table.get("mtu"),
            interface=table.get("interface"),
            on_error=table.get("on_error"),
            error_threshold=table.get("error_threshold"),
            base=table.get("base"),
            queues=table.get("queues") or 1,
            width=table.get("width"),
            height=table.get("height"),
        )


@dataclass(frozen=True, slots=True)
class AttachmentPlan:
    """A device as one partition gets it: one [[partition.device]] table, with the machine's defaults filled in."""

    name: str
    ring_bytes: int
    route: Route
    waiting: str


@dataclass(frozen=True, slots=True)
class PartitionPlan:
    """One [[partition]] table, and the descriptors of its files."""

    name: str
    parent: str
    module: str
    memory_bytes: int
    vps: int
    shares: Mapping[
        PartitionProperty, int
    ]  # of the scheduler: what is not as the hypervisor has it by itself
    privileges: tuple[str, ...] | None
    attachments: tuple[AttachmentPlan, ...]
    emulated: tuple[EmulatedPlan, ...]
    boot: Mapping[str, Any]  # what the program finds in its birth
    files: tuple[int, ...]  # its own; of a parent also those that say what is below it
    is_parent: bool
    reaches_by_messages: bool = False  # the root's devices, and not through rings

    @property
    def privilege_mask(self) -> Privilege:
        """As the config names them; if it names none, what a VMBus guest needs, and what a parent does."""
        if self.privileges is None:
            return PARENT_PRIVILEGES if self.is_parent else GUEST_PRIVILEGES
        mask = Privilege(0)
        for name in self.privileges:
            mask |= Privilege[name.upper()]
        return mask

    @classmethod
    def of_tree(cls, one: Described, machine: Mapping[str, Any], described: Sequence[Described]) -> Self:
        """The plan of a partition with all that `described` has below it."""
        under = below(one.name, described)
        files = [*one.files, *(pack(machine, under) if under else ())]
        return cls.from_table(one.table, machine, files)

    @classmethod
    def from_table(cls, table: Mapping[str, Any], machine: Mapping[str, Any], files: list[int]) -> Self:
        """`files`: in the table's order, and behind them what `descendants.pack` made for a parent."""
        attachments = tuple(
            AttachmentPlan(
                name=device["name"],
                ring_bytes=device["ring_bytes"],
                route=Route[(device.get("signal_route") or machine["signal_route"]).upper()],
                waiting=device.get("waiting") or machine["waiting"],
            )
            for device in table.get("device", ())
            if device["name"] not in table.get("assigned", {})
        )
        services = tuple(
            AttachmentPlan(one.device, RING_BYTES, Route[machine["signal_route"].upper()], "block")
            for one in (SERVICES if table.get("integration") else ())
        )
        module, _, function = table["program"].partition(":")
        by_messages = machine.get("architecture") == "microkernel" and table["parent"] == "root"
        boot = {
            "function": function,
            "args": table.get("args", {}),
            "cpus": list(table.get("cpus", ())),
            "integration": bool(table.get("integration")),
            "direct_intercepts": bool(table.get("emulated")) and table.get("intercepts") == "direct",
            "files": [{"name": file["name"]} for file in table.get("file", ())],
            "devices": [
                {"name": one.name, "ring_bytes": one.ring_bytes, "waiting": one.waiting}
                | ({"messages": True} if by_messages else {})
                for one in attachments
            ],
        }
        if "assigned" in table:  # its own devices, which are offered by nobody: partitions.assignment
            boot["assigned"] = table["assigned"]
            boot["devices"] += [each for each in table["device"] if each["name"] in table["assigned"]]
        privileges = table.get("privileges")
        return cls(
            name=table["name"],
            parent=table["parent"],
            module=module,
            memory_bytes=table["memory"],
            vps=table["vps"],
            shares={
                code: value
                for key, (code, default) in _SHARES.items()
                if (value := _share(table.get(key, default))) != default
            },
            privileges=None if privileges is None else tuple(privileges),
            attachments=attachments + services,
            emulated=tuple(EmulatedPlan.from_table(each) for each in table.get("emulated", ())),
            boot=boot,
            files=tuple(files),
            is_parent=len(files) > len(table.get("file", ())),
            reaches_by_messages=by_messages,
        )
