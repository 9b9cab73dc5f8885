"""Faults of whatever passes one by one: messages and interrupts. Pure: no clock, no task, no I/O.

    passing(key, thing, now)  ->  what goes on now: nothing, it, two of it, another one, it and one that was held
    due(now)                  ->  what was held, and may go now

`key` names the queue in whose order things pass. What is delayed holds up what comes behind it, as a slow line does;
only a reordered thing is overtaken, by one other.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Generic, TypeVar

from runtime.chaos.faults.knobs import Trigger
from runtime.chaos.faults.orders import Counts, Order

HELD_MAX: Final = 1024  # things of one queue; one more lets the oldest go
_NS_PER_MS: Final = 1_000_000

K = TypeVar("K")
T = TypeVar("T")


class Harm(Enum):
    """What is done to a thing that is hit."""

    DROP = "drop"
    DUPLICATE = "duplicate"
    DELAY = "delay"
    REORDER = "reorder"  # it goes after the next one; if none comes in time, as if delayed
    CORRUPT = "corrupt"
    ASIDE = "aside"  # it goes later, and nothing waits for it


@dataclass(slots=True)
class _Rule(Generic[K, T]):
    order: Order
    harm: Harm
    trigger: Trigger
    matches: Callable[[K, T], bool]
    held_ns: int  # of what is held


@dataclass(slots=True)
class _Held(Generic[T]):
    thing: T
    number: int  # of the order that holds it; 0: it only waits behind one that is held
    due_ns: int


@dataclass(slots=True)
class _Queue(Generic[T]):
    delayed: deque[_Held[T]] = field(default_factory=deque)  # in order
    overtaken: _Held[T] | None = None
    aside: list[_Held[T]] = field(default_factory=list)

    @property
    def all(self) -> list[_Held[T]]:
        return [*self.delayed, *([self.overtaken] if self.overtaken else []), *self.aside]


class Filter(Generic[K, T]):
    """All such faults that are armed at one seam, in the order in which they were armed."""

    def __init__(self, corrupt: Callable[[T, Trigger], T], held_max: int = HELD_MAX) -> None:
        """`corrupt`: the thing with one bit flipped, which the trigger chooses."""
        self._corrupt, self._held_max = corrupt, held_max
        self._rules: list[_Rule[K, T]] = []
        self._queues: dict[K, _Queue[T]] = {}

    def arm(self, order: Order, harm: Harm, matches: Callable[[K, T], bool]) -> None:
        held_ns = int(order.parameters.get("delay_ms", 0)) * _NS_PER_MS
        self._rules.append(_Rule(order, harm, Trigger(order.knobs, order.seed), matches, held_ns))

    def disarm(self, number: int | None) -> None:
        """Of one, or of all. What it held is due at once."""
        self._rules = [rule for rule in self._rules if number not in (None, rule.order.number)]
        for queue in self._queues.values():
            for held in queue.all:
                if number in (None, held.number):
                    held.due_ns = 0

    def counts(self) -> dict[int, Counts]:
        return {rule.order.number: Counts(rule.trigger.passes, rule.trigger.fired) for rule in self._rules}

    @property
    def is_idle(self) -> bool:
        """Nothing is armed, and nothing is held."""
        return not self._rules and not self._queues

    def passing(self, key: K, thing: T, now_ns: int) -> list[T]:
        """What goes on in its place, now."""
        things, held = [thing], None
        for rule in self._rules:
            following: list[T] = []
            for one in things:
                if not rule.matches(key, one) or not rule.trigger.strikes():
                    following.append(one)
                    continue
                match rule.harm:
                    case Harm.DROP:
                        pass
                    case Harm.DUPLICATE:
                        following += [one, one]
                    case Harm.CORRUPT:
                        following.append(self._corrupt(one, rule.trigger))
                    case Harm.DELAY:
                        held = held or (rule, Harm.DELAY)
                        following.append(one)
                    case Harm.REORDER:
                        held = held or (rule, Harm.REORDER)
                        following.append(one)
                    case Harm.ASIDE:
                        self._queues.setdefault(key, _Queue()).aside.append(
                            _Held(one, rule.order.number, now_ns + rule.held_ns)
                        )
            things = following
        queue = self._queues.get(key)
        if not things or (queue is None and held is None):
            return things
        queue = queue or self._queues.setdefault(key, _Queue())
        return self._line_up(key, queue, things, held, now_ns)

    def _line_up(
        self, key: K, queue: _Queue[T], things: list[T], held: tuple[_Rule[K, T], Harm] | None, now_ns: int
    ) -> list[T]:
        if held is not None and held[1] is Harm.REORDER and queue.overtaken is None:
            rule, thing = held[0], things.pop(0)
            queue.overtaken = _Held(thing, rule.order.number, now_ns + rule.held_ns)
            if not things:
                return []
        elif held is not None and held[1] is Harm.DELAY:
            rule = held[0]
            queue.delayed += [_Held(thing, rule.order.number, now_ns + rule.held_ns) for thing in things]
            things = []
        elif queue.delayed:
            queue.delayed += [_Held(thing, 0, 0) for thing in things]
            things = []
        if things and queue.overtaken is not None:
            things.append(queue.overtaken.thing)
            queue.overtaken = None
        while len(queue.delayed) > self._held_max:
            things.append(queue.delayed.popleft().thing)
        while len(queue.aside) > self._held_max:
            things.append(queue.aside.pop(0).thing)
        self._drop_if_empty(key, queue)
        return things

    def due(self, now_ns: int) -> list[tuple[K, T]]:
        """What has been held for as long as it was to be, with what waits behind it."""
        going: list[tuple[K, T]] = []
        for key, queue in list(self._queues.items()):
            while queue.delayed and queue.delayed[0].due_ns <= now_ns:
                going.append((key, queue.delayed.popleft().thing))
                if queue.overtaken is not None:
                    going.append((key, queue.overtaken.thing))
                    queue.overtaken = None
            if queue.overtaken is not None and queue.overtaken.due_ns <= now_ns:
                going.append((key, queue.overtaken.thing))
                queue.overtaken = None
            late = [held for held in queue.aside if held.due_ns <= now_ns]
            queue.aside = [held for held in queue.aside if held.due_ns > now_ns]
            going += [(key, held.thing) for held in late]
            self._drop_if_empty(key, queue)
        return going

    @property
    def earliest_ns(self) -> int | None:
        """When `due` is to be called. None: nothing is held."""
        times = [queue.delayed[0].due_ns for queue in self._queues.values() if queue.delayed]
        times += [queue.overtaken.due_ns for queue in self._queues.values() if queue.overtaken is not None]
        times += [held.due_ns for queue in self._queues.values() for held in queue.aside]
        return min(times, default=None)

    def holds(self, key: K) -> bool:
        """Something of that queue is to go later."""
        return key in self._queues

    def forget(self, matches: Callable[[K], bool]) -> int:
        """Those queues are no more. How many things were in them."""
        gone = [key for key in self._queues if matches(key)]
        lost = 0
        for key in gone:
            lost += len(self._queues.pop(key).all)
        return lost

    def _drop_if_empty(self, key: K, queue: _Queue[T]) -> None:
        if not queue.all:
            self._queues.pop(key, None)


def flip_a_bit(data: bytes, trigger: Trigger) -> bytes:
    """Of at least one byte; nothing has no bit."""
    if not data:
        return data
    flipped = bytearray(data)
    bit = trigger.draw(8 * len(flipped))
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)
