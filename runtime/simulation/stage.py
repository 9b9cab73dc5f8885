"""What a behaviour is, and what it may look at and draw from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from runtime.abi import HypercallCode, MapFlags, PartitionState
from runtime.hypervisor.partition import Partition
from runtime.simulation.actions import Action, ActionKind
from runtime.simulation.simulator import Simulation

NUMBERS: Final = 12  # ports, connections and pages are numbered below it, so that numbers collide
SINTS: Final = (2, 3, 4)
READ_WRITE: Final = int(MapFlags.READ | MapFlags.WRITE)
_CALL: Final = ActionKind.CALL
_LOOKS: Final = 3  # for somebody who lives


@dataclass(slots=True)
class Stage:
    """What a behaviour may look at and draw from."""

    simulation: Simulation
    rng: Random
    population: int  # partitions wanted
    actors: list[str]  # labels of those that were there a moment ago
    serial: int = 0  # of messages
    born: int = 0  # labels given out
    faults: float = 0.0  # share of calls whose resources the host refuses
    plans: list[list[Action]] = field(default_factory=list)  # sequences under way, next action last

    def below(self, count: int) -> int:
        return int(self.rng.random() * count)

    def pick(self, among: Sequence[Any]) -> Any:
        return among[int(self.rng.random() * len(among))]

    def actor(self) -> str:
        """Anybody; the living rather than the dead."""
        for _ in range(_LOOKS):
            who = str(self.pick(self.actors))
            partition = self.simulation.partition(who)
            if partition is not None and partition.state is PartitionState.ACTIVE:
                break
        return who

    def child(self, partition: Partition) -> str | None:
        """Any of its children."""
        return self.simulation.label_of(self.pick(partition.children)) if partition.children else None

    def call(self, who: str, code: HypercallCode, **args: object) -> Action:
        fail_at = 1 + self.below(2) if self.rng.random() < self.faults else 0
        return Action(_CALL, who, 0, int(code), args, 0, fail_at)


Proposal = Action | list[Action] | None
Behave = Callable[[Stage, str, Partition], Proposal]


@dataclass(frozen=True, slots=True)
class Behaviour:
    name: str
    weight: int
    propose: Behave
