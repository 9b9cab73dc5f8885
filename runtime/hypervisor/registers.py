"""The synthetic registers of a VP: one row each, with the privilege that its own partition needs for it.

A parent with CREATE_PARTITIONS reads and writes all of its children's. A call names many registers; each is checked
before any is written.

Source: TLFS, HvCallGetVpRegisters, HvCallSetVpRegisters; the pages of SynIC, timer, partition reference and crash
MSRs; Linux include/hyperv/hvgdk_mini.h, hv_register_name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from runtime.abi import (
    CRASH_MESSAGE,
    CRASH_NOTIFY,
    CRASH_REGISTERS,
    SINT_AUTO_EOI,
    SINT_MASKED,
    SINT_POLLING,
    SINTS_PER_VP,
    TIMER_AUTO_ENABLE,
    TIMER_DIRECT,
    TIMER_ENABLE,
    TIMER_LAZY,
    TIMER_PERIODIC,
    TIMER_SINT_SHIFT,
    TIMER_VECTOR_SHIFT,
    TIMERS_PER_VP,
    VECTOR_MIN,
    HvStatus,
    Privilege,
    RegisterName,
    sint_register,
    timer_config_register,
    timer_count_register,
)
from runtime.hypervisor import crashes, intercepts, ports, reference_time, synic
from runtime.hypervisor.machine import Call
from runtime.hypervisor.replies import DONE, Refused, Reply
from runtime.hypervisor.virtual_processor import VirtualProcessor
from runtime.hypervisor.vps import arm_timer, find_vp

_U64: Final = 2**64 - 1
_ENABLE: Final = 1
_PAGE_BITS: Final = _ENABLE | (_U64 & ~0xFFF)  # enable, GPFN from bit 12
_SINT_BITS: Final = 0xFF | SINT_MASKED | SINT_AUTO_EOI | SINT_POLLING
_TIMER_BITS: Final = (
    TIMER_ENABLE
    | TIMER_PERIODIC
    | TIMER_LAZY
    | TIMER_AUTO_ENABLE
    | TIMER_DIRECT
    | 0xFF << TIMER_VECTOR_SHIFT
    | 0xF << TIMER_SINT_SHIFT
)
_SYNIC_VERSION: Final = 1
_APIC_HZ: Final = 1_000_000_000  # the broker's timerfd counts nanoseconds
_P = Privilege

_Read = Callable[["Call", "VirtualProcessor"], int]
_Write = Callable[["Call", "VirtualProcessor", int], None]
_Check = Callable[["Call", "VirtualProcessor", int], None]


def _accept(call: Call, vp: VirtualProcessor, value: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Register:
    """A row of the table. `check` refuses a value before anything is written; `write` cannot fail."""

    privilege: Privilege
    read: _Read
    write: _Write | None = None  # None: it is read only
    bits: int = _U64  # those that may be set
    check: _Check = _accept


# -- SynIC -------------------------------------------------------------------------------------------------


def _check_vector(call: Call, vp: VirtualProcessor, value: int) -> None:
    if value & 0xFF < VECTOR_MIN and not value & SINT_MASKED:
        raise Refused(HvStatus.INVALID_REGISTER_VALUE)


def _sint(sint: int) -> Register:
    def write(call: Call, vp: VirtualProcessor, value: int) -> None:
        vp.sints[sint] = value

    return Register(_P.ACCESS_SYNIC, lambda call, vp: vp.sints[sint], write, _SINT_BITS, _check_vector)


def _write_scontrol(call: Call, vp: VirtualProcessor, value: int) -> None:
    vp.scontrol = value


def _write_simp(call: Call, vp: VirtualProcessor, value: int) -> None:
    vp.simp = value


def _write_siefp(call: Call, vp: VirtualProcessor, value: int) -> None:
    vp.siefp = value


def _write_eom(call: Call, vp: VirtualProcessor, value: int) -> None:
    synic.end_of_message(call.machine, call.target, vp)


def _check_no_ring(call: Call, vp: VirtualProcessor, value: int) -> None:
    if value & _ENABLE:
        raise Refused(HvStatus.FEATURE_UNAVAILABLE)  # nothing of ours posts to event rings


def _ignore(call: Call, vp: VirtualProcessor, value: int) -> None:
    pass


# -- timers ------------------------------------------------------------------------------------------------


def _check_timer(call: Call, vp: VirtualProcessor, value: int) -> None:
    vector = value >> TIMER_VECTOR_SHIFT & 0xFF
    if value & TIMER_DIRECT and value & TIMER_ENABLE and vector < VECTOR_MIN:
        raise Refused(HvStatus.INVALID_REGISTER_VALUE)


def _timer_config(index: int) -> Register:
    def write(call: Call, vp: VirtualProcessor, value: int) -> None:
        vp.timers[index].write_config(value, reference_time.read(call.machine, call.target))
        arm_timer(call.machine, call.target, vp, index)

    def read(call: Call, vp: VirtualProcessor) -> int:
        return vp.timers[index].config

    return Register(_P.ACCESS_SYNTHETIC_TIMERS, read, write, _TIMER_BITS, _check_timer)


def _timer_count(index: int) -> Register:
    def write(call: Call, vp: VirtualProcessor, value: int) -> None:
        vp.timers[index].write_count(value, reference_time.read(call.machine, call.target))
        arm_timer(call.machine, call.target, vp, index)

    return Register(_P.ACCESS_SYNTHETIC_TIMERS, lambda call, vp: vp.timers[index].count, write)


# -- clocks and the processor's own ------------------------------------------------------------------------


def _read_runtime(call: Call, vp: VirtualProcessor) -> int:
    pid = call.target.pid
    return 0 if pid is None else call.machine.resources.processor_time_ns(pid, vp.thread) // 100


def _check_thread(call: Call, vp: VirtualProcessor, value: int) -> None:
    pid = call.target.pid
    if value and (pid is None or not call.machine.resources.has_thread(pid, value)):
        raise Refused(HvStatus.INVALID_REGISTER_VALUE)


def _write_thread(call: Call, vp: VirtualProcessor, value: int) -> None:
    vp.thread = value


# -- what an intercept shows and its answer sets -------------------------------------------------------------


def _general(name: int) -> Register:
    def write(call: Call, vp: VirtualProcessor, value: int) -> None:
        vp.intercept.registers[name - RegisterName.RAX] = value

    def read(call: Call, vp: VirtualProcessor) -> int:
        return vp.intercept.registers[name - RegisterName.RAX]

    return Register(Privilege(0), read, write, check=intercepts.check_answer)


def _read_intercept_suspend(call: Call, vp: VirtualProcessor) -> int:
    return int(vp.intercept.access is not None)


def _write_intercept_suspend(call: Call, vp: VirtualProcessor, value: int) -> None:
    intercepts.resume(call.machine, call.target, vp)


# -- what the guest says of itself -------------------------------------------------------------------------


def _write_os_id(call: Call, vp: VirtualProcessor, value: int) -> None:
    call.target.guest.os_id = value


def _write_reference_tsc(call: Call, vp: VirtualProcessor, value: int) -> None:
    call.target.guest.reference_tsc = value


def _crash_parameter(number: int) -> Register:
    def write(call: Call, vp: VirtualProcessor, value: int) -> None:
        call.target.guest.crash[number] = value

    return Register(Privilege(0), lambda call, vp: call.target.guest.crash[number], write)


def _write_crash(call: Call, vp: VirtualProcessor, value: int) -> None:
    if value & CRASH_NOTIFY:
        crashes.report(call.machine, call.target, vp.index, bool(value & CRASH_MESSAGE))


_R = RegisterName
REGISTERS: Final[Mapping[int, Register]] = MappingProxyType(
    {
        _R.EXPLICIT_SUSPEND: Register(_P.ACCESS_SYNIC, lambda call, vp: int(not vp.running)),
        _R.INTERCEPT_SUSPEND: Register(
            Privilege(0), _read_intercept_suspend, _write_intercept_suspend, 0, intercepts.check_answer
        ),
        **{name: _general(name) for name in range(_R.RAX, _R.RFLAGS + 1)},
        **{_R.CRASH_P0 + number: _crash_parameter(number) for number in range(CRASH_REGISTERS)},
        # Read, it says what it can do.
        _R.CRASH_CTL: Register(
            Privilege(0),
            lambda call, vp: CRASH_NOTIFY | CRASH_MESSAGE,
            _write_crash,
            CRASH_NOTIFY | CRASH_MESSAGE,
        ),
        _R.TSC_FREQUENCY: Register(_P.ACCESS_FREQUENCY, lambda call, vp: call.machine.resources.tsc_hz),
        _R.APIC_FREQUENCY: Register(_P.ACCESS_FREQUENCY, lambda call, vp: _APIC_HZ),
        _R.VP_RUNTIME: Register(_P.ACCESS_VP_RUNTIME, _read_runtime),
        _R.GUEST_OS_ID: Register(
            _P.ACCESS_HYPERCALL_MSRS, lambda call, vp: call.target.guest.os_id, _write_os_id
        ),
        _R.VP_INDEX: Register(_P.ACCESS_VP_INDEX, lambda call, vp: vp.index),
        _R.TIME_REF_COUNT: Register(
            _P.ACCESS_REFERENCE_COUNTER, lambda call, vp: reference_time.read(call.machine, call.target)
        ),
        _R.REFERENCE_TSC: Register(
            _P.ACCESS_REFERENCE_TSC,
            lambda call, vp: call.target.guest.reference_tsc,
            _write_reference_tsc,
            _PAGE_BITS,
        ),
        **{sint_register(sint): _sint(sint) for sint in range(SINTS_PER_VP)},
        _R.SCONTROL: Register(_P.ACCESS_SYNIC, lambda call, vp: vp.scontrol, _write_scontrol, _ENABLE),
        _R.SVERSION: Register(_P.ACCESS_SYNIC, lambda call, vp: _SYNIC_VERSION),
        _R.SIEFP: Register(_P.ACCESS_SYNIC, lambda call, vp: vp.siefp, _write_siefp, _PAGE_BITS),
        _R.SIMP: Register(_P.ACCESS_SYNIC, lambda call, vp: vp.simp, _write_simp, _PAGE_BITS),
        _R.EOM: Register(_P.ACCESS_SYNIC, lambda call, vp: 0, _write_eom),
        _R.SIRBP: Register(_P.ACCESS_SYNIC, lambda call, vp: 0, _ignore, _PAGE_BITS, _check_no_ring),
        **{timer_config_register(index): _timer_config(index) for index in range(TIMERS_PER_VP)},
        **{timer_count_register(index): _timer_count(index) for index in range(TIMERS_PER_VP)},
        _R.VP_THREAD: Register(
            _P.ACCESS_VP_RUNTIME, lambda call, vp: vp.thread, _write_thread, check=_check_thread
        ),
    }
)


def get_vp_registers(call: Call, *, vp: int, names: list[int]) -> Reply:
    processor = find_vp(call.target, vp)
    rows = [_row(call, name) for name in names]
    return Reply(values={"values": [row.read(call, processor) for row in rows]})


def set_vp_registers(call: Call, *, vp: int, registers: list[tuple[int, int]]) -> Reply:
    processor = find_vp(call.target, vp)
    writes: list[tuple[_Write, int]] = []
    for name, value in registers:
        row = _row(call, name)
        if row.write is None:
            raise Refused(HvStatus.ACCESS_DENIED)
        if value & ~row.bits:
            raise Refused(HvStatus.INVALID_REGISTER_VALUE)
        row.check(call, processor, value)
        writes.append((row.write, value))
    sints, could_take = list(processor.sints), processor.takes_messages
    for write, value in writes:
        write(call, processor, value)
    if processor.sints != sints:
        ports.sints_changed(call.machine, call.target, processor, sints)
    if processor.takes_messages and not could_take:  # what waited while it was off
        synic.end_of_message(call.machine, call.target, processor)
    return DONE


def _row(call: Call, name: int) -> Register:
    row = REGISTERS.get(name)
    if row is None:
        raise Refused(HvStatus.UNKNOWN_REGISTER_NAME)
    if call.target is call.caller and row.privilege & ~call.caller.privileges:
        raise Refused(HvStatus.ACCESS_DENIED)
    return row
