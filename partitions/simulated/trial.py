"""One trial of an experiment on a simulated machine: as runtime.chaos.experiment.trial, in virtual time.

The load goes on for as long as the experiment says, as time that passes idly costs nothing here.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from operator import attrgetter
from typing import Final

from partitions.simulated.clock import NS_PER_MS, NS_PER_S
from partitions.simulated.costs import Costs
from partitions.simulated.faults import SimulatedDesk
from partitions.simulated.machine import Event, SimulatedMachine
from partitions.simulated.plan import MachinePlan
from partitions.storage.vsp import StorageVsp
from runtime.chaos.experiment import fates
from runtime.chaos.experiment.evidence import Balance, Evidence
from runtime.chaos.experiment.machine_files import TrialMachine
from runtime.chaos.experiment.model import Experiment
from runtime.chaos.experiment.schedule import Injection, Schedule
from runtime.chaos.faults.orders import FaultRefused, Order
from runtime.chaos.history import History, Operation
from runtime.chaos.liveness import busy_ns
from runtime.simulation.violation import Violation

CALM_NS: Final = 300 * NS_PER_MS  # between the last healing and the end of the load
_DIGEST_BYTES: Final = 16
_ROW: Final = attrgetter(*(each.name for each in fields(Operation) if each.name not in ("kind", "outcome")))


@dataclass(slots=True)
class Done:
    """What a trial leaves."""

    evidence: Evidence
    trouble: str
    broken_rule: str  # of the hypervisor's state machine; "": none
    virtual_s: float
    requests: int
    turns: int  # events of the clock
    busy_s: float  # virtual seconds in which any guest waited for an answer
    digest: str  # of all events and histories


@dataclass(slots=True)
class _Progress:
    began_ns: int = 0
    healed_ns: int = 0
    refused: dict[int, str] = field(default_factory=dict)
    given: set[int] = field(default_factory=set)
    before: Balance = field(default_factory=lambda: Balance(0, 0, 0))
    after: Balance | None = None
    trouble: list[str] = field(default_factory=list)
    broken_rule: str = ""


class SimulatedTrial:
    """`run` once."""

    def __init__(
        self,
        experiment: Experiment,
        schedule: Schedule,
        plan: MachinePlan,
        seed: int,
        server: type[StorageVsp] = StorageVsp,
    ) -> None:
        self._experiment, self._schedule, self._plan = experiment, schedule, plan
        table = experiment.simulated
        self.machine: Final = SimulatedMachine(
            plan, Costs.of(table), seed, table.burst, server=server, fired=self._fired
        )
        self.desk: Final = SimulatedDesk(self.machine)
        self._progress = _Progress()
        self._seen: dict[str, int] = {}  # events since the steady state, by kind

    def _fired(self, order: Order) -> None:
        self.desk.fired(order)

    def run(self) -> Done:
        progress = self._progress
        try:
            try:
                self._live()
                if self.machine.kernel.halted is None:
                    self.machine.kernel.check()
            except Violation as violation:
                progress.broken_rule = str(violation)
            return self._gather()
        finally:
            self.machine.close()

    # -- the course of it

    def _live(self) -> None:
        machine, progress, clock = self.machine, self._progress, self.machine.clock
        machine.power_on()
        within_ms = self._experiment.steady.within_ms
        if not clock.run(within_ms * NS_PER_MS, lambda: self._is_steady() or self._is_over()):
            progress.trouble.append(f"no steady state within {within_ms / 1000:g} s")
        elif not self._is_over():
            progress.before = self._count()
            progress.began_ns = clock.now_ns
            self._carry_out()
        self._heal()
        if not self._is_over():
            for guest in machine.guests.values():
                guest.process.after(0, guest.act)  # so that there is something that liveness can be seen by
            clock.run(clock.now_ns + CALM_NS, self._is_over)
            progress.after = self._count()
        drain_ns = self._experiment.experiment.drain_ms * NS_PER_MS
        for guest in machine.programs.values():
            guest.process.after(0, guest.end_soon)
        if not clock.run(clock.now_ns + drain_ns, self._is_over):
            progress.trouble.append(f"the load did not end within {drain_ns / 1e9:g} s after it was to")

    def _is_steady(self) -> bool:
        wanted = self._experiment.simulated.operations
        guests = self.machine.guests
        return len(guests) == len(self._plan.guests) and all(
            guest.load is not None and guest.load.completed >= wanted for guest in guests.values()
        )

    def _is_over(self) -> bool:
        """No load will come any more."""
        machine = self.machine
        return machine.is_over or machine.kernel.world.halted is not None

    def _carry_out(self) -> None:
        machine, clock = self.machine, self.machine.clock
        machine.listeners.append(self._hear)
        for injection in self._schedule:
            if not injection.moment.on:
                clock.after(injection.moment.after_ms * NS_PER_MS, self._inject, injection)
        ends_ns = self._progress.began_ns + self._experiment.simulated.seconds * NS_PER_S
        clock.run(ends_ns, self._is_over)
        machine.listeners.remove(self._hear)
        for injection in self._schedule:
            number = injection.order.number
            if number not in self._progress.given:
                self._progress.refused.setdefault(number, "its moment did not come")

    def _hear(self, event: Event) -> None:
        kind = event["kind"]
        nth = self._seen[kind] = self._seen.get(kind, 0) + 1
        for injection in self._schedule:
            if injection.moment.on == kind and injection.moment.nth == nth:
                self.machine.clock.after(injection.moment.after_ms * NS_PER_MS, self._inject, injection)

    def _inject(self, injection: Injection) -> None:
        number = injection.order.number
        if self._is_over():
            return
        self._progress.given.add(number)
        try:
            self.desk.inject(injection.order)
        except FaultRefused as error:
            self._progress.refused[number] = str(error)
            return
        if injection.for_ms is not None:
            self.machine.clock.after(injection.for_ms * NS_PER_MS, partial(self.desk.heal, number))

    def _heal(self) -> None:
        self.desk.heal_all()
        self._progress.healed_ns = self.machine.clock.now_ns

    def _count(self) -> Balance:
        alive = sum(process.is_alive for process in self.machine.processes.values())
        return Balance(alive, self.machine.kernel.descriptors, self.machine.kernel.memory_bytes)

    # -- what it leaves

    def _gather(self) -> Done:
        machine, progress = self.machine, self._progress
        events = machine.events
        histories = {
            name: guest.load.kept.history for name, guest in machine.guests.items() if guest.load is not None
        }
        for guest in self._plan.guests:
            if guest.name not in histories:
                progress.trouble.append(f"{guest.name} never began its load")
        counts = {number: (each.passes, each.fired) for number, each in self.desk.counts().items()}
        own = fates.fates_of(
            self._schedule, progress.refused, events, counts, histories.values(), progress.began_ns
        )
        for fate in own:
            if fate.error:
                progress.trouble.append(f"fault {fate.number}: {fate.error}")
            elif not fate.fired:
                progress.trouble.append(f"fault {fate.number} did not fire")
        evidence = Evidence(
            machine=self._trial_machine(),
            schedule=self._schedule,
            fates=own,
            histories=histories,
            values={device: self._values(device, histories) for device in machine.media},
            events=events,
            began_ns=progress.began_ns,
            healed_ns=progress.healed_ns,
            ended_ns=machine.clock.now_ns,
            before=progress.before,
            after=progress.after,
            exit_code=int(machine.kernel.halted is not None),
            errors="",
            left_behind=[],
        )
        return Done(
            evidence,
            "; ".join(progress.trouble),
            "; ".join([*([progress.broken_rule] if progress.broken_rule else []), *machine.wrong]),
            machine.clock.now_ns / 1e9,
            sum(len(history.operations) for history in histories.values()),
            machine.clock.turns,
            busy_ns(histories.values(), machine.clock.now_ns) / NS_PER_S,
            _digest(events, histories),
        )

    def _trial_machine(self) -> TrialMachine:
        plan, first = self._plan, self._plan.guests[0].verifying
        drivers = tuple(self.machine.drivers)
        return TrialMachine(first.history, tuple(guest.verifying for guest in plan.guests), {}, drivers)

    def _values(self, device: str, histories: Mapping[str, History]) -> dict[int, int]:
        """Of the blocks that somebody asked for, or that were written without that. The others are zeros, unseen."""
        asked: set[int] = set()
        for guest in self._plan.guests:
            if guest.device == device and guest.name in histories:
                for operation in histories[guest.name].operations:
                    asked.update(range(operation.first_block, operation.first_block + operation.blocks))
        spans = [guest.verifying.blocks for guest in self._plan.guests if guest.device == device]
        if not spans:
            return {}
        blocks = range(min(span.start for span in spans), max(span.stop for span in spans))
        return self.machine.media[device].memory.values(blocks, asked)


def _digest(events: list[Event], histories: Mapping[str, History]) -> str:
    told = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for event in events:
        told.update(repr(sorted(event.items())).encode())
    for name, history in sorted(histories.items()):
        kinds = [int(one.kind) for one in history.operations]  # numbers: an enum takes long to write
        outcomes = [None if one.outcome is None else int(one.outcome) for one in history.operations]
        rows = list(map(_ROW, history.operations))
        told.update(f"{name} {history.ending} {kinds} {outcomes} {rows}".encode())
    return told.hexdigest()
