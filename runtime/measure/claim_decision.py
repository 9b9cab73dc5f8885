"""Is it orders of magnitude slower? From rounds of figures to a verdict, purely.

Each cell is one way between guests beside one way between processes: the same payload, and peers in the same state. Its
factor is the median over the rounds of each round's own ratio, with an interval of 95 %.

"An order of magnitude" is a factor of ten, so the least that "orders of magnitude" can mean is two of them. We ask for
one only: whoever is not even ten times slower is not orders of magnitude slower.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from runtime.measure.paired_ratio import Interval, difference_of, ratio_of

ORDER_OF_MAGNITUDE: Final = 10.0


class Peers(StrEnum):
    """What the two sides are doing when a message comes."""

    WOKEN_SAME_CPU = "woken, one CPU"  # asleep, both on one CPU: a switch from one process to the other
    WOKEN_TWO_CPUS = "woken, two CPUs"  # asleep, on a CPU each: an interrupt between them
    RUNNING = "running"  # awake and looking


class Answer(StrEnum):
    YES = "yes"
    NO = "no"
    UNDECIDED = "undecided"


class Overall(StrEnum):
    TRUE = "true"  # in every cell
    FALSE = "false"  # in none
    DEPENDS = "depends"  # in some, and not in others
    UNDECIDED = "undecided"  # nothing else can be said


@dataclass(frozen=True, slots=True)
class Key:
    """A column of figures: ns of a round trip, one a round."""

    way: str
    peers: Peers
    payload_bytes: int


Figures = Mapping[Key, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Cell:
    """One comparison."""

    guests: Key
    processes: Key
    factor: Interval
    guests_ns: float  # medians
    processes_ns: float

    @property
    def answer(self) -> Answer:
        if self.factor.low >= ORDER_OF_MAGNITUDE:
            return Answer.YES
        if self.factor.high < ORDER_OF_MAGNITUDE:
            return Answer.NO
        return Answer.UNDECIDED


def compare(figures: Figures, guests: Iterable[str], processes: Iterable[str]) -> list[Cell]:
    """Every way between guests beside every way between processes that was measured alike."""
    between = list(processes)
    cells = []
    for key in (key for way in guests for key in figures if key.way == way):
        for way in between:
            other = Key(way, key.peers, key.payload_bytes)
            if other in figures:
                ours, theirs = figures[key], figures[other]
                medians = statistics.median(ours), statistics.median(theirs)
                cells.append(Cell(key, other, ratio_of(ours, theirs), *medians))
    return cells


def overall(cells: Sequence[Cell]) -> Overall:
    """ValueError: there is nothing to say it of."""
    if not cells:
        raise ValueError("no cells")
    answers = {cell.answer for cell in cells}
    if answers == {Answer.YES}:
        return Overall.TRUE
    if answers == {Answer.NO}:
        return Overall.FALSE
    return Overall.DEPENDS if {Answer.YES, Answer.NO} <= answers else Overall.UNDECIDED


@dataclass(frozen=True, slots=True)
class Part:
    """A share of a round trip."""

    name: str
    ns: Interval


@dataclass(frozen=True, slots=True)
class Makeup:
    """What one round trip between guests is made of. The parts' values are medians of each round's own differences."""

    key: Key
    total_ns: float
    parts: tuple[Part, ...]

    @property
    def largest(self) -> list[Part]:
        """The largest first."""
        return sorted(self.parts, key=lambda part: part.ns.value, reverse=True)

    def share(self, part: Part) -> float:
        return part.ns.value / self.total_ns


def makeup(
    figures: Figures,
    key: Key,
    direct: str,
    running: str,
    signal_bytes: int,
    hop: str = "the hop between them",
) -> Makeup:
    """Split a round trip by taking away one thing after the other. KeyError: a figure for that is missing.

    Args:
        hop: what to call all that a way has between the two guests and `direct` has not.
        direct: the way without any hop between the two guests, waiting as `key` does.
        running: the same way between peers that run.
        signal_bytes: the smallest payload: what is left of the data path.
    """
    whole = figures[key]
    bare = figures[Key(direct, key.peers, key.payload_bytes)]
    awake = figures[Key(running, Peers.RUNNING, key.payload_bytes)]
    least = figures[Key(running, Peers.RUNNING, signal_bytes)]
    parts = [
        Part("software: rings and programs", difference_of(least, [0.0] * len(least))),
        Part("data: copies of the payload", difference_of(awake, least)),
    ]
    if key.peers is not Peers.RUNNING:
        parts.append(Part("signalling: waking the peers", difference_of(bare, awake)))
    if key.way != direct:
        parts.append(Part(hop, difference_of(whole, bare)))
    return Makeup(key, statistics.median(whole), tuple(parts))
