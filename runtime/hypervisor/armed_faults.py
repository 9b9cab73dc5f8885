"""Faults on purpose, in the hypervisor's state machine: what is armed, and what it does at the seams.

The state machine asks at each seam if anything is armed at all. All here is as deterministic as it is, so a simulator
injects the same kinds. Loaded with the first fault; a machine without any does not know this module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from runtime.abi import MESSAGE_BUFFERS_PER_PORT, HvStatus, HypercallCode
from runtime.chaos.faults.filters import Filter, Harm, flip_a_bit
from runtime.chaos.faults.hypervisor_kinds import ANY_CALL, EVERYBODY
from runtime.chaos.faults.knobs import Trigger
from runtime.chaos.faults.orders import Counts, FaultRefused, Order
from runtime.hypervisor import broken_clocks, forgeries, synic
from runtime.hypervisor.effects import CompleteCall, Effect, RaiseLine, ReplaceRoot, RingDoorbell
from runtime.hypervisor.fault_seams import Decide, Line
from runtime.hypervisor.machine import Machine
from runtime.hypervisor.message import Message
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.port import Port
from runtime.hypervisor.program import Process
from runtime.hypervisor.replies import Refused
from runtime.hypervisor.synthetic_timers import TimerKey

RETRY_NS: Final = 1_000_000  # for a message that is due while its port has no buffer
PUT_OFF_MAX: Final = 64  # calls that wait at once; one more goes through in time
_NS_PER_S: Final = 1_000_000_000
_NS_PER_MS: Final = 1_000_000

INTERRUPT_HARMS: Final[Mapping[str, Harm]] = {
    "interrupt-lost": Harm.DROP,
    "interrupt-duplicate": Harm.DUPLICATE,
    "interrupt-delayed": Harm.DELAY,
    "interrupt-lost-across-reconnect": Harm.DROP,
}
MESSAGE_HARMS: Final[Mapping[str, Harm]] = {
    "synic-message-drop": Harm.DROP,
    "synic-message-duplicate": Harm.DUPLICATE,
    "synic-message-delay": Harm.DELAY,
    "synic-message-reorder": Harm.REORDER,
    "synic-message-corrupt": Harm.CORRUPT,
    "synic-message-lost-across-reconnect": Harm.DROP,
}
CLOCKS: Final = frozenset({"clock-jump", "clock-skew"})
STORM: Final = "interrupt-storm"
_ACROSS_RECONNECT: Final = frozenset(
    {"interrupt-lost-across-reconnect", "synic-message-lost-across-reconnect"}
)


@dataclass(slots=True, eq=False)
class _Posted:
    """A message on its way to a port, which may be gone when it gets there."""

    owner: int
    port: Port
    message: Message


@dataclass(slots=True)
class _Periodic:
    """Something that happens by itself, so many times a second."""

    order: Order
    trigger: Trigger
    due_ns: int

    @property
    def period_ns(self) -> int:
        return _NS_PER_S // int(self.order.parameters["rate"])


@dataclass(frozen=True, slots=True)
class _Call:
    due_ns: int
    caller: int
    code: int
    args: object


class ArmedFaults:
    """Of one machine. A FaultAgent, inside of an event: `fault_seams.FaultSeams`."""

    def __init__(self, machine: Machine) -> None:
        self._machine: Final = machine
        self._interrupts: Final[Filter[Line, None]] = Filter(lambda thing, trigger: thing)
        self._messages: Final[Filter[tuple[int, int], _Posted]] = Filter(_corrupt)
        self._rules: dict[int, tuple[Order, Trigger]] = {}  # of calls, timers and heartbeats
        self._periodic: dict[int, _Periodic] = {}  # storms and forgeries
        self._clocks: Final = broken_clocks.BrokenClocks(machine)
        self._forgeries: Final = forgeries.Forgeries(machine)
        self._calls: list[_Call] = []  # that are answered later
        self._again: _Call | None = None  # one of them, right now
        self._late_timers: set[TimerKey] = set()
        self._retries: list[_Posted] = []  # in order; their ports have no buffer
        self._retry_ns = 0  # when
        self._ringing: list[Line] = []  # beyond what the filter sees
        self._owed: set[Line] = set()  # interrupts that were lost
        self.rung: Final[set[Line]] = set()  # doorbells, for who watches those and is not to take them again
        self._reconnects: set[int] = set()  # orders that look at the first after a takeover
        self._reconnecting: set[int] = set()  # those of them that wait for it now

    # -- the agent

    def inject(self, order: Order) -> None:
        """Raises FaultRefused."""
        kind, target = order.kind, order.target
        partition = None if target == EVERYBODY else self._machine.by_path(target)
        if target != EVERYBODY and partition is None:
            raise FaultRefused(f"no partition is named {target!r}; see: partvisor list")
        if kind in INTERRUPT_HARMS:
            self._interrupts.arm(order, INTERRUPT_HARMS[kind], self._is_hit(order, self._receiver))
        elif kind in MESSAGE_HARMS:
            direction = self._poster if order.parameters["direction"] == "from" else self._addressee
            self._messages.arm(order, MESSAGE_HARMS[kind], self._is_hit(order, direction))
        elif partition is None:
            raise FaultRefused(f"{kind} wants one partition, not {EVERYBODY!r}")
        elif kind in CLOCKS:
            self._clocks.inject(order, partition)
        elif kind == STORM or kind in forgeries.KINDS:
            if kind in forgeries.KINDS:
                self._forgeries.check(order, partition)
            trigger = Trigger(order.knobs, order.seed)
            self._periodic[order.number] = _Periodic(order, trigger, self._machine.now_ns)
        else:
            self._rules[order.number] = order, Trigger(order.knobs, order.seed)

    def heal(self, number: int | None) -> None:
        """What was held goes on. Who was not rung is rung: nobody may sleep over what a fault has taken."""
        before = len(self._interrupts.counts())
        self._interrupts.disarm(number)
        if len(self._interrupts.counts()) < before:
            self._ring(self._owed)
            self._owed.clear()
        self._messages.disarm(number)
        self._clocks.heal(number)
        armed_here = {*self._rules, *self._periodic, *self._reconnects}
        for armed in sorted(armed_here) if number is None else [number]:
            self._rules.pop(armed, None)
            if (periodic := self._periodic.pop(armed, None)) is not None:
                self._forgeries.give_back(periodic.order)
            self._reconnects.discard(armed)
            self._reconnecting.discard(armed)
        self._calls = [_Call(0, call.caller, call.code, call.args) for call in self._calls]

    def counts(self) -> Mapping[int, Counts]:
        triggers = {number: trigger for number, (_, trigger) in self._rules.items()}
        triggers |= {number: periodic.trigger for number, periodic in self._periodic.items()}
        counts = {number: Counts(trigger.passes, trigger.fired) for number, trigger in triggers.items()}
        return {**counts, **self._interrupts.counts(), **self._messages.counts(), **self._clocks.counts()}

    @property
    def is_idle(self) -> bool:
        """Nothing is armed, held, or on its way back to what it was."""
        return (
            self._interrupts.is_idle
            and self._messages.is_idle
            and self._clocks.is_idle
            and not (self._rules or self._periodic or self._calls or self._retries or self._ringing)
        )

    @property
    def touches_interrupts(self) -> bool:
        """Those that do not come by here have to be brought here."""
        return bool(self._interrupts.counts())

    # -- whom a fault is aimed at

    def _is_aimed_at(self, order: Order, partition: int) -> bool:
        if order.target == EVERYBODY:
            return True
        found = self._machine.partitions.get(partition)
        return found is not None and self._machine.path(found) == order.target

    def _is_hit(self, order: Order, of: Callable[[object, object], int]) -> Callable[[object, object], bool]:
        def is_hit(key: object, thing: object) -> bool:
            if order.kind in _ACROSS_RECONNECT and order.number not in self._reconnecting:
                return False
            if not self._is_aimed_at(order, of(key, thing)):
                return False
            self._reconnecting.discard(order.number)
            return True

        if order.kind in _ACROSS_RECONNECT:
            self._reconnects.add(order.number)
        return is_hit

    @staticmethod
    def _receiver(key: object, thing: object) -> int:
        assert isinstance(key, RaiseLine | RingDoorbell)
        return key.partition

    @staticmethod
    def _addressee(key: object, thing: object) -> int:
        assert isinstance(key, tuple)
        return int(key[0])

    @staticmethod
    def _poster(key: object, thing: object) -> int:
        assert isinstance(thing, _Posted)
        return thing.port.connection_partition

    # -- seams: calls

    def meets_call(self, caller: Partition, code: HypercallCode, args: object, files: int) -> bool:
        """True: it is answered later. Raises Refused: it is refused. Before anything has been done for it."""
        if self._again is not None:
            return False
        for order, trigger in self._rules.values():
            if order.kind not in ("hypercall-slow", "hypercall-refused"):
                continue
            wanted = order.parameters["call"]
            if wanted not in (ANY_CALL, code.name) or not self._is_aimed_at(order, caller.id):
                continue
            if order.kind == "hypercall-slow":
                if files or len(self._calls) >= PUT_OFF_MAX or not trigger.strikes():
                    continue
                due_ns = self._machine.now_ns + int(order.parameters["delay_ms"]) * _NS_PER_MS
                self._calls.append(_Call(due_ns, caller.id, int(code), args))
                return True
            if trigger.strikes():
                raise Refused(HvStatus[str(order.parameters["status"])])
        return False

    def process_exited(self, partition: int) -> None:
        """Nobody waits for its answers any more."""
        self._calls = [call for call in self._calls if call.caller != partition]

    def _answer_late(self, decide: Decide) -> None:
        due = [call for call in self._calls if call.due_ns <= self._machine.now_ns]
        self._calls = [call for call in self._calls if call.due_ns > self._machine.now_ns]
        for call in due:
            self._again = call
            reply = decide(call.caller, call.code, call.args)
            self._again = None
            if reply.status is not HvStatus.CALL_PENDING:
                self._machine.effects.append(CompleteCall(call.caller, reply))

    # -- seams: messages

    def meets_message(self, owner: Partition, port: Port, message: Message) -> bool:
        """True: its port need not look after it any more."""
        posted = _Posted(owner.id, port, message)
        passed = self._messages.passing((owner.id, port.id), posted, self._machine.now_ns)
        if len(passed) == 1 and passed[0] is posted and not self._has_waiting(port):
            return False
        port.withheld += 1  # one was posted; what follows is what is queued
        for one in passed:
            self._queue(one)
        return True

    def _has_waiting(self, port: Port) -> bool:
        return any(posted.port is port for posted in self._retries)

    def _queue(self, posted: _Posted) -> None:
        """Where there is no buffer for it, or one before it waits for one, later."""
        machine, port = self._machine, posted.port
        owner = machine.partitions.get(posted.owner)
        if owner is None or owner.ports.get(port.id) is not port:
            return
        vp = synic.vp_of(owner, port)
        is_full = vp is None or not vp.takes_messages or port.buffers_used >= MESSAGE_BUFFERS_PER_PORT
        if is_full or self._has_waiting(port):
            if not self._retries:
                self._retry_ns = machine.now_ns + RETRY_NS
            self._retries.append(posted)
            return
        assert vp is not None
        port.withheld -= 1
        synic.enqueue(machine, owner, vp, posted.message)

    def _queue_late(self) -> None:
        if self._retry_ns <= self._machine.now_ns:
            retries, self._retries = self._retries, []
            for posted in retries:
                self._queue(posted)
        for _, posted in self._messages.due(self._machine.now_ns):
            self._queue(posted)

    # -- seams: interrupts, and everything else that the state machine wants done

    def meet_effects(self, timers_due_ns: int | None) -> int | None:
        """What becomes of the event's effects. Returns when the next of timers and faults is due."""
        machine = self._machine
        if self._reconnects or not self._interrupts.is_idle:
            machine.effects = [kept for effect in machine.effects for kept in self._meet(effect)]
        if self._ringing:
            machine.effects[:0] = self._ringing  # nothing follows a Halt
            self._ringing = []
        if self.touches_interrupts:
            self.rung.update(effect for effect in machine.effects if isinstance(effect, RingDoorbell))
        if self.is_idle:
            machine.faults = None
        times = [
            self._interrupts.earliest_ns,
            self._messages.earliest_ns,
            self._clocks.earliest_ns,
            timers_due_ns,
        ]
        times += [call.due_ns for call in self._calls]
        times += [periodic.due_ns for periodic in self._periodic.values()]
        if self._retries:
            times.append(self._retry_ns)
        return min((when_ns for when_ns in times if when_ns is not None), default=None)

    def _meet(self, effect: Effect) -> list[Effect]:
        match effect:
            case RaiseLine() | RingDoorbell():
                passed = self._interrupts.passing(effect, None, self._machine.now_ns)
                if not passed and not self._interrupts.holds(effect):
                    self._owed.add(effect)
                return [effect] * len(passed)
            case ReplaceRoot():
                self._reconnecting |= self._reconnects
        return [effect]

    def _ring(self, lines: set[Line]) -> None:
        """Those that are still there, in an order that does not depend on anything else."""
        there = [line for line in lines if self._is_there(line)]
        self._ringing += sorted(there, key=lambda line: (type(line).__name__, str(line)))

    def _is_there(self, line: Line) -> bool:
        owner = self._machine.partitions.get(line.partition)
        match line:
            case RaiseLine(vp=vp):
                return owner is not None and vp in owner.vps
            case RingDoorbell(port=port):
                return owner is not None and port in owner.ports and owner.ports[port].doorbell

    def _lines_of(self, order: Order) -> set[Line]:
        owner = self._machine.by_path(order.target)
        if owner is None or owner.process is not Process.RUNNING:
            return set()
        lines: set[Line] = {RaiseLine(owner.id, vp) for vp in owner.vps}
        return lines | {RingDoorbell(owner.id, port.id) for port in owner.ports.values() if port.doorbell}

    # -- seams: time

    def loses_heartbeat(self, partition: Partition) -> bool:
        return any(
            order.kind == "heartbeat-lost" and self._is_aimed_at(order, partition.id) and trigger.strikes()
            for order, trigger in self._rules.values()
        )

    def puts_off(self, key: TimerKey) -> int | None:
        """A timer that is due: until when. None: it may expire."""
        if key in self._late_timers:
            self._late_timers.remove(key)
            return None
        for order, trigger in self._rules.values():
            if order.kind == "timer-late" and self._is_aimed_at(order, key[0]) and trigger.strikes():
                self._late_timers.add(key)
                return self._machine.now_ns + int(order.parameters["delay_ms"]) * _NS_PER_MS
        return None

    def time_has_come(self, decide: Decide) -> None:
        """The moment that `meet_effects` named."""
        now_ns = self._machine.now_ns
        self._answer_late(decide)
        self._queue_late()
        self._clocks.time_has_come()
        self._ring({line for line, _ in self._interrupts.due(now_ns)})
        for periodic in list(self._periodic.values()):
            if periodic.due_ns > now_ns:
                continue
            periodic.due_ns = max(periodic.due_ns + periodic.period_ns, now_ns)  # what was missed is missed
            order, trigger = periodic.order, periodic.trigger
            if order.kind == STORM:
                if (lines := self._lines_of(order)) and trigger.strikes():
                    self._ring(lines)
            else:
                self._forgeries.make(order, trigger, decide)


def _corrupt(posted: _Posted, trigger: Trigger) -> _Posted:
    message = posted.message
    flipped = flip_a_bit(message.payload, trigger)
    return _Posted(posted.owner, posted.port, Message(message.port, message.type, flipped))
