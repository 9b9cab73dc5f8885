"""Did everything that was asked get an answer, and how long did nothing move?"""

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import starmap

from runtime.chaos.history import Ending, History, Operation

_NS_PER_S = 1_000_000_000
_BEGINS, _ENDS = 0, 1  # in this order where both happen at once


@dataclass(frozen=True, slots=True, order=True)
class Gap:
    """A time in which requests were in flight and none completed: an outage, as the guest sees it."""

    length_ns: int
    start_ns: int

    @property
    def end_ns(self) -> int:
        return self.start_ns + self.length_ns


@dataclass(frozen=True, slots=True)
class Hang:
    """Something that did not end in time. `operation` is None where a history just stops."""

    seed: int
    operation: Operation | None
    text: str
    at_ns: int


def gaps(history: History) -> Iterator[Gap]:
    """Every wait for a next completion, in order. Time in which nothing was in flight is not counted.

    The last one ends with the history where requests were still in flight then.
    """
    return starmap(Gap, _waits(history))


def longest_gap(histories: Iterable[History]) -> Gap | None:
    """Of all of them. None: nothing was ever waited for."""
    longest = max((wait for history in histories for wait in _waits(history)), default=None)
    return None if longest is None else Gap(*longest)


def _waits(history: History) -> Iterator[tuple[int, int]]:
    """`gaps`, as (length, start): there is one for each request, and few are looked at."""
    events = [(operation.invoked_ns, _BEGINS) for operation in history.operations]
    events += [
        (operation.completed_ns, _ENDS)
        for operation in history.operations
        if operation.completed_ns is not None
    ]
    events.sort()
    in_flight, since = 0, 0
    for now, event in events:
        if event == _BEGINS:
            if in_flight == 0:
                since = now
            in_flight += 1
        else:
            yield now - since, since
            since = now
            in_flight -= 1
    if in_flight and history.last_ns > since:
        yield history.last_ns - since, since


def busy_ns(histories: Iterable[History], ended_ns: int) -> int:
    """How long anybody at all waited for an answer. What has none was waited for until its history's end, if it has
    one, and else until `ended_ns`.
    """
    waits = sorted(
        (operation.invoked_ns, _answered_ns(operation, history, ended_ns))
        for history in histories
        for operation in history.operations
    )
    busy, until = 0, 0
    for begin, end in waits:
        if end > until:
            busy += end - max(begin, until)
            until = end
    return busy


def _answered_ns(operation: Operation, history: History, ended_ns: int) -> int:
    if operation.completed_ns is not None:
        return operation.completed_ns
    return ended_ns if history.ending is Ending.NONE else history.last_ns


def gaps_around(history: History, instants_ns: Iterable[int]) -> list[Gap | None]:
    """For each instant, such as that of a kill, the wait that includes it; None: nothing was in flight then.

    From the instant to the gap's end is the time to the first completion after it.
    """
    every = list(_waits(history))
    starts = [start_ns for _, start_ns in every]
    found: list[Gap | None] = []
    for instant in instants_ns:
        index = bisect_right(starts, instant) - 1
        around = index >= 0 and instant < sum(every[index])
        found.append(Gap(*every[index]) if around else None)
    return found


def hangs(history: History, bound_ns: int, cut_ns: int | None, killed: Collection[int]) -> Iterator[Hang]:
    """What took longer than the bound, or was never answered though nothing excuses that.

    Args:
        bound_ns: within which every invocation must complete.
        cut_ns: when the machine under this history ended on purpose; None: it did not.
        killed: seeds of guests that were killed on purpose.
    """
    excused = cut_ns is not None or history.seed in killed
    ended_ns = max(history.last_ns, cut_ns or 0)
    for operation in history.operations:
        if operation.completed_ns is not None:
            took = operation.completed_ns - operation.invoked_ns
            if took > bound_ns:
                text = f"took {took / _NS_PER_S:.3f} s to complete"
                yield Hang(history.seed, operation, text, operation.invoked_ns)
            continue
        waited = ended_ns - operation.invoked_ns
        if waited > bound_ns or not excused:
            text = f"never completed; {waited / _NS_PER_S:.3f} s later the history ends"
            yield Hang(history.seed, operation, text, operation.invoked_ns)
    if history.ending is not Ending.FINISHED and not excused:
        gave_up = history.ending is Ending.GAVE_UP
        text = "gave up: its disk stopped answering" if gave_up else "its history stops without an end"
        yield Hang(history.seed, None, text, history.last_ns)
