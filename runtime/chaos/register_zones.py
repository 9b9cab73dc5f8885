"""When a register certainly held a value, and when it is open what it held: the zones that `registers` explains."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from runtime.chaos.blocks import MISDIRECTED, ZEROS
from runtime.chaos.register_conflicts import BEGINNING, Access, Conflict, Kind, Reason, kind_of


@dataclass(slots=True, eq=False)
class Cluster:
    """A write and the reads of its value."""

    value: int
    write: Access | None = None
    ender: Access | None = None  # the read that ended first
    starter: Access | None = None  # the read that started last

    def add(self, read: Access) -> None:
        if self.ender is None or read.end < self.ender.end:
            self.ender = read
        if self.starter is None or read.start > self.starter.start:
            self.starter = read


@dataclass(slots=True, eq=False)
class Zone:
    begin: int
    finish: int
    value: int
    ender: Access  # ended at `begin`
    starter: Access  # started at `finish`


class Timeline:
    """The held zones, which do not overlap: where the register's value is certain, and where it is open."""

    def __init__(self, held: list[Zone]) -> None:
        self.held = held
        self.begins = [zone.begin for zone in held]
        self.finishes = [zone.finish for zone in held]

    def _inside(self, instant: int) -> Zone | None:
        index = bisect_left(self.begins, instant) - 1
        return self.held[index] if index >= 0 and instant < self.finishes[index] else None

    def open_from(self, instant: int) -> int:
        """The first open instant that is not before this one."""
        zone = self._inside(instant)
        return instant if zone is None else zone.finish

    def open_until(self, instant: int) -> int:
        zone = self._inside(instant)
        return instant if zone is None else zone.begin

    def last_finish(self, instant: int) -> tuple[int, Zone | None]:
        """The latest end of a held zone that is not after this instant."""
        index = bisect_right(self.finishes, instant) - 1
        return (self.finishes[index], self.held[index]) if index >= 0 else (BEGINNING, None)

    def place(self, brief: list[Zone]) -> Iterator[Conflict]:
        """Cut each brief zone to its first and last open instants; report and remove those that have none."""
        kept = []
        for zone in brief:
            first, last = self.open_from(zone.finish), self.open_until(zone.begin)
            if first <= last:
                zone.finish, zone.begin = first, last
                kept.append(zone)
            else:
                yield self.blame(zone.ender, zone.value)
        brief[:] = kept

    def blame(self, access: Access, value: int = ZEROS) -> Conflict:
        """`access`, to `value`, lies inside a held zone."""
        zone = self._inside(access.end)
        assert zone is not None
        kind = kind_of(access, zone.ender, zone.starter)
        return Conflict(kind, Reason.BETWEEN, zone.value, zone.ender, zone.starter, value, access)


class DiscardDemands:
    """For an open instant: since when a discard is needed for the register to hold zeros then."""

    def __init__(self, timeline: Timeline, brief: list[Zone]) -> None:
        self._timeline = timeline
        by_end = sorted(brief, key=lambda zone: zone.begin)
        self._ends = [zone.begin for zone in by_end]
        self._latest = list(accumulate(by_end, _later))

    def demand(self, instant: int) -> tuple[int, Zone | None]:
        left, zone = self._timeline.last_finish(instant)
        index = bisect_left(self._ends, instant) - 1
        if index >= 0 and (zone is None or self._latest[index].finish > left):
            zone = self._latest[index]
            left = zone.finish
        return left, zone


def _later(one: Zone, two: Zone) -> Zone:
    return two if two.finish > one.finish else one


def zone_of(cluster: Cluster) -> Zone | Conflict | None:
    """None: this write takes no part."""
    write, ender, starter = cluster.write, cluster.ender, cluster.starter
    if ender is None or starter is None:
        assert write is not None
        return Zone(write.end, write.start, cluster.value, write, write) if write.certain else None
    if write is None or ender.end < write.start:
        kind = Kind.MISDIRECTED if cluster.value == MISDIRECTED else Kind.INVENTED
        reason = Reason.UNWRITTEN if write is None else Reason.EARLY
        return Conflict(kind, reason, cluster.value, ender, ender, cluster.value, write)
    if write.end < ender.end:
        ender = write
    if write.start > starter.start:
        starter = write
    return Zone(ender.end, starter.start, cluster.value, ender, starter)


def overlaps_of(held: list[Zone]) -> Iterator[Conflict]:
    """Of zones in the order of their begin."""
    last: Zone | None = None
    for zone in held:
        if last is not None and zone.begin < last.finish:
            kind = kind_of(zone.ender, zone.starter, last.ender, last.starter)
            yield Conflict(kind, Reason.BETWEEN, last.value, last.ender, last.starter, zone.value, zone.ender)
        if last is None or zone.finish > last.finish:
            last = zone
