"""One run from one seed: who acts next, and how, is drawn; what was drawn is kept, and is all that a replay needs."""

from __future__ import annotations

import time
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Final

from runtime.abi import EXIT_RETIRED, ROOT_PARTITION, HypercallCode, PartitionState, RegisterName
from runtime.simulation.actions import ROOT_LABEL, Action, ActionKind
from runtime.simulation.behaviours import BEHAVIOURS, create_child
from runtime.simulation.simulator import Simulation
from runtime.simulation.stage import SINTS, Behaviour, Stage
from runtime.simulation.violation import Violation

STEPS_DEFAULT: Final = 30_000
POPULATION_DEFAULT: Final = 300
PLANS_MAX: Final = 64  # sequences under way at once
_FAULT_SHARE: Final = 0.03
_ROOT_LIVES_NS: Final = 400_000_000  # at least: a root that fails too often ends the machine
_SILENT_SHARE: Final = 0.97  # of what the dead and the unborn would say
_GROWTH_SHARE: Final = 0.1
_REBOOT_SHARE: Final = 1 / 8_000
_PROPOSALS_MAX: Final = 8  # until one makes sense


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    seed: int
    actions: list[Action]  # all that was performed, the failing one last
    digest: str
    inputs: int
    refusals: int
    received: int  # messages
    population_max: int
    violation: Violation | None


class SeededRun:
    """Draws actions and performs them."""

    def __init__(self, seed: int, population: int, behaviours: Sequence[Behaviour] = BEHAVIOURS) -> None:
        self._seed: Final = seed
        self._rng: Final = Random(seed)
        self.simulation: Final = Simulation()
        self._stage: Final = Stage(self.simulation, self._rng, population, [ROOT_LABEL], faults=_FAULT_SHARE)
        self._behaviours: Final = behaviours
        self._weights: Final = list(accumulate(behaviour.weight for behaviour in behaviours))
        self._actions: list[Action] = []
        self._root_ended_ns = 0
        self._population_max = 1

    def run(self, steps: int, deadline: float | None = None) -> Outcome:
        """So many actions, and the end of the machine. A violation ends it early, and so does time.monotonic()."""
        violation = None
        try:
            self._perform(ROOT_IS_UP)
            self._perform(_ROOT_LISTENS)
            while len(self._actions) < steps and self.simulation.world.halted is None:
                self._perform(self._next())
                if deadline is not None and len(self._actions) % 256 == 0 and time.monotonic() >= deadline:
                    break
            self._perform(Action(ActionKind.END))
        except Violation as found:
            violation = found
        simulation = self.simulation
        return Outcome(
            self._seed,
            self._actions,
            simulation.digest,
            simulation.inputs,
            simulation.refusals,
            simulation.mail.received,
            self._population_max,
            violation,
        )

    def _perform(self, action: Action) -> None:
        self._actions.append(action)
        reply = self.simulation.perform(action)
        if action.label and reply is not None and not reply.status:
            self._stage.actors.append(action.label)
            self._population_max = max(self._population_max, len(self.simulation.table))

    # -- who moves next ------------------------------------------------------------------------------------

    def _next(self) -> Action:
        draw, stage = self._rng.random(), self._stage
        if draw < 0.30 and stage.plans and (action := self._go_on_with_a_plan()) is not None:
            return action
        if draw < 0.42 and (duty := self._duty_of_the_host()) is not None:
            return duty
        if draw > 1 - _REBOOT_SHARE and not self.simulation.machine.rebooting:
            return Action(ActionKind.REBOOT)
        if 0.42 <= draw < 0.43:
            return Action(ActionKind.ADVANCE, number=1 + stage.below(40))
        if not self.simulation.machine.root_is_up and self._rng.random() < 0.2:
            return ROOT_IS_UP
        for _ in range(_PROPOSALS_MAX):
            who = self._somebody()
            partition = self.simulation.partition(who)
            if partition is None:
                continue
            if partition.state is not PartitionState.ACTIVE and self._rng.random() < _SILENT_SHARE:
                continue
            if (chore := self._chore(who)) is not None:
                return chore
            if self._rng.random() < self._growth():
                proposal = create_child(stage, who, partition)
            else:
                behaviour = self._behaviours[bisect(self._weights, self._rng.random() * self._weights[-1])]
                proposal = behaviour.propose(stage, who, partition)
            if isinstance(proposal, list):
                first, *rest = proposal
                if rest and len(stage.plans) < PLANS_MAX:
                    stage.plans.append(rest[::-1])
                return first
            if proposal is not None:
                return proposal
        return self._stage.call(ROOT_LABEL, HypercallCode.GET_PARTITION_ID)

    def _growth(self) -> float:
        """Share of creations: many while there are few."""
        return _GROWTH_SHARE if len(self.simulation.table) < self._stage.population * 0.9 else 0.0

    def _somebody(self) -> str:
        """A partition that is there; names of the dead are struck off when they come up."""
        actors = self._stage.actors
        while True:
            place = self._stage.below(len(actors))
            who = actors[place]
            if self.simulation.partition(who) is not None:
                return who
            actors[place] = actors[-1]
            actors.pop()

    def _go_on_with_a_plan(self) -> Action | None:
        """None: it was about a partition whose creation was refused."""
        plans, labels = self._stage.plans, self.simulation.labels
        place = self._stage.below(len(plans))
        action = plans[place].pop()
        lost = action.who not in labels or action.args.get("partition", action.who) not in labels
        if lost or not plans[place]:
            plans[place] = plans[-1]
            plans.pop()
        return None if lost else action

    def _duty_of_the_host(self) -> Action | None:
        """Spawns are answered and killed processes are reaped, in any order and some time."""
        world = self.simulation.world
        if world.doomed:
            identity = self._stage.pick(list(world.doomed))
        elif world.starting:
            identity = self._stage.pick(list(world.starting))
            if self._rng.random() < 0.95:
                return Action(ActionKind.STARTED, self.simulation.label_of(identity))
        elif self._rng.random() < 0.02 and world.now_ns > self._root_ended_ns + _ROOT_LIVES_NS:
            identity = ROOT_PARTITION
        else:
            return None
        if identity == ROOT_PARTITION:
            self._root_ended_ns = world.now_ns
            return Action(ActionKind.EXITED, ROOT_LABEL, self._stage.pick((1, EXIT_RETIRED)))
        return Action(ActionKind.EXITED, self.simulation.label_of(identity), self._stage.pick((0, 1, 127)))

    def _chore(self, who: str) -> Action | None:
        """A guest whose interrupt came empties its slots, and says so where it owes that; not always at once."""
        simulation = self.simulation
        identity = simulation.labels[who]
        for vp in (0, 1):
            where = (identity, vp)
            if simulation.mail.owes(where) and self._rng.random() < 0.8:
                registers = [[int(RegisterName.EOM), 0]]
                return self._stage.call(who, HypercallCode.SET_VP_REGISTERS, vp=vp, registers=registers)
            if simulation.mail.waits_for(where) and self._rng.random() < 0.5:
                return Action(ActionKind.RECEIVE, who, vp)
        return None


ROOT_IS_UP: Final = Action(ActionKind.CALL, code=int(HypercallCode.HEARTBEAT), args={"within_ms": 0})
_ROOT_LISTENS: Final = Action(
    ActionKind.CALL,
    code=int(HypercallCode.SET_VP_REGISTERS),
    args={
        "vp": 0,
        "registers": [
            [int(RegisterName.SIMP), 1],
            [int(RegisterName.SIEFP), 1],
            *([int(RegisterName.SINT0) + sint, 0x20 + sint] for sint in SINTS),
            [int(RegisterName.SCONTROL), 1],
        ],
    },
)


@dataclass(frozen=True, slots=True)
class Replayed:
    """How a replay ended."""

    performed: int  # actions, a failing one included
    digest: str
    violation: Violation | None


def replay(actions: Sequence[Action]) -> Replayed:
    """Perform a schedule again, nothing is drawn; and look at everything at its end."""
    simulation = Simulation()
    performed = 0
    try:
        for action in actions:
            performed += 1
            simulation.perform(action)
        simulation.accounts.check_all()
    except Violation as found:
        return Replayed(performed, simulation.digest, found)
    return Replayed(performed, simulation.digest, None)
