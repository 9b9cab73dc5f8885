"""Properties beside the scheduler's: time, suspension, and what processor and hypervisor a partition finds.

Where there is only one possibility, such as the compatibility version, that one can be read and set, and any
other is out of range.

Source: TLFS, HV_PARTITION_PROPERTY_CODE; Linux include/hyperv/hvhdk.h.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from runtime.abi import (
    ADDRESS_BITS_MAX,
    ADDRESS_BITS_MIN,
    HvStatus,
    PartitionProperty,
    PartitionState,
    Privilege,
)
from runtime.hypervisor import pausing, reference_time
from runtime.hypervisor.effects import KillPartition
from runtime.hypervisor.machine import Call
from runtime.hypervisor.program import Process
from runtime.hypervisor.replies import Refused
from runtime.hypervisor.vps import clock_changed

_P = PartitionProperty
_ONLY_ONE: Final = frozenset({_P.CPU_GROUP_ID, _P.VIRTUAL_TLB_PAGES, _P.COMPATIBILITY_VERSION})  # which is 0
_FEATURES_PRESENT: Final = 0b11  # a hypervisor, with this interface: always
# Bit of the synthetic processor features: the privilege that it stands for.
_FEATURES: Final[Mapping[int, Privilege]] = MappingProxyType(
    {
        2: Privilege.ACCESS_VP_RUNTIME,
        3: Privilege.ACCESS_REFERENCE_COUNTER,
        4: Privilege.ACCESS_SYNIC,
        5: Privilege.ACCESS_SYNTHETIC_TIMERS,
        6: Privilege.ACCESS_APIC,
        7: Privilege.ACCESS_HYPERCALL_MSRS,
        8: Privilege.ACCESS_VP_INDEX,
        9: Privilege.ACCESS_REFERENCE_TSC,
    }
)


def read(call: Call, code: PartitionProperty) -> int | None:
    """None: not a property of this module."""
    target = call.target
    match code:
        case _P.SYNTHETIC_PROCESSOR_FEATURES:
            bits = (1 << bit for bit, privilege in _FEATURES.items() if privilege & target.privileges)
            return _FEATURES_PRESENT | sum(bits)
        case _P.SUSPEND:
            return int(target.suspended)
        case _P.END_PROCESS:
            return 0
        case _P.TIME_FREEZE:
            return int(target.frozen_ns is not None)
        case _P.REFERENCE_TIME:
            return reference_time.read(call.machine, target)
        case _P.PROCESSOR_VENDOR:
            return call.machine.resources.processor.vendor
        case _P.PHYSICAL_ADDRESS_WIDTH:
            return target.address_bits
        case _P.GUEST_OS_ID:
            return target.guest.os_id
        case _ if code in _ONLY_ONE:
            return 0
    return None


def write(call: Call, code: PartitionProperty, value: int) -> bool:
    """False: not a property of this module that can be written."""
    writer = _WRITERS.get(code)
    if writer is not None:
        writer(call, value)
    elif code in _ONLY_ONE:
        if value:
            group = code is _P.CPU_GROUP_ID
            raise Refused(HvStatus.INVALID_CPU_GROUP_ID if group else HvStatus.PROPERTY_VALUE_OUT_OF_RANGE)
    else:
        return False
    return True


def _require_early(call: Call) -> None:
    if call.target.state is not PartitionState.UNINITIALIZED:
        raise Refused(HvStatus.INVALID_PARTITION_STATE)


def _switch(value: int) -> bool:
    if value > 1:
        raise Refused(HvStatus.PROPERTY_VALUE_OUT_OF_RANGE)
    return bool(value)


def _write_features(call: Call, value: int) -> None:
    _require_early(call)
    known = _FEATURES_PRESENT | sum(1 << bit for bit in _FEATURES)
    if value & ~known or value & _FEATURES_PRESENT != _FEATURES_PRESENT:
        raise Refused(HvStatus.PROPERTY_VALUE_OUT_OF_RANGE)
    granted = Privilege(0)
    for bit, privilege in _FEATURES.items():
        if value >> bit & 1:
            granted |= privilege
    if granted & ~int(call.caller.privileges):  # nobody grants what it does not hold
        raise Refused(HvStatus.ACCESS_DENIED)
    every = Privilege(0)
    for privilege in _FEATURES.values():
        every |= privilege
    call.target.privileges = Privilege(call.target.privileges & ~int(every) | granted)


def _write_suspend(call: Call, value: int) -> None:
    """Its process is stopped and continued. What it promised is not held against it meanwhile."""
    pausing.suspend(call.machine, call.target, _switch(value))


def _write_end_process(call: Call, value: int) -> None:
    """What follows, follows from its process's end; that of a driver in the hypervisor would be the machine's."""
    if not _switch(value) or call.target.process not in (Process.STARTING, Process.RUNNING):
        return
    if call.machine.loads_drivers and call.target.outlives_process:
        raise Refused(HvStatus.OPERATION_DENIED)
    call.machine.effects.append(KillPartition(call.target.id))


def _write_time_freeze(call: Call, value: int) -> None:
    reference_time.freeze(call.machine, call.target, _switch(value))
    clock_changed(call.machine, call.target)


def _write_reference_time(call: Call, value: int) -> None:
    if call.target.frozen_ns is None:
        raise Refused(HvStatus.OPERATION_DENIED)  # a clock that runs is not set
    if value > reference_time.MAX_100NS:
        raise Refused(HvStatus.PROPERTY_VALUE_OUT_OF_RANGE)
    reference_time.write(call.machine, call.target, value)
    clock_changed(call.machine, call.target)


def _write_address_width(call: Call, value: int) -> None:
    _require_early(call)
    if not ADDRESS_BITS_MIN <= value <= ADDRESS_BITS_MAX:
        raise Refused(HvStatus.PROPERTY_VALUE_OUT_OF_RANGE)
    call.target.address_bits = value


_WRITERS: Final[Mapping[PartitionProperty, Callable[[Call, int], None]]] = MappingProxyType(
    {
        _P.SYNTHETIC_PROCESSOR_FEATURES: _write_features,
        _P.SUSPEND: _write_suspend,
        _P.END_PROCESS: _write_end_process,
        _P.TIME_FREEZE: _write_time_freeze,
        _P.REFERENCE_TIME: _write_reference_time,
        _P.PHYSICAL_ADDRESS_WIDTH: _write_address_width,
    }
)
