"""The whole machine's state, and what one call sees of it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from runtime.abi import PARTITION_SELF, ROOT_PARTITION, HvStatus
from runtime.hypervisor.effects import Effect, Halt, Resources, SynicOperations
from runtime.hypervisor.gpa import Slot
from runtime.hypervisor.partitions import Partition
from runtime.hypervisor.ports import Connection, Port
from runtime.hypervisor.replies import Refused


class RootFailurePolicy(enum.Enum):
    """What becomes of the machine when its root partition is gone."""

    HALT = "halt"


@dataclass(slots=True)
class Machine:
    resources: Resources
    synic: SynicOperations
    on_root_failure: RootFailurePolicy = RootFailurePolicy.HALT
    memory_pages: int = 0  # conserved
    now_ns: int = 0  # of the event being handled; CLOCK_MONOTONIC
    partitions: dict[int, Partition] = field(default_factory=dict)
    slots: dict[int, Slot] = field(default_factory=dict)
    effects: list[Effect] = field(default_factory=list)  # of the event being handled
    # ids are never used twice, so a stale one names nothing
    next_partition: int = ROOT_PARTITION
    next_slot: int = 1
    next_route: int = 1

    def partition(self, caller: Partition, partition_id: int) -> Partition:
        """Refused: INVALID_PARTITION_ID."""
        if partition_id in (PARTITION_SELF, caller.id):
            return caller
        if (found := self.partitions.get(partition_id)) is None:
            raise Refused(HvStatus.INVALID_PARTITION_ID)
        return found

    def is_below(self, partition: Partition, ancestor: Partition) -> bool:
        parent = partition.parent
        while parent is not None:
            if parent == ancestor.id:
                return True
            parent = self.partitions[parent].parent
        return False

    def path(self, partition: Partition) -> str:
        """Its name below the root's children: "guest", or "guest/inner" for a child of it."""
        if partition.parent in (None, ROOT_PARTITION):
            return partition.name
        assert partition.parent is not None
        return f"{self.path(self.partitions[partition.parent])}/{partition.name}"

    def by_path(self, path: str) -> Partition | None:
        """The newest one of this name: a dead one's record may still be there."""
        found = [partition for partition in self.partitions.values() if self.path(partition) == path]
        return max(found, key=lambda partition: partition.id, default=None)

    def port_behind(self, connection: Connection) -> tuple[Partition, Port] | None:
        if connection.port is None:
            return None
        owner = self.partitions[connection.port_partition]
        return owner, owner.ports[connection.port]

    def root_failed(self, reason: str) -> None:
        _ROOT_FAILURE[self.on_root_failure](self, reason)


@dataclass(frozen=True, slots=True)
class Call:
    """One hypercall being handled: its privilege, relation and states are checked already."""

    machine: Machine
    caller: Partition
    target: Partition
    files: int  # descriptors that came with it


def _halt(machine: Machine, reason: str) -> None:
    machine.effects.append(Halt(f"the root partition is gone: {reason}"))


_ROOT_FAILURE: Final[Mapping[RootFailurePolicy, Callable[[Machine, str], None]]] = MappingProxyType(
    {RootFailurePolicy.HALT: _halt}
)
