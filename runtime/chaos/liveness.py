"""Did everything that was asked get an answer, and how long did nothing move?"""

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from runtime.chaos.history import Ending, History, Operation

_NS_PER_S = 1_000_000_000


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
    events = [(operation.invoked_ns, 1) for operation in history.operations]
    events += [
        (operation.completed_ns, -1) for operation in history.operations if operation.completed_ns is not None
    ]
    events.sort(key=lambda event: (event[0], -event[1]))
    in_flight, since = 0, 0
    for now, change in events:
        if change > 0:
            if in_flight == 0:
                since = now
        else:
            yield Gap(now - since, since)
            since = now
        in_flight += change
    if in_flight and history.last_ns > since:
        yield Gap(history.last_ns - since, since)


def gaps_around(history: History, instants_ns: Iterable[int]) -> list[Gap | None]:
    """For each instant, such as that of a kill, the wait that includes it; None: nothing was in flight then.

    From the instant to the gap's end is the time to the first completion after it.
    """
    every = list(gaps(history))
    starts = [gap.start_ns for gap in every]
    found: list[Gap | None] = []
    for instant in instants_ns:
        index = bisect_right(starts, instant) - 1
        around = index >= 0 and instant < every[index].end_ns
        found.append(every[index] if around else None)
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
