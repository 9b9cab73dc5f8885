"""What the root was told to build: the platform's tables, as typed values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from uuid import UUID, uuid5

from runtime.abi import GUEST_PRIVILEGES, PAGE_BYTES, Privilege, Route

_INSTANCE_NAMESPACE = UUID("6f6e6c79-7061-5274-a973-6f7273686f77")  # ours; never on a wire by itself


def instance_guid(partition: str, device: str) -> UUID:
    """The instance GUID of a device as offered to one partition: the same at every boot, so a guest knows it again.

    Both ends compute it from the names in the config; the name itself is not on the wire.
    """
    return uuid5(_INSTANCE_NAMESPACE, f"{partition}/{device}")


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """A real device of the root: one [[root.device]] table."""

    name: str
    backend: str  # "file" or "memory"
    path: str | None
    size_bytes: int | None
    read_only: bool
    block_bytes: int

    @property
    def memory_pages(self) -> int:
        """What a memory disk takes of the root's pages; 0 for one that is kept elsewhere."""
        return -(-(self.size_bytes or 0) // PAGE_BYTES) if self.backend == "memory" else 0

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Self:
        return cls(
            name=table["name"],
            backend=table["backend"],
            path=table.get("path"),
            size_bytes=table.get("size"),
            read_only=table.get("read_only", False),
            block_bytes=table.get("block_bytes", 512),
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
    privileges: tuple[str, ...] | None
    attachments: tuple[AttachmentPlan, ...]
    boot: Mapping[str, Any]  # what the program finds in its birth
    files: tuple[int, ...]

    @property
    def privilege_mask(self) -> Privilege:
        """As the config names them; what a VMBus guest needs, if it names none."""
        if self.privileges is None:
            return GUEST_PRIVILEGES
        mask = Privilege(0)
        for name in self.privileges:
            mask |= Privilege[name.upper()]
        return mask

    @classmethod
    def from_table(cls, table: Mapping[str, Any], machine: Mapping[str, Any], files: list[int]) -> Self:
        attachments = tuple(
            AttachmentPlan(
                name=device["name"],
                ring_bytes=device["ring_bytes"],
                route=Route[(device.get("signal_route") or machine["signal_route"]).upper()],
                waiting=device.get("waiting") or machine["waiting"],
            )
            for device in table.get("device", ())
        )
        module, _, function = table["program"].partition(":")
        boot = {
            "function": function,
            "args": table.get("args", {}),
            "cpus": list(table.get("cpus", ())),
            "files": [{"name": file["name"]} for file in table.get("file", ())],
            "devices": [
                {"name": one.name, "ring_bytes": one.ring_bytes, "waiting": one.waiting}
                for one in attachments
            ],
        }
        privileges = table.get("privileges")
        return cls(
            name=table["name"],
            parent=table["parent"],
            module=module,
            memory_bytes=table["memory"],
            vps=table["vps"],
            privileges=None if privileges is None else tuple(privileges),
            attachments=attachments,
            boot=boot,
            files=tuple(files),
        )
