"""Processors that hand out time, and partitions that burn it: a simulation for the scheduler's policy.

Time is cut into ticks of a millisecond. In each, every processor is split evenly among the runnable threads that are
not held, as a fair kernel would; the host may take a part away before. CPU time is reported late, as a kernel
reports that of running threads: what is used since the last multiple of `lateness_ms` shows only in a later sample.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from hypothesis import strategies as st

from runtime.abi import WHOLE_PROCESSOR
from runtime.hypervisor.scheduling import SLICE_NS, Decision, Policy
from runtime.hypervisor.scheduling_account import Member, Sample
from runtime.hypervisor.scheduling_shares import Shares

TICK_NS: Final = 1_000_000
WEIGHTS: Final = st.integers(20, 1000)
Work = Callable[[int], bool]  # ms -> whether its threads want to run; asked only while it is not held


def busy(_ms: int) -> bool:
    return True


def asleep(_ms: int) -> bool:
    return False


def part_of_the_time(run_ms: int, sleep_ms: int) -> Work:
    return lambda ms: ms % (run_ms + sleep_ms) < run_ms


def percent(value: float) -> int:
    return round(value * WHOLE_PROCESSOR / 100)


def member(
    id: int,
    weight: int = 100,
    *,
    reserve: float = 0,
    cap: float = 100,
    parent: int | None = None,
    vps: int = 1,
    on: Iterable[int] = (0,),
    has_work: bool = True,
) -> Member:
    """Reserve and cap in percent."""
    return Member(id, parent, Shares(weight, percent(reserve), percent(cap)), vps, frozenset(on), has_work)


@dataclass(slots=True)
class World:
    members: list[Member]
    work: Mapping[int, Work]
    processors: frozenset[int] = frozenset({0})
    host_takes: Callable[[int, int], float] = lambda processor, ms: 0.0  # part of a processor
    lateness_ms: int = 0
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    now_ms: int = 0
    used_ns: dict[int, int] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)
    history: list[dict[int, int]] = field(default_factory=list)  # used_ns so far, after each ms
    idle_ns: int = 0  # of processors, while somebody who was held wanted one
    policy: Policy = field(init=False)
    _reported_ns: dict[int, int] = field(default_factory=dict)
    _waited_ns: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.policy = Policy(self.processors)
        self.policy.set_members(self.members)
        self.used_ns = {each.id: 0 for each in self.members}
        self._waited_ns = dict.fromkeys(self.used_ns, 0)
        self._reported_ns = dict.fromkeys(self.used_ns, 0)

    def change(self, changed: Member) -> None:
        self.members = [changed if each.id == changed.id else each for each in self.members]
        self.policy.set_members(self.members)

    def run(self, milliseconds: int) -> dict[int, int]:
        """Returns what each used in that time, in ns."""
        before = dict(self.used_ns)
        end_ms = self.now_ms + milliseconds
        held: frozenset[int] = self.decisions[-1].held if self.decisions else frozenset()
        while self.now_ms < end_ms:
            samples = {}
            for each in self.used_ns:
                seen = self._visible_ns(each, held)
                samples[each] = Sample(seen - self._reported_ns[each], self._waited_ns[each])
                self._reported_ns[each] = seen
                self._waited_ns[each] = 0
            decision = self.policy.step(self._step_ns, samples)
            self.decisions.append(decision)
            held = decision.held
            self._step_ns = decision.next_ns
            for _ in range(decision.next_ns // TICK_NS):
                self._tick(decision)
        return {each: self.used_ns[each] - before[each] for each in self.used_ns}

    _step_ns: int = TICK_NS

    def _visible_ns(self, each: int, held: frozenset[int]) -> int:
        if self.lateness_ms and each not in held and self.history:
            at = max(self.now_ms - self.now_ms % self.lateness_ms - 1, 0)
            return max(self.history[at][each], self._reported_ns[each])
        return self.used_ns[each]

    def _tick(self, decision: Decision) -> None:
        held = decision.held
        wants = {each.id: each for each in self.members if each.has_work and self.work[each.id](self.now_ms)}
        queues: dict[int, list[int]] = {processor: [] for processor in sorted(self.processors)}
        may_use = {id: decision.confined.get(id, each.processors) for id, each in wants.items()}
        # Threads go to the processor with the shortest queue, those with the least choice first; one that would idle
        # pulls over whoever waits and may come.
        threads = [each.id for each in wants.values() if each.id not in held for _ in range(each.vps)]
        for id in sorted(threads, key=lambda one: (len(may_use[one]), one)):
            queues[min(may_use[id], key=lambda processor: (len(queues[processor]), processor))].append(id)
        for processor, queue in queues.items():
            for other in queues.values() if not queue else ():
                if len(other) > 1 and (movable := [id for id in other if processor in may_use[id]]):
                    other.remove(movable[0])
                    queue.append(movable[0])
                    break
        for processor, queue in queues.items():
            available = round(TICK_NS * (1 - self.host_takes(processor, self.now_ms)))
            for each in queue:
                self.used_ns[each] += available // len(queue)
                self._waited_ns[each] += TICK_NS - available // len(queue)
            if not queue and any(processor in wants[one].processors for one in held & wants.keys()):
                self.idle_ns += available
        self.now_ms += 1
        self.history.append(dict(self.used_ns))


def shares_of(used: Mapping[int, int]) -> dict[int, float]:
    """Percent of what was delivered."""
    total = sum(used.values())
    return {each: 100 * ns / total for each, ns in used.items()}


def behind_max_ns(contenders: int) -> float:
    return SLICE_NS * (sum(1 / each for each in range(1, contenders + 1)) + 2)


def noisy_host(seed: int) -> Callable[[int, int], float]:
    """Takes all of a processor, or a part, or nothing, for some ms each."""
    takes = random.Random(seed).choices((0.0, 0.3, 1.0), (6, 3, 1), k=997)
    return lambda processor, ms: takes[(ms // 3 + 131 * processor) % len(takes)]


def world(*members: Member, processors: int = 1, seed: int | None = None, lateness_ms: int = 0) -> World:
    """Everybody burns all it can."""
    return World(
        list(members),
        {each.id: busy for each in members},
        frozenset(range(processors)),
        host_takes=noisy_host(seed) if seed is not None else lambda processor, ms: 0.0,
        lateness_ms=lateness_ms,
    )


@st.composite
def trees(draw: st.DrawFn) -> list[Member]:
    """Up to three levels; a parent burns, too."""
    members: list[Member] = []
    for id in range(draw(st.integers(2, 6))):
        parents = [
            None,
            *(each.id for each in members if each.parent is None or members[each.parent].parent is None),
        ]
        works = draw(st.booleans())
        members.append(member(id, draw(WEIGHTS), parent=draw(st.sampled_from(parents)), has_work=works))
    parents_of_some = {each.parent for each in members}
    return [
        each if each.id in parents_of_some else member(each.id, each.shares.weight, parent=each.parent)
        for each in members
    ]
