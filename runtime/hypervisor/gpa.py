"""Guest physical address spaces: tables of slots, and the slots, each one memfd.

A slot belongs to the partition whose pool paid for it. Others map it whole; while they do, its owner cannot
give it back, because those pages would go on living in somebody's process without anyone paying for them.

Source: TLFS, HvCallMapGpaPages, HvCallUnmapGpaPages.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from runtime.abi import (
    GPFN_MAX,
    MAPPING_PAGES,
    SLOT_PAGES_MAX,
    SLOTS_PER_CALL_MAX,
    SLOTS_PER_PARTITION_MAX,
    HvStatus,
    MapFlags,
    PartitionState,
)
from runtime.hypervisor.effects import CloseSlot
from runtime.hypervisor.replies import Refused, Reply, SlotHandle

if TYPE_CHECKING:
    from runtime.hypervisor.machine import Call, Machine
    from runtime.hypervisor.partitions import Partition

_ACCESS: Final = MapFlags.READ | MapFlags.WRITE


@dataclass(slots=True)
class Slot:
    """One memfd of whole pages."""

    id: int
    owner: int  # partition that pays
    pages: int
    mappers: list[tuple[int, int]] = field(default_factory=list)  # (partition, gpfn) of each foreign entry


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of a partition's table."""

    gpfn: int
    pages: int
    slot: int
    access: MapFlags
    own: bool  # the entry that the owner's pool pays for, rather than a mapping of it

    @property
    def end(self) -> int:
        return self.gpfn + self.pages


@dataclass(slots=True)
class GpaSpace:
    """Entries by GPFN, without overlaps."""

    entries: dict[int, Entry] = field(default_factory=dict)
    bases: list[int] = field(default_factory=list)  # sorted keys of `entries`

    def add(self, entry: Entry) -> None:
        insort(self.bases, entry.gpfn)
        self.entries[entry.gpfn] = entry

    def remove(self, gpfn: int) -> Entry:
        self.bases.remove(gpfn)
        return self.entries.pop(gpfn)

    def touching(self, gpfn: int, pages: int) -> list[Entry]:
        """Every entry that shares a page with the range, ascending."""
        place = max(bisect_right(self.bases, gpfn) - 1, 0)
        found = []
        for base in self.bases[place:]:
            if base >= gpfn + pages:
                break
            if self.entries[base].end > gpfn:
                found.append(self.entries[base])
        return found

    def covering(self, gpfn: int, pages: int) -> list[Entry]:
        """As `touching`. Refused if one page of the range is not mapped."""
        found, reached = self.touching(gpfn, pages), gpfn
        for entry in found:
            if entry.gpfn > reached:
                break
            reached = entry.end
        if reached < gpfn + pages:
            raise Refused(HvStatus.INVALID_PARAMETER)
        return found


def map_gpa_pages(
    call: Call, *, gpfn: int, pages: int, flags: int, source_partition: int | None, source_gpfn: int | None
) -> Reply:
    _check_range(gpfn, pages)
    if flags & ~int(_ACCESS | MapFlags.ZEROED) or not flags & MapFlags.READ:
        raise Refused(HvStatus.INVALID_PARAMETER)
    access = MapFlags(flags) & _ACCESS
    if source_partition is None:
        if source_gpfn is not None or not flags & MapFlags.ZEROED:
            raise Refused(HvStatus.INVALID_PARAMETER)
        return _map_new(call, gpfn, pages, access)
    if source_gpfn is None or flags & MapFlags.ZEROED:
        raise Refused(HvStatus.INVALID_PARAMETER)
    _check_range(source_gpfn, pages)
    source = call.machine.partition(call.caller, source_partition)
    if source is not call.caller and not call.machine.is_below(source, call.caller):
        raise Refused(HvStatus.ACCESS_DENIED)
    if source.state is not PartitionState.ACTIVE:
        raise Refused(HvStatus.INVALID_PARTITION_STATE)
    return _map_from(call, source, source_gpfn, pages, gpfn, access)


def _check_range(gpfn: int, pages: int) -> None:
    if not 0 < pages <= SLOT_PAGES_MAX or gpfn > GPFN_MAX - pages + 1:
        raise Refused(HvStatus.INVALID_PARAMETER)


def _map_new(call: Call, gpfn: int, pages: int, access: MapFlags) -> Reply:
    machine, target = call.machine, call.target
    if target.gpa.touching(gpfn, pages):
        raise Refused(HvStatus.OBJECT_IN_USE)
    if len(target.gpa.bases) >= SLOTS_PER_PARTITION_MAX:
        raise Refused(HvStatus.NO_RESOURCES)
    target.pool.require(pages)
    slot = Slot(machine.next_slot, target.id, pages)
    machine.resources.create_slot(slot.id, pages)
    machine.next_slot += 1
    machine.slots[slot.id] = slot
    target.pool.charge(pages)
    entry = Entry(gpfn, pages, slot.id, access, own=True)
    target.gpa.add(entry)
    return _reply(call, [(entry, gpfn)])


def _map_from(
    call: Call, source: Partition, source_gpfn: int, pages: int, gpfn: int, access: MapFlags
) -> Reply:
    machine, target = call.machine, call.target
    found = source.gpa.covering(source_gpfn, pages)
    if len(found) > SLOTS_PER_CALL_MAX:
        raise Refused(HvStatus.INVALID_PARAMETER)
    shift = gpfn - source_gpfn
    first, end = found[0].gpfn + shift, found[-1].end + shift
    if first < 0 or end > GPFN_MAX + 1 or any(access & ~int(entry.access) for entry in found):
        raise Refused(HvStatus.INVALID_PARAMETER)
    if target.gpa.touching(first, end - first):
        raise Refused(HvStatus.OBJECT_IN_USE)
    if len(target.gpa.bases) + len(found) > SLOTS_PER_PARTITION_MAX:
        raise Refused(HvStatus.NO_RESOURCES)
    target.pool.require(MAPPING_PAGES * len(found))
    mapped = []
    for theirs in found:
        entry = Entry(theirs.gpfn + shift, theirs.pages, theirs.slot, access, own=False)
        target.pool.charge(MAPPING_PAGES)
        target.gpa.add(entry)
        machine.slots[entry.slot].mappers.append((target.id, entry.gpfn))
        mapped.append((entry, theirs.gpfn))
    return _reply(call, mapped)


def _reply(call: Call, mapped: list[tuple[Entry, int]]) -> Reply:
    """Descriptors go to the partition whose space it is, to nobody else."""
    rows: list[object] = [
        {"gpfn": entry.gpfn, "source_gpfn": source, "pages": entry.pages, "flags": int(entry.access)}
        for entry, source in mapped
    ]
    handles = tuple(SlotHandle(entry.slot, bool(entry.access & MapFlags.WRITE)) for entry, _ in mapped)
    return Reply(values={"slots": rows}, handles=handles if call.target is call.caller else ())


def claim_gpa_pages(call: Call, *, gpfn: int, pages: int) -> Reply:
    _check_range(gpfn, pages)
    found = call.target.gpa.touching(gpfn, pages)
    if not found:
        raise Refused(HvStatus.NOT_FOUND)
    if len(found) > SLOTS_PER_CALL_MAX:
        raise Refused(HvStatus.INVALID_PARAMETER)
    return _reply(call, [(entry, entry.gpfn) for entry in found])


def unmap_gpa_pages(call: Call, *, gpfn: int, pages: int) -> Reply:
    if pages == 0 or gpfn > GPFN_MAX or pages > GPFN_MAX + 1 - gpfn:
        raise Refused(HvStatus.INVALID_PARAMETER)
    found = call.target.gpa.touching(gpfn, pages)
    if any(entry.gpfn < gpfn or entry.end > gpfn + pages for entry in found):
        raise Refused(HvStatus.INVALID_PARAMETER)
    if any(entry.own and call.machine.slots[entry.slot].mappers for entry in found):
        raise Refused(HvStatus.OBJECT_IN_USE)
    for entry in found:
        _drop(call.machine, call.target, entry)
    return Reply(values={"slots": len(found)})


def _drop(machine: Machine, partition: Partition, entry: Entry) -> None:
    partition.gpa.remove(entry.gpfn)
    if entry.own:
        assert not machine.slots[entry.slot].mappers
        del machine.slots[entry.slot]
        partition.pool.refund(entry.pages)
        machine.effects.append(CloseSlot(entry.slot))
    else:
        machine.slots[entry.slot].mappers.remove((partition.id, entry.gpfn))
        partition.pool.refund(MAPPING_PAGES)


def release_space(machine: Machine, partition: Partition) -> None:
    """The partition is gone: whoever still maps a slot of it loses the entry, and gets its page back."""
    for entry in list(partition.gpa.entries.values()):
        if not entry.own:
            _drop(machine, partition, entry)
    for entry in list(partition.gpa.entries.values()):
        for mapper, gpfn in list(machine.slots[entry.slot].mappers):
            other = machine.partitions[mapper]
            _drop(machine, other, other.gpa.entries[gpfn])
        _drop(machine, partition, entry)
