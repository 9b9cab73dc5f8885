"""A parent's part of `partvisor restore`: what the hypervisor kept of a partition is given to the new one.

All of it by calls that any parent may make, after the partition was initialized and before it starts. Its VMBus is
made anew, so nothing is given back at that SINT; what the hypervisor alone posts at SINT 0 would be asked again.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Final

from bus.native import flags_take_all
from bus.synic import SINTS, SLOT_BYTES, VMBUS_SINT, SynicError, SynicMessage, slot_offset
from partitions.machine_plan import PartitionPlan
from partitions.restored import Restored
from runtime.abi import (
    RESTORED_FILE,
    SINTS_PER_VP,
    TIMER_ENABLE,
    TIMER_PERIOD_MIN_100NS,
    TIMER_PERIODIC,
    TIMERS_PER_VP,
    VECTOR_MIN,
    HvStatus,
    HypercallError,
    PartitionProperty,
    RegisterName,
    sint_register,
    timer_config_register,
    timer_count_register,
)
from runtime.hypercalls.caller import HypercallPort
from runtime.machine.saved_partition import SavedPartitionError, SavedProcessor

_KEPT_SINTS: Final = tuple(sint for sint in range(1, SINTS) if sint != VMBUS_SINT)
_SYNIC: Final = (
    *(sint_register(sint) for sint in range(SINTS_PER_VP)),
    RegisterName.SIMP,
    RegisterName.SIEFP,
    RegisterName.SCONTROL,
)


class RestoreError(Exception):
    """What was saved does not fit the partition. One line for the user."""


def device_states(plan: PartitionPlan) -> Sequence[tuple[str, bytes]]:
    """(kind, state) of each emulated device. Empty: the partition begins. RestoreError."""
    restored = _restored(plan)
    return () if restored is None else [(one.kind, one.state) for one in restored.description.devices]


def give_back(call: HypercallPort, child: int, plan: PartitionPlan) -> bool:
    """Whether it goes on from something; then its time stands still from here on.

    Raises RestoreError, HypercallError.
    """
    if (restored := _restored(plan)) is None:
        return False
    hypervisor = restored.description.hypervisor
    if len(hypervisor.processors) != plan.vps:
        raise RestoreError(f"it had {len(hypervisor.processors)} processors, not {plan.vps}")
    call.set_property(child, PartitionProperty.TIME_FREEZE, 1)
    own: dict[int, int] = {
        RegisterName.GUEST_OS_ID: hypervisor.os_id,
        RegisterName.REFERENCE_TSC: hypervisor.reference_tsc,
    }
    call.set_vp_registers(own, 0, child)
    for one in hypervisor.processors:
        call.set_vp_registers(_of(one, _SYNIC), one.index, child)
        _give_timers(call, child, one, hypervisor.reference_time)
        _give_pages(call, child, one)
    call.set_property(child, PartitionProperty.REFERENCE_TIME, hypervisor.reference_time)
    return True


def _restored(plan: PartitionPlan) -> Restored | None:
    names = [str(file["name"]) for file in plan.boot["files"]]
    if RESTORED_FILE not in names:
        return None
    try:
        restored = Restored(plan.files[names.index(RESTORED_FILE)])
    except (SavedPartitionError, OSError, ValueError) as error:
        raise RestoreError(f"what was saved of it cannot be read: {error}") from error
    restored.close()
    return restored


def _of(one: SavedProcessor, names: Sequence[int]) -> dict[int, int]:
    return {int(name): one.registers[name] for name in names if name in one.registers}


def _give_timers(call: HypercallPort, child: int, one: SavedProcessor, reference_time: int) -> None:
    """While its time stands still. A one-shot timer's count is a moment; a periodic one begins when it is written, so
    it is written at the moment from which its next expiry is one period away."""
    for number in range(TIMERS_PER_VP):
        names = timer_config_register(number), timer_count_register(number)
        registers = _of(one, names)
        config, count = (registers.get(int(name), 0) for name in names)
        left, now = one.timers_left[number], reference_time
        if config & TIMER_PERIODIC and left is not None:
            now = max(reference_time + left - max(count, TIMER_PERIOD_MIN_100NS), 0)
        if left is None:  # it had stopped, or its message waits in its slot
            registers[int(names[0])] = config & ~TIMER_ENABLE
            if registers.get(int(names[1])):
                registers[int(names[1])] = 0  # otherwise one that enables itself would begin again
        call.set_property(child, PartitionProperty.REFERENCE_TIME, now)
        if registers:
            call.set_vp_registers(registers, one.index, child)


def _give_pages(call: HypercallPort, child: int, one: SavedProcessor) -> None:
    """Messages and flags that nobody has taken, and vectors."""
    flags = bytearray(one.sief)
    for sint in _KEPT_SINTS:
        slot = one.sim[slot_offset(sint) : slot_offset(sint) + SLOT_BYTES]
        with contextlib.suppress(SynicError), _unless_it_is_off():
            if (message := SynicMessage.decode(slot)) is not None:
                call.post_message_direct(child, one.index, sint, message.message_type, message.payload)
        for flag in flags_take_all(flags, sint):
            with _unless_it_is_off():
                call.signal_event_direct(child, one.index, sint, flag)
    vectors = int.from_bytes(one.vectors, "little")
    for vector in range(VECTOR_MIN, len(one.vectors) * 8):
        if vectors >> vector & 1:
            call.assert_interrupt(child, one.index, vector)


@contextlib.contextmanager
def _unless_it_is_off() -> Iterator[None]:
    try:
        yield
    except HypercallError as error:
        if error.status != HvStatus.INVALID_SYNIC_STATE:
            raise
