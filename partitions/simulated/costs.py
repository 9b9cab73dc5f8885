"""How long things take on the virtual clock. An experiment's [simulated] table says so; here it is as nanoseconds."""

from dataclasses import dataclass
from random import Random
from typing import Self

from partitions.simulated.clock import NS_PER_MS, NS_PER_US
from runtime.chaos.experiment.model import Simulated


@dataclass(frozen=True, slots=True)
class Costs:
    """ns of one thing each."""

    think: int
    boot: int
    spawn: int
    restart: int
    take_over: int
    medium: int
    request: int
    wake: int

    @classmethod
    def of(cls, table: Simulated) -> Self:
        return cls(
            think=table.think_ms * NS_PER_MS,
            boot=table.boot_ms * NS_PER_MS,
            spawn=table.spawn_ms * NS_PER_MS,
            restart=table.restart_ms * NS_PER_MS,
            take_over=table.take_over_ms * NS_PER_MS,
            medium=table.medium_us * NS_PER_US,
            request=table.request_us * NS_PER_US,
            wake=table.wake_us * NS_PER_US,
        )

    def serving(self, rng: Random) -> float:
        """One request, with its medium: from half the mean to one and a half of it."""
        return self.request + self.medium * (0.5 + rng.random())
