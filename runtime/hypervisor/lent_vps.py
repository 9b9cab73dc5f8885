"""Port accesses without Python: VPs that the state machine lends to C while the broker waits.

An access wakes the broker twice, and each time most of it would be Python code that has long left the caches. So the VP
whose access was told to its parent is lent to `bus.native.FastIntercepts` for as long as the broker has nothing else to
do: its registers, its intercepted ports, where it stands. There the call that answers it is served, and the next
access, and so on. What is lent comes back before any line of the broker's Python runs, so nobody ever sees half of it,
and whatever else happens is decided upon the state as it is. A VP is lent again unless that was of no use.

Lent is only what the state machine would serve without a further look; C leaves the rest in its socket, untouched.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from bus.intercept_messages import INTERCEPT_SINT, port_instruction
from bus.native import FastIntercepts
from runtime.abi import HvStatus, HypercallCode, InterceptType, PartitionState
from runtime.hypervisor.call_rules import RULES
from runtime.hypervisor.effects import CompleteCall, RaiseLine
from runtime.hypervisor.intercept_delivery import teller_of
from runtime.hypervisor.intercept_state import RFLAGS, RIP, Access
from runtime.hypervisor.interrupts import is_loud
from runtime.hypervisor.recorded import effect_bits
from runtime.hypervisor.recorder import EVENTS_KEPT, EventKind
from runtime.hypervisor.service_time import UNLIMITED_NS

if TYPE_CHECKING:
    from runtime.hypervisor.host import Host
    from runtime.hypervisor.loop import Loop
    from runtime.hypervisor.machine import Machine
    from runtime.hypervisor.partition import Partition
    from runtime.hypervisor.recorded import RecordedHypervisor
    from runtime.hypervisor.sockets import PartitionSockets
    from runtime.hypervisor.virtual_processor import VirtualProcessor

_REGISTERS: Final = struct.Struct(f"<{RFLAGS + 1}Q")
_RANGE: Final = struct.Struct("<HHI")
_ANSWER: Final = HypercallCode.REGISTER_INTERCEPT_RESULT
_NEEDED: Final = int(RULES[_ANSWER].on_child or 0)
_VECTOR: Final = 0xFF  # of a SINT register

assert RULES[_ANSWER].on_child is not None
assert _REGISTERS.size == 144  # FAST_REGISTERS of fast_intercept.h
assert _RANGE.size == 8


class LentVps:
    """Stands between the loop and its epoll. Everything happens in the loop's thread."""

    def __init__(
        self,
        loop: Loop,
        sockets: PartitionSockets,
        host: Host,
        hypervisor: RecordedHypervisor,
        cut_off: Callable[[int], None],
    ) -> None:
        """`cut_off`: of a partition that asks, and does not read the answers."""
        self._loop, self._sockets, self._host = loop, sockets, host
        self._hypervisor, self._recorder, self._cut_off = hypervisor, hypervisor.recorder, cut_off
        self._candidates: dict[int, int] = {}  # VPs by partition
        self._fast: FastIntercepts | None = None  # made when it is first needed: most machines never do
        self._poll: Final = loop.poll
        loop.poll = self._wait

    def hold(self, partition: int) -> None:
        """Its call waits for its parent."""
        self._sockets.hold(partition)
        vps = self._hypervisor.machine.partitions[partition].vps.values()
        self._candidates.update((partition, vp.index) for vp in vps if vp.intercept.access is not None)

    def _wait(self, timeout_ms: int | None) -> list[tuple[int, int]]:
        if not self._candidates or not self._lend():
            return self._poll(timeout_ms)
        assert self._fast is not None
        events: list[tuple[int, int]] = []
        try:
            events = self._fast.wait(
                self._loop.epoll_fd, -1 if timeout_ms is None else timeout_ms, self._recorder.events
            )
        finally:
            self._take_back(self._fast, bool(events))
        return events

    # -- lending -------------------------------------------------------------------------------------------

    def _lend(self) -> bool:
        """Those for which it is possible. False: none."""
        candidates, self._candidates, lent = self._candidates, {}, False
        for identity, index in candidates.items():
            found = lendable(self._hypervisor.machine, identity, index)
            if found is None:
                continue
            child, vp, parent, teller = found
            child_fd, parent_fd = self._sockets.watched_fd(child.id), self._sockets.watched_fd(parent.id)
            if child_fd is None or parent_fd is None:
                continue
            access = vp.intercept.access
            lent |= self._fast_intercepts().lend(
                child.id,
                parent.id,
                vp.index,
                child_fd,
                parent_fd,
                self._host.line_fd(parent.id, teller.index),
                teller.sim_page,
                _REGISTERS.pack(*vp.intercept.registers),
                b"".join(
                    _RANGE.pack(entry.first, entry.last, entry.access)
                    for entry in child.intercepts.table
                    if entry.type is not InterceptType.MMIO
                ),
                (access.address, access.size, access.write) if access is not None else (),
                self._allowance_ns(child.id),
            )
        return lent

    def _allowance_ns(self, partition: int) -> int:
        """Of one in debt, the access that is under way still gets its answer."""
        service = self._sockets.service
        if service is None:
            return UNLIMITED_NS
        return 0 if self._sockets.rests(partition) else service.allowance_ns(partition)

    def _fast_intercepts(self) -> FastIntercepts:
        if self._fast is None:
            self._fast = FastIntercepts(
                self._recorder.records,
                EVENTS_KEPT,
                int(EventKind.CALL),
                int(HypercallCode.ACCESS_PORT),
                int(_ANSWER),
                int(HvStatus.CALL_PENDING),
                effect_bits(RaiseLine),
                effect_bits(CompleteCall),
            )
        return self._fast

    # -- and back ------------------------------------------------------------------------------------------

    def _take_back(self, fast: FastIntercepts, more_came: bool) -> None:
        """`more_came`: that is not for a lent VP."""
        hypervisor, machine = self._hypervisor, self._hypervisor.machine
        rows, deaf, (self._recorder.events, access_ns, answer_ns, waits, looks) = fast.take_back()
        self._loop.turns += waits - 1
        hypervisor.looks += looks
        spent_ns: dict[int, int] = {}
        for child, parent, vp, registers, at, accesses, told, answers, served_ns in rows:
            spent_ns[child] = spent_ns.get(child, 0) + served_ns
            state = machine.partitions[child].vps[vp].intercept
            state.registers[:] = _REGISTERS.unpack(registers)
            state.access = _access(*at, state.registers[RIP]) if at else None
            if not at:
                self._sockets.let_go(child)  # if it was held: its reply has been sent
            else:
                self._sockets.hold(child)
            if accesses or answers or not more_came:
                self._candidates[child] = vp
            hypervisor.served_elsewhere(child, HypercallCode.ACCESS_PORT, accesses, {RaiseLine: told})
            hypervisor.served_elsewhere(parent, _ANSWER, answers, {CompleteCall: answers})
        hypervisor.calls[HypercallCode.ACCESS_PORT].took_ns += access_ns
        hypervisor.calls[_ANSWER].took_ns += answer_ns
        if (service := self._sockets.service) is not None:
            for who, rest_ns in service.served_without_python(spent_ns):
                self._sockets.rest(who, rest_ns)
        for partition in deaf:
            self._cut_off(partition)


def lendable(
    machine: Machine, identity: int, index: int
) -> tuple[Partition, VirtualProcessor, Partition, VirtualProcessor] | None:
    """(the partition, its VP, its parent, the VP that is told of accesses), if from here on all is routine: the VP
    runs, or stands at a port access that its parent has been told of, and until something else happens each check of
    the state machine would come out as it does now.
    """
    child = machine.partitions.get(identity)
    if child is None or child.parent is None or child.state is not PartitionState.ACTIVE:
        return None
    parent = machine.partitions[child.parent]
    if parent.state is not PartitionState.ACTIVE or _NEEDED & ~int(parent.privileges):
        return None
    vp, teller = child.vps.get(index), teller_of(parent, child)
    if vp is None or teller is None or not vp.running:
        return None
    if any(other.intercept.access is not None for other in child.vps.values() if other is not vp):
        return None  # the partition's calls wait
    access = vp.intercept.access
    if access is not None and (access.type is not InterceptType.IO_PORT or access.is_string):
        return None
    if not teller.takes_messages or not is_loud(teller, INTERCEPT_SINT):
        return None
    if teller.intercept.waiting or teller.queues[INTERCEPT_SINT]:
        return None  # the slot is another one's first
    if (
        teller.interrupt_page is not None
        or not teller.requested >> (teller.sints[INTERCEPT_SINT] & _VECTOR) & 1
    ):
        return None  # the interrupt is more than its line
    return child, vp, parent, teller


def _access(port: int, size: int, write: bool, rip: int) -> Access:
    instruction = port_instruction(size=size, write=write, string=False)
    return Access(InterceptType.IO_PORT, write, size, port, False, instruction, rip)
