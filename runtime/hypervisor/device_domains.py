"""Device domains: which pages of a partition a device may touch.

A device here is a partition that drives one, named by its id. A domain belongs to the partition whose pages it
lists. Once attached to a domain, a device is given nothing but what stands in it: every other slot is refused at
MapGpaPages, whoever asks. What an IOMMU would look up at each access is looked up when a descriptor is handed
out, because nobody can take it back. So a slot that its device maps stays in its domain, and a domain with
devices stays.

A device whose domain went with its partition stays attached to nothing, and gets nothing, until it is detached.

Source: Linux include/hyperv/hvgdk_mini.h, HVCALL_CREATE_DEVICE_DOMAIN and its neighbours; drivers/iommu/hyperv.
"""

from __future__ import annotations

from typing import Final

from runtime.abi import (
    DEVICE_DOMAIN_PAGES,
    MAPPING_PAGES,
    SLOTS_PER_CALL_MAX,
    HvStatus,
    MapFlags,
    PartitionState,
)
from runtime.hypervisor.device_domain import DeviceDomain
from runtime.hypervisor.gpa_space import Entry, check_access, check_range
from runtime.hypervisor.machine import Call, Machine
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.replies import DONE, Refused, Reply

_LIVING: Final = (PartitionState.UNINITIALIZED, PartitionState.ACTIVE)


def create_device_domain(call: Call, *, domain: int) -> Reply:
    target = call.target
    if domain in target.device_domains:
        raise Refused(HvStatus.OBJECT_IN_USE)
    target.pool.require(DEVICE_DOMAIN_PAGES)
    target.pool.charge(DEVICE_DOMAIN_PAGES)
    target.device_domains[domain] = DeviceDomain(domain)
    return DONE


def delete_device_domain(call: Call, *, domain: int) -> Reply:
    found = _find(call.target, domain)
    if found.devices:
        raise Refused(HvStatus.OBJECT_IN_USE)
    _delete(call.target, found)
    return DONE


def attach_device_domain(call: Call, *, domain: int, device: int) -> Reply:
    target = call.target
    found = _find(target, domain)
    partition = _device(call, device)
    if partition is target:
        raise Refused(HvStatus.INVALID_DEVICE_ID)
    if partition.device_domain is not None or partition.state not in _LIVING:
        raise Refused(HvStatus.INVALID_DEVICE_STATE)
    for entry in partition.gpa.entries.values():
        if not entry.own and entry.access & ~int(found.slots.get(entry.slot, MapFlags(0))):
            raise Refused(HvStatus.OBJECT_IN_USE)  # it holds pages that the domain would not give it
    partition.device_domain = (target.id, domain)
    found.devices = sorted([*found.devices, partition.id])
    return DONE


def detach_device_domain(call: Call, *, device: int) -> Reply:
    partition = _device(call, device)
    if partition.device_domain is None:
        raise Refused(HvStatus.INVALID_DEVICE_STATE)
    owner = partition.device_domain[0]
    if owner not in call.machine.partitions:
        owner = call.caller.id  # nobody is left to be named
    if owner != call.target.id:
        raise Refused(HvStatus.INVALID_DEVICE_STATE)
    if any(not entry.own for entry in partition.gpa.entries.values()):
        raise Refused(HvStatus.OBJECT_IN_USE)
    detach(call.machine, partition)
    return DONE


def map_device_gpa_pages(call: Call, *, domain: int, gpfn: int, pages: int, flags: int) -> Reply:
    """Adds every slot that the range touches; one that is in the domain already gets the new access as well."""
    target = call.target
    found = _find(target, domain)
    access = check_access(flags)
    entries = _own_entries(target, gpfn, pages)
    if any(access & ~int(entry.access) for entry in entries):
        raise Refused(HvStatus.INVALID_PARAMETER)
    new = [entry for entry in entries if entry.slot not in found.slots]
    target.pool.require(MAPPING_PAGES * len(new))
    target.pool.charge(MAPPING_PAGES * len(new))
    for entry in entries:
        found.slots[entry.slot] = found.slots.get(entry.slot, MapFlags(0)) | access
    return Reply(values={"slots": len(entries)})


def unmap_device_gpa_pages(call: Call, *, domain: int, gpfn: int, pages: int) -> Reply:
    machine, target = call.machine, call.target
    found = _find(target, domain)
    listed = [entry.slot for entry in _own_entries(target, gpfn, pages) if entry.slot in found.slots]
    devices = set(found.devices)
    if any(mapper in devices for slot in listed for mapper, _ in machine.slots[slot].mappers):
        raise Refused(HvStatus.OBJECT_IN_USE)
    for slot in listed:
        _drop_slot(target, found, slot)
    return Reply(values={"slots": len(listed)})


def _find(owner: Partition, domain: int) -> DeviceDomain:
    if (found := owner.device_domains.get(domain)) is None:
        raise Refused(HvStatus.NOT_FOUND)
    return found


def _device(call: Call, device: int) -> Partition:
    """A partition below the caller: it could give it pages itself, so it may also say which."""
    found = call.machine.partitions.get(device)
    if found is None or not call.machine.is_below(found, call.caller):
        raise Refused(HvStatus.INVALID_DEVICE_ID)
    return found


def _own_entries(owner: Partition, gpfn: int, pages: int) -> list[Entry]:
    check_range(gpfn, pages)
    entries = owner.gpa.touching(gpfn, pages)
    if not entries:
        raise Refused(HvStatus.INVALID_PARAMETER)
    if len(entries) > SLOTS_PER_CALL_MAX or any(not entry.own for entry in entries):
        raise Refused(HvStatus.INVALID_PARAMETER)
    return entries


# -- what the rest of the machine asks ---------------------------------------------------------------------


def allows(machine: Machine, device: Partition, entry: Entry, access: MapFlags) -> bool:
    """Whether a slot of somebody else may be mapped into this partition."""
    if device.device_domain is None:
        return True
    owner, domain = device.device_domain
    holder = machine.partitions.get(owner)
    found = holder.device_domains.get(domain) if holder is not None else None
    return found is not None and not access & ~int(found.slots.get(entry.slot, MapFlags(0)))


def forget_slot(owner: Partition, slot: int) -> None:
    """Its owner gives the slot back, so nobody maps it any more."""
    for domain in owner.device_domains.values():
        if slot in domain.slots:
            _drop_slot(owner, domain, slot)


def detach(machine: Machine, device: Partition) -> None:
    """It is detached, or gone."""
    if device.device_domain is None:
        return
    owner, domain = device.device_domain
    holder = machine.partitions.get(owner)
    if holder is not None and (found := holder.device_domains.get(domain)) is not None:
        found.devices.remove(device.id)
    device.device_domain = None


def release_domains(owner: Partition) -> None:
    """The partition is gone. Devices stay attached to what is not there."""
    for domain in list(owner.device_domains.values()):
        _delete(owner, domain)


def _delete(owner: Partition, domain: DeviceDomain) -> None:
    for slot in list(domain.slots):
        _drop_slot(owner, domain, slot)
    del owner.device_domains[domain.id]
    owner.pool.refund(DEVICE_DOMAIN_PAGES)


def _drop_slot(owner: Partition, domain: DeviceDomain, slot: int) -> None:
    del domain.slots[slot]
    owner.pool.refund(MAPPING_PAGES)
