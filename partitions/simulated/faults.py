"""Carries out orders on a simulated machine: the kinds, knobs and triggers of all others, done to simulated things."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from bus.seam import Step
from partitions.simulated.armed import Armed
from partitions.simulated.clock import NS_PER_MS
from partitions.simulated.interrupt_faults import INTERRUPT_FAULTS
from partitions.simulated.machine import SimulatedMachine
from partitions.simulated.process import Process
from partitions.simulated.real_agents import HYPERVISOR_FAULTS, STACK_FAULTS, RealAgents
from partitions.simulated.ring_faults import RING_FAULTS
from runtime.chaos.faults.catalogue import FAULTS
from runtime.chaos.faults.compounds import BY_NAME as COMPOUNDS
from runtime.chaos.faults.kinds import Group
from runtime.chaos.faults.knobs import Trigger
from runtime.chaos.faults.orders import Counts, FaultRefused, Order
from runtime.chaos.faults.step_kinds import KILL_AT_STEP
from runtime.simulation.actions import ROOT_LABEL

_PARTS_FROM: Final = 1 << 20  # numbers of compounds' parts: above any of a schedule
_PARTS_MAX: Final = 16


class SimulatedDesk:
    """Of one machine, as runtime.chaos.faults.desk is of a real one."""

    def __init__(self, machine: SimulatedMachine) -> None:
        self.machine: Final = machine
        self._armed: dict[int, Armed] = {}
        self._counts: dict[int, Counts] = {}  # of those that were healed
        self._seen: set[int] = set()
        self._agents: Final = RealAgents(machine, self.fired)
        self._parts: dict[int, list[int]] = {}  # by compound

    def inject(self, order: Order) -> None:
        """Raises FaultRefused."""
        armed = Armed(order, Trigger(order.knobs, order.seed))
        log = self.machine.log
        log("fault.injected", number=order.number, fault=order.kind, target=order.target)
        self._armed[order.number] = armed
        try:
            if FAULTS[order.kind].group is Group.STORAGE:
                _storage(self, armed)
            elif order.kind in HYPERVISOR_FAULTS:
                self._agents.hypervisor(armed)
            elif order.kind in STACK_FAULTS:
                self._agents.stack(armed)
            elif order.kind in COMPOUNDS:
                self._compound(armed)
            elif (carry := _CARRIED.get(order.kind)) is not None:
                carry(self, armed)
            else:
                raise FaultRefused(f"{order.kind} is not in the simulated mode")
        except (FaultRefused, LookupError) as error:
            del self._armed[order.number]
            log("fault.refused", number=order.number)
            raise FaultRefused(str(error).strip("'")) from None

    def heal(self, number: int) -> None:
        if (armed := self._armed.get(number)) is None:
            return
        counts = self.counts()[number]
        armed.is_healed = True
        for undo in reversed(armed.undo):
            undo()
        del self._armed[number]
        self._counts[number] = counts
        self.machine.log("fault.healed", number=number, passes=counts.passes, fired=counts.fired)

    def heal_all(self) -> None:
        for number in list(self._armed):
            self.heal(number)

    def counts(self) -> dict[int, Counts]:
        """Of all that there ever were."""
        counts = dict(self._counts)
        for medium in self.machine.media.values():
            counts |= medium.counts()
        counts |= self._agents.counts()
        for number, parts in self._parts.items():
            counts[number] = Counts(len(parts), int(number in self._seen))
        for number, armed in self._armed.items():
            if number not in counts:
                counts[number] = Counts(armed.trigger.passes, armed.trigger.fired)
        return counts

    def _compound(self, armed: Armed) -> None:
        """Its parts, each an order of its own. One that is refused never strikes, and so does the compound."""
        order = armed.order
        parts = self._parts[order.number] = []
        for after_ms, part in COMPOUNDS[order.kind].orders(order):
            if part.kind not in simulated_kinds():
                raise FaultRefused(f"{order.kind} has {part.kind}, which is not in the simulated mode")
            number = _PARTS_FROM + order.number * _PARTS_MAX + len(parts)
            parts.append(number)
            settled = FAULTS[part.kind].settle(part.parameters)
            self.machine.clock.after(
                after_ms * NS_PER_MS, self._part, armed, replace(part, number=number, parameters=settled)
            )

        def heal() -> None:
            for number in parts:
                self.heal(number)

        armed.undo.append(heal)

    def _part(self, armed: Armed, order: Order) -> None:
        if not armed.is_healed:
            with contextlib.suppress(FaultRefused):
                self.inject(order)

    def strikes(self, armed: Armed) -> bool:
        """At each pass of its seam."""
        if armed.is_healed or not armed.trigger.strikes():
            return False
        self.fired(armed.order)
        return True

    def fired(self, order: Order) -> None:
        """The first strike is an event."""
        if order.number not in self._seen:
            self._seen.add(order.number)
            self.machine.log("fault.fired", number=order.number)
            for compound, parts in self._parts.items():
                if compound in self._armed and self._seen.issuperset(parts):
                    self.fired(self._armed[compound].order)


# -- one function a kind


def _storage(desk: SimulatedDesk, armed: Armed) -> None:
    machine, device = desk.machine, armed.order.target
    if (medium := machine.media.get(device)) is None:
        raise FaultRefused(f"{device}: no disk of that name; there are {', '.join(machine.media)}")
    medium.inject(armed.order)

    def undo() -> None:
        medium.heal(armed.order.number)
        machine.medium_is_back(device)

    armed.undo.append(undo)


def _kill(desk: SimulatedDesk, armed: Armed) -> None:
    desk.machine.process(armed.order.target)
    if desk.strikes(armed):
        desk.machine.kill(armed.order.target)


def _kill_at_step(desk: SimulatedDesk, armed: Armed) -> None:
    """So many passes go by first, each time."""
    machine, order, trigger = desk.machine, armed.order, armed.trigger
    machine.process(order.target)
    if order.target != ROOT_LABEL and order.target not in machine.drivers:
        raise FaultRefused(f"{order.target} serves no channel, so it passes no step")
    wanted, deaths = Step.named(str(order.parameters["step"])), int(order.parameters["deaths"])

    def strikes(step: Step) -> bool:
        if step is not wanted or trigger.fired >= deaths:
            return False
        trigger.passes += 1
        if trigger.passes % (order.knobs.space + 1):
            return False
        trigger.fired += 1
        desk.fired(order)
        return True

    watchers = machine.watchers_of(order.target)
    watchers.append(strikes)
    armed.undo.append(lambda: watchers.remove(strikes))


def _stop(desk: SimulatedDesk, armed: Armed) -> None:
    process = desk.machine.process(armed.order.target)
    if desk.strikes(armed):
        desk.machine.promises.stop(process)
        armed.undo.append(process.go_on)


def _stutter(desk: SimulatedDesk, armed: Armed) -> None:
    stop_ns, interval_ns = armed.ns("stop_ms"), armed.ns("interval_ms")
    _now_and_then(desk, armed, stop_ns, max(interval_ns, stop_ns))


def _starve(desk: SimulatedDesk, armed: Armed) -> None:
    period_ns = armed.ns("period_ms")
    _now_and_then(desk, armed, period_ns * float(armed.order.parameters["percent"]) / 100, period_ns)


def _now_and_then(desk: SimulatedDesk, armed: Armed, stop_ns: float, period_ns: float) -> None:
    machine, target = desk.machine, armed.order.target
    stopped: list[Process] = [machine.process(target)]

    def go_on() -> None:
        stopped[-1].go_on()

    def turn() -> None:
        if armed.is_healed:
            return
        try:
            stopped[-1] = machine.process(target)
        except LookupError:
            return
        if desk.strikes(armed):
            machine.promises.stop(stopped[-1])
            machine.clock.after(stop_ns, go_on)
        machine.clock.after(period_ns, turn)

    armed.undo.append(go_on)
    turn()


def _at_starts(desk: SimulatedDesk, armed: Armed, what: Callable[[Process], None]) -> None:
    def started(process: Process) -> None:
        if process.name == armed.order.target and desk.strikes(armed):
            what(process)

    desk.machine.starts.append(started)
    armed.undo.append(lambda: desk.machine.starts.remove(started))


def _slow_start(desk: SimulatedDesk, armed: Armed) -> None:
    def slow(process: Process) -> None:
        desk.machine.promises.stop(process)
        desk.machine.clock.after(armed.ns("delay_ms"), process.go_on)

    _at_starts(desk, armed, slow)


def _kill_at_starts(desk: SimulatedDesk, armed: Armed) -> None:
    machine = desk.machine

    def kill(process: Process) -> None:
        machine.clock.after(armed.ns("delay_ms"), process.kill, machine.rng)

    _at_starts(desk, armed, kill)


def _kill_standby(desk: SimulatedDesk, armed: Armed) -> None:
    desk.machine.kill_standby()
    desk.strikes(armed)


_Carry = Callable[[SimulatedDesk, Armed], None]
_OF_PROCESSES: Final[Mapping[str, _Carry]] = MappingProxyType(
    {
        "kill": _kill,
        "fault-signal": _kill,
        KILL_AT_STEP: _kill_at_step,
        "stop": _stop,
        "stutter": _stutter,
        "starve": _starve,
        "slow-start": _slow_start,
        "crash-loop": _kill_at_starts,
        "kill-in-recovery": _kill_at_starts,
        "kill-standby": _kill_standby,
    }
)


_CARRIED: Final[Mapping[str, _Carry]] = MappingProxyType({**_OF_PROCESSES, **INTERRUPT_FAULTS, **RING_FAULTS})


def simulated_kinds() -> tuple[str, ...]:
    """Names of the catalogue that this mode has."""
    own = {*_CARRIED, *HYPERVISOR_FAULTS, *STACK_FAULTS}
    own |= {name for name, kind in FAULTS.items() if kind.group is Group.STORAGE}
    own |= {name for name, one in COMPOUNDS.items() if all(part.kind in own for part in one.parts)}
    return tuple(name for name in FAULTS if name in own)
