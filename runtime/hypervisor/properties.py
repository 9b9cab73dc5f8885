"""Partition properties.

Source: TLFS, HvCallGetPartitionProperty, HvCallSetPartitionProperty and their Ex forms; scheduler ranges from
"Scheduler", partition properties.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from types import MappingProxyType
from typing import Final

from runtime.abi import ALL_PRIVILEGES, HvStatus, PartitionProperty, Privilege
from runtime.hypervisor import control_properties
from runtime.hypervisor.effects import RaiseWatch
from runtime.hypervisor.machine import Call, Machine
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.programs import get_program, set_program
from runtime.hypervisor.replies import DONE, Refused, Reply

_WHOLE_PROCESSOR: Final = 0x10000  # reserve and cap are fractions of one, per VP

WORKED_NS_MAX: Final = 10_000_000_000  # that a parent has a child pay at once, for what it did for that
CAPPED_CHILDREN_TOLD_MAX: Final = 250  # of one parent: a map of a packet has 256 entries
_EX_ONLY: Final = (
    PartitionProperty.PROGRAM,
    PartitionProperty.VMM_CAPABILITIES,
    PartitionProperty.CAPPED_TIME,
)
_SHARES: Final = (PartitionProperty.CPU_RESERVE, PartitionProperty.CPU_CAP, PartitionProperty.CPU_WEIGHT)

# property: (least, greatest, default)
_STORED: Final[Mapping[PartitionProperty, tuple[int, int, int]]] = MappingProxyType(
    {
        PartitionProperty.CPU_RESERVE: (0, _WHOLE_PROCESSOR, 0),
        PartitionProperty.CPU_CAP: (0, _WHOLE_PROCESSOR, _WHOLE_PROCESSOR),
        PartitionProperty.CPU_WEIGHT: (1, 10_000, 100),
        PartitionProperty.OUTLIVES_PROCESS: (0, 1, 0),
    }
)


def get_partition_property(call: Call, *, property: int) -> Reply:
    target = call.target
    code = _known(property)
    if (stored := _STORED.get(code)) is not None:
        value = target.properties.get(code, stored[2])
    elif code is PartitionProperty.PRIVILEGE_FLAGS:
        value = int(target.privileges)
    elif code is PartitionProperty.STATE:
        value = int(target.state)
    elif code is PartitionProperty.EXIT_STATUS:
        if target.exit_status is None:
            raise Refused(HvStatus.NO_DATA)
        value = target.exit_status.to_wire()
    elif (found := control_properties.read(call, code)) is not None:
        value = found
    else:
        raise Refused(HvStatus.UNKNOWN_PROPERTY)
    return Reply(values={"value": value})


def set_partition_property(call: Call, *, property: int, value: int) -> Reply:
    code = _known(property)
    if (stored := _STORED.get(code)) is not None:
        least, greatest, _ = stored
        if not least <= value <= greatest or not _reserve_fits_cap(call, code, value):
            raise Refused(HvStatus.PROPERTY_VALUE_OUT_OF_RANGE)
        call.target.properties[code] = value
        call.machine.scheduling_version += 1
        _tell_parent(call.machine, call.target, code)
    elif code is PartitionProperty.PRIVILEGE_FLAGS:
        if value & ~int(ALL_PRIVILEGES):
            raise Refused(HvStatus.PROPERTY_VALUE_OUT_OF_RANGE)
        if value & ~int(call.caller.privileges):  # nobody grants what it does not hold
            raise Refused(HvStatus.ACCESS_DENIED)
        call.target.privileges = Privilege(value)
    elif code is PartitionProperty.CAPPED_TIME:
        _parent_worked(call, value)
    elif code in _EX_ONLY:
        raise Refused(HvStatus.UNKNOWN_PROPERTY)
    elif not control_properties.write(call, code, value):
        raise Refused(HvStatus.OPERATION_DENIED)  # read only
    return DONE


def get_partition_property_ex(call: Call, *, property: int) -> Reply:
    if property == PartitionProperty.VMM_CAPABILITIES:
        return Reply(values={"value": {"banks": [0]}})  # none of what it lists has a meaning here
    if property == PartitionProperty.CAPPED_TIME:
        return Reply(values={"value": _capped_time(call)})
    if property != PartitionProperty.PROGRAM:
        raise Refused(HvStatus.UNKNOWN_PROPERTY)
    return get_program(call)


def set_partition_property_ex(call: Call, *, property: int, value: Mapping[str, object]) -> Reply:
    if property in (PartitionProperty.VMM_CAPABILITIES, PartitionProperty.CAPPED_TIME):
        raise Refused(HvStatus.OPERATION_DENIED)  # read only
    if property != PartitionProperty.PROGRAM:
        raise Refused(HvStatus.UNKNOWN_PROPERTY)
    return set_program(call, value)


def _parent_worked(call: Call, time_ns: int) -> None:
    """The caller has had so much to do because of this child. One without a cap owes nothing."""
    if not 0 <= time_ns <= WORKED_NS_MAX:
        raise Refused(HvStatus.PROPERTY_VALUE_OUT_OF_RANGE)
    machine, target = call.machine, call.target
    if target.properties.get(PartitionProperty.CPU_CAP, _WHOLE_PROCESSOR) < _WHOLE_PROCESSOR:
        machine.worked_ns[target.id] = machine.worked_ns.get(target.id, 0) + time_ns


def _capped_time(call: Call) -> dict[str, int]:
    """As long as it fits a reply: of more children, the first."""
    known = call.machine.capped_ns
    times = ((str(child), known[child]) for child in call.target.children if child in known)
    return dict(islice(times, CAPPED_CHILDREN_TOLD_MAX))


def set_shares(machine: Machine, target: Partition, changed: Mapping[PartitionProperty, int]) -> None:
    """Scheduler properties, all or none; the platform's way. Refused: PROPERTY_VALUE_OUT_OF_RANGE."""
    values = {code: changed.get(code, target.properties.get(code, _STORED[code][2])) for code in _SHARES}
    for code, value in values.items():
        least, greatest, _ = _STORED[code]
        if not least <= value <= greatest:
            raise Refused(HvStatus.PROPERTY_VALUE_OUT_OF_RANGE)
    if values[PartitionProperty.CPU_RESERVE] > values[PartitionProperty.CPU_CAP]:
        raise Refused(HvStatus.PROPERTY_VALUE_OUT_OF_RANGE)
    target.properties |= changed
    machine.scheduling_version += 1
    for code in changed:
        _tell_parent(machine, target, code)


def _tell_parent(machine: Machine, target: Partition, changed: PartitionProperty) -> None:
    """Who works for it keeps to its cap, too, and looks again."""
    if changed is not PartitionProperty.CPU_CAP or target.parent is None:
        return
    if machine.partitions[target.parent].watched_children:
        machine.effects.append(RaiseWatch(target.parent))


def _known(code: int) -> PartitionProperty:
    try:
        return PartitionProperty(code)
    except ValueError:
        raise Refused(HvStatus.UNKNOWN_PROPERTY) from None


def _reserve_fits_cap(call: Call, code: PartitionProperty, value: int) -> bool:
    def current(other: PartitionProperty) -> int:
        return value if other is code else call.target.properties.get(other, _STORED[other][2])

    return current(PartitionProperty.CPU_RESERVE) <= current(PartitionProperty.CPU_CAP)
