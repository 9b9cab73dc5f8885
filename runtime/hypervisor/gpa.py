"""Guest physical address spaces: tables of slots, and the slots, each one memfd.

A slot belongs to the partition whose pool paid for it. Others map it whole; while they do, its owner cannot
give it back, because those pages would go on living in somebody's process without anyone paying for them.

Source: TLFS, HvCallMapGpaPages, HvCallUnmapGpaPages.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from runtime.abi import (
    GPFN_MAX,
    MAPPING_PAGES,
    PAGE_BYTES,
    SLOTS_PER_CALL_MAX,
    SLOTS_PER_PARTITION_MAX,
    HvStatus,
    MapFlags,
    PartitionState,
)
from runtime.hypervisor import device_domains
from runtime.hypervisor.effects import CloseSlot
from runtime.hypervisor.gpa_space import Entry, Slot, check_access, check_range
from runtime.hypervisor.machine import Call, Machine
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.replies import Refused, Reply, SlotHandle

PAGE_BITS: Final = PAGE_BYTES.bit_length() - 1


def map_gpa_pages(
    call: Call, *, gpfn: int, pages: int, flags: int, source_partition: int | None, source_gpfn: int | None
) -> Reply:
    check_range(gpfn, pages)
    access = check_access(flags & ~int(MapFlags.ZEROED))
    _check_width(call.target, gpfn + pages)
    if source_partition is None:
        if source_gpfn is not None or not flags & MapFlags.ZEROED:
            raise Refused(HvStatus.INVALID_PARAMETER)
        return _map_new(call, gpfn, pages, access)
    if source_gpfn is None or flags & MapFlags.ZEROED:
        raise Refused(HvStatus.INVALID_PARAMETER)
    check_range(source_gpfn, pages)
    source = _source(call, source_partition)
    return _map_from(call, source, source_gpfn, pages, gpfn, access)


def map_sparse_gpa_pages(
    call: Call, *, flags: int, source_partition: int, pages: list[tuple[int, int]]
) -> Reply:
    """Slots from anywhere to anywhere; all or none."""
    access = check_access(flags)
    if not pages:
        raise Refused(HvStatus.INVALID_PARAMETER)
    source = _source(call, source_partition)
    plan = []
    for gpfn, source_gpfn in pages:
        check_range(gpfn, 1)
        check_range(source_gpfn, 1)
        plan += _plan(call, source, source_gpfn, 1, gpfn, access)
    return _map_planned(call, plan)


def _source(call: Call, source_partition: int) -> Partition:
    source = call.machine.partition(call.caller, source_partition)
    if source is not call.caller and not call.machine.is_below(source, call.caller):
        raise Refused(HvStatus.ACCESS_DENIED)
    if source.state is not PartitionState.ACTIVE:
        raise Refused(HvStatus.INVALID_PARTITION_STATE)
    call.machine.works_for(call.caller, source)
    return source


def _check_width(partition: Partition, end: int) -> None:
    if end > 1 << partition.address_bits - PAGE_BITS:
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
    return _map_planned(call, _plan(call, source, source_gpfn, pages, gpfn, access))


def _plan(
    call: Call, source: Partition, source_gpfn: int, pages: int, gpfn: int, access: MapFlags
) -> list[tuple[Entry, int]]:
    """New entries, with where the source has each. Nothing is changed yet."""
    machine, target = call.machine, call.target
    found = source.gpa.covering(source_gpfn, pages)
    if len(found) > SLOTS_PER_CALL_MAX:
        raise Refused(HvStatus.INVALID_PARAMETER)
    shift = gpfn - source_gpfn
    first, end = found[0].gpfn + shift, found[-1].end + shift
    if first < 0 or end > GPFN_MAX + 1 or any(access & ~int(entry.access) for entry in found):
        raise Refused(HvStatus.INVALID_PARAMETER)
    _check_width(target, end)
    if not all(device_domains.allows(machine, target, entry, access) for entry in found):
        raise Refused(HvStatus.ACCESS_DENIED)
    if target.gpa.touching(first, end - first):
        raise Refused(HvStatus.OBJECT_IN_USE)
    return [
        (Entry(theirs.gpfn + shift, theirs.pages, theirs.slot, access, own=False), theirs.gpfn)
        for theirs in found
    ]


def _map_planned(call: Call, plan: list[tuple[Entry, int]]) -> Reply:
    machine, target = call.machine, call.target
    ascending = sorted((entry for entry, _ in plan), key=lambda entry: entry.gpfn)
    if any(before.end > after.gpfn for before, after in pairwise(ascending)):
        raise Refused(HvStatus.OBJECT_IN_USE)
    if len(target.gpa.bases) + len(plan) > SLOTS_PER_PARTITION_MAX:
        raise Refused(HvStatus.NO_RESOURCES)
    target.pool.require(MAPPING_PAGES * len(plan))
    for entry, _ in plan:
        target.pool.charge(MAPPING_PAGES)
        target.gpa.add(entry)
        machine.slots[entry.slot].mappers.append((target.id, entry.gpfn))
    return _reply(call, plan)


def _reply(call: Call, mapped: list[tuple[Entry, int]]) -> Reply:
    """Descriptors go to the partition whose space it is, to nobody else."""
    rows: list[object] = [
        {"gpfn": entry.gpfn, "source_gpfn": source, "pages": entry.pages, "flags": int(entry.access)}
        for entry, source in mapped
    ]
    handles = tuple(SlotHandle(entry.slot, bool(entry.access & MapFlags.WRITE)) for entry, _ in mapped)
    return Reply(values={"slots": rows}, handles=handles if call.target is call.caller else ())


def claim_gpa_pages(call: Call, *, gpfn: int, pages: int) -> Reply:
    check_range(gpfn, pages)
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
        if not entry.own:
            call.machine.works_for(call.caller, call.machine.partitions[call.machine.slots[entry.slot].owner])
        _drop(call.machine, call.target, entry)
    return Reply(values={"slots": len(found)})


def _drop(machine: Machine, partition: Partition, entry: Entry) -> None:
    partition.gpa.remove(entry.gpfn)
    if entry.own:
        assert not machine.slots[entry.slot].mappers
        device_domains.forget_slot(partition, entry.slot)
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
