"""What the scheduler's policy knows of one partition: what it may have, what it wants, what it had. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from runtime.hypervisor.scheduling_shares import Shares

IDLE_DEMAND: Final = 0.02  # of a processor; who wants less is never held for somebody else
_CROWDED: Final = 0.125  # of the time
_BUSY_MARGIN: Final = 0.1  # of a processor, around whole ones; whoever is outside goes to sleep by itself
_LOOK_BACK_SLICES: Final = 4  # over which a partition that runs on is judged
_DEMAND_KEPT: Final = 0.5  # of an old judgement, when a new one is lower
_DEMAND_GROWTH: Final = 1.25


@dataclass(frozen=True, slots=True)
class Member:
    """One partition, as it is now."""

    id: int
    parent: int | None  # None: the root
    shares: Shares
    vps: int
    processors: frozenset[int]  # that its own work may use; at least one of the scheduler's
    has_work: bool = True  # False: it has no process, and is here for its children


@dataclass(frozen=True, slots=True)
class Sample:
    """What one partition's own work did since the sample before."""

    used_ns: int  # CPU time
    waited_ns: int  # it could have run, and waited for a processor; of all its threads


@dataclass(slots=True)
class Account:
    """What the policy knows of one partition."""

    member: Member
    lag_ns: float = 0.0
    demand: float = 0.0  # processors that it would use if it could
    held: bool = False
    used_ns: int = 0  # its own work, ever
    due_ns: float = 0.0  # what it should have had, ever
    credit_ns: float = 0.0  # of its group's cap; negative: it must wait
    owed_ns: float = 0.0  # of its group's reserve: what could not be given yet
    spare_ns: float = 0.0  # of its group's cap: what could not be had yet
    # Of `member` and `demand`, at hand: a step must be cheap, as it runs a hundred times a second.
    width: int = 1  # processors that its own work can use at once
    processors: tuple[int, ...] = ()  # in order
    weight: int = 1
    reserve: float = 0.0  # of the group, in processors
    cap: float | None = None  # the same
    is_idle: bool = True
    is_crowded: bool = False  # of late it waited for its processor, though it was let
    is_busy: bool = False  # some of its threads never sleep, and the others always do
    need: float = 0.0  # processors to set aside for it
    wanted: float = 0.0  # processors that may be its due: somewhat more, so that it can come to use more
    _ran_ns: int = 0  # since it was judged last
    _wanted_ns: int = 0

    def adopt(self, member: Member) -> None:
        shares = member.shares
        self.member = member
        self.processors = tuple(sorted(member.processors))
        self.width = max(min(member.vps, len(member.processors)), 1)
        self.weight, self.reserve = shares.weight, shares.reserve_of(member.vps)
        self.cap = shares.cap_of(member.vps) if shares.is_capped else None
        self._judge(min(self.demand, float(self.width)))

    def watch(self, sample: Sample, elapsed_ns: int, slice_ns: int) -> None:
        """Judge what it wants: only from time in which it was let. What a stop made it leave comes a sample later."""
        self.used_ns += sample.used_ns
        self._wanted_ns += sample.used_ns + sample.waited_ns
        self.is_crowded = sample.waited_ns > _CROWDED * elapsed_ns
        if not self.held:
            self._ran_ns += elapsed_ns
        ran_ns = self._ran_ns
        if not ran_ns:
            self._wanted_ns = 0
            return
        seen = min(self._wanted_ns / ran_ns, self.width)
        if self.held or ran_ns >= (
            slice_ns if seen < _DEMAND_KEPT * self.demand else _LOOK_BACK_SLICES * slice_ns
        ):
            self._ran_ns = self._wanted_ns = 0
            self._judge(max(seen, _DEMAND_KEPT * self.demand))
        elif seen > self.demand:
            self._judge(seen)

    def _judge(self, demand: float) -> None:
        self.demand = demand
        threads = round(demand)
        self.is_idle = demand < IDLE_DEMAND
        self.is_busy = threads >= 1 and abs(demand - threads) < _BUSY_MARGIN
        self.need = float(threads) if self.is_busy else demand
        self.wanted = min(self.need * _DEMAND_GROWTH, float(self.width))
