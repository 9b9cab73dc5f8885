"""Is one block's history that of a register? Decided exactly, in O(n log n).

A block is a register: each access takes effect at one instant between its start and its end, and a read returns what
the last write before it wrote. A request over several blocks is an access to each of them by itself, as on a real disk.

**Versions are unique**, so each read names its write, and a write with its reads is a *cluster* whose accesses stand in
one piece in any explanation of the history. With `begin` = the earliest end of an access in the cluster and `finish` =
the latest start, a cluster is one of two things (Gibbons and Korach, Testing Shared Memories, 1997):

* begin < finish, *held*: the register certainly had this value all the way from `begin` to `finish`;
* else *brief*: all its accesses may happen at one instant, at any one within [finish, begin].

The history is a register's if no two held zones overlap, and each brief cluster has an instant outside of all held
zones. An instant is shared at will: at it any number of accesses happen, in any order.

**Zeros are not unique**: every discard writes them. Once the held zones of versions are known (call the time outside of
them open), it remains to choose an instant in the open time for each discard, so that every read of zeros finds them:

* A brief cluster is best placed as late as possible: directly before a discard's instant if one lies within it, where
  it harms no reader, else at its own end. So a read of zeros over [u, v] fails exactly if some version was certainly
  there before u (a held zone that ends before it, or a brief cluster [x, y] with y < u) and no discard's instant lies
  between that zone's end, or that x, and v. Of these demands on one read the latest left border implies the rest.
* So each read demands one discard's instant in one interval, and each discard has one instant to give, within its own
  interval. Serving the demands by their right border, each unserved one by the discard whose end comes first, at the
  latest instant possible, is optimal: that discard is of less use to every later demand than any other is.

A write that failed, or that nobody saw complete, may have happened or not: it takes part only if its value was read.
"""

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate
from typing import Final

from runtime.chaos.blocks import MISDIRECTED, TORN, UNFILLED, ZEROS
from runtime.chaos.history import Operation

BEGINNING: Final = -1  # before every clock
NEVER: Final = 1 << 63  # after every clock


class Kind(StrEnum):
    """What is wrong."""

    LOST = "lost"  # something acknowledged is not there, or something older came back
    NOT_DURABLE = "not_durable"  # gone after a power cut, though a flush that followed it had completed
    TORN = "torn"  # a block made of pieces
    INVENTED = "invented"  # data that nobody ever wrote there, or not yet
    MISDIRECTED = "misdirected"  # another block's data
    HUNG = "hung"  # no completion, or one beyond the bound


class Reason(StrEnum):
    """How it is known."""

    UNWRITTEN = "unwritten"  # no write has this value
    EARLY = "early"  # read before its write, `other`, began
    PIECES = "pieces"
    BETWEEN = "between"  # `other` came while the register certainly held `value`
    NO_DISCARD = "no_discard"  # `other` read zeros after `value` was there, and no discard came between
    TWO_SURVIVORS = "two_survivors"  # of one power cut
    FORGOTTEN = "forgotten"  # `since` was on the medium, and a power cut left `other_value`, which is older


@dataclass(slots=True, eq=False)
class Access:
    """When a request may have taken effect: after `start`, before `end`. One for all blocks of the request."""

    start: int  # ns
    end: int
    source: Operation | str
    certain: bool = True  # False: perhaps it never took effect
    power_cut: bool = False  # not a request but what a power cut left
    durable: bool = False  # a write whose completion said that it was on the medium

    def __str__(self) -> str:
        return str(self.source)


_BEFORE: Final = Access(BEGINNING, BEGINNING, "the beginning")


@dataclass(slots=True, eq=False)
class Conflict:
    """Why the history is no register's. `value` was there at `since` and `until`; `other` does not go with that."""

    kind: Kind
    reason: Reason
    value: int
    since: Access
    until: Access
    other_value: int | None = None
    other: Access | None = None


@dataclass(slots=True, eq=False)
class _Cluster:
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
class _Zone:
    begin: int
    finish: int
    value: int
    ender: Access  # ended at `begin`
    starter: Access  # started at `finish`


@dataclass(slots=True, eq=False)
class Register:
    """One block between two power cuts: accesses in, in any order; then `conflicts`."""

    initial: int | None = None  # None: unknown, and of no consequence
    clusters: dict[int, _Cluster] = field(default_factory=dict)
    discards: list[Access] = field(default_factory=list)
    zero_reads: list[Access] = field(default_factory=list)
    torn_reads: list[Access] = field(default_factory=list)

    def write(self, value: int, access: Access) -> None:
        """ValueError: this value was written before."""
        cluster = self.clusters.get(value)
        if cluster is None:
            self.clusters[value] = _Cluster(value, access)
        elif cluster.write is None:
            cluster.write = access
        else:
            raise ValueError(f"{access} and {cluster.write} wrote the same value")

    def discard(self, access: Access) -> None:
        self.discards.append(access)

    def read(self, value: int, access: Access) -> None:
        if value == ZEROS:
            self.zero_reads.append(access)
            return
        if value == TORN:
            self.torn_reads.append(access)
            return
        cluster = self.clusters.get(value)
        if cluster is None:
            cluster = self.clusters[value] = _Cluster(value)
        cluster.add(access)

    def wrote(self, value: int) -> bool:
        cluster = self.clusters.get(value)
        return cluster is not None and cluster.write is not None

    def survivors(self) -> list[int]:
        """Values that were read and not written here, in the order of their first read: they were there before."""
        unwritten = [cluster for cluster in self.clusters.values() if cluster.write is None]
        unwritten = [cluster for cluster in unwritten if cluster.value not in (MISDIRECTED, UNFILLED)]
        unwritten.sort(key=lambda cluster: cluster.ender.end if cluster.ender is not None else NEVER)
        values = [cluster.value for cluster in unwritten]
        if self.torn_reads and not self._unfinished():
            values.append(TORN)
        return values

    def forgotten(self, survivor: int) -> tuple[int, Access] | None:
        """A durable write, and its value, that came after all that made `survivor`: no power cut may leave that.

        Accesses to one value stand in one piece: of two values one came first as a whole, certainly so if one of its
        accesses ended before one of the other's began.
        """
        if survivor == TORN:
            return None
        if survivor == ZEROS:
            last = max((discard.end for discard in self.discards), default=BEGINNING)
        else:
            cluster = self.clusters.get(survivor)
            last = BEGINNING if cluster is None or cluster.write is None else cluster.write.end
            if cluster is not None and cluster.ender is not None:
                last = min(last, cluster.ender.end)
        for cluster in self.clusters.values():
            write, starter = cluster.write, cluster.starter
            if write is None or not write.durable or cluster.value == survivor:
                continue
            if last < (write.start if starter is None else max(write.start, starter.start)):
                return cluster.value, write
        return None

    def first_read(self, value: int) -> Access:
        """Of a value that was read here."""
        reads = {ZEROS: self.zero_reads, TORN: self.torn_reads}.get(value)
        if reads is not None:
            return min(reads, key=lambda read: read.end)
        ender = self.clusters[value].ender
        assert ender is not None
        return ender

    def conflicts(self, *, tearing: bool = False) -> list[Conflict]:
        """Empty: the history is a register's. Each is a proof by itself; they are not all that could be named.

        Args:
            tearing: a read beside another guest's write of the same block may return pieces of both.
        """
        found: list[Conflict] = []
        if self.initial not in (None, ZEROS, TORN):
            cluster = self.clusters.setdefault(self.initial, _Cluster(self.initial))
            cluster.write = cluster.write or _BEFORE
        if self.initial != TORN:  # where it was torn before, it may go on being read so
            found += self._judge_torn(tearing)
        held: list[_Zone] = []
        brief: list[_Zone] = []
        for cluster in self.clusters.values():
            zone = _zone_of(cluster)
            if isinstance(zone, Conflict):
                found.append(zone)
            elif zone is not None:
                (held if zone.begin < zone.finish else brief).append(zone)
        held.sort(key=lambda zone: zone.begin)
        overlaps = list(_overlaps(held))
        found += overlaps
        if not overlaps:
            timeline = _Timeline(held)
            found += timeline.place(brief)
            found += self._judge_zeros(timeline, brief)
        for conflict in found:
            if TORN in (conflict.value, conflict.other_value):
                conflict.kind = Kind.TORN
        return found

    def _unfinished(self) -> list[Access]:
        return [access for access in self._writes() if not access.certain]

    def _writes(self) -> list[Access]:
        writes = [cluster.write for cluster in self.clusters.values() if cluster.write is not None]
        return writes + self.discards

    def _judge_torn(self, tearing: bool) -> Iterator[Conflict]:
        """A write that failed, or was cut off, may have left a torn block: then that is what it wrote."""
        writes = self._writes()
        for read in self.torn_reads:
            if tearing and any(_beside(read, access) for access in writes):
                continue
            if unfinished := [access for access in self._unfinished() if access.start <= read.end]:
                start, end = min(a.start for a in unfinished), max(a.end for a in unfinished)
                cluster = self.clusters.setdefault(TORN, _Cluster(TORN))
                cluster.write = cluster.write or Access(start, end, unfinished[0].source, certain=False)
                cluster.add(read)
            else:
                yield Conflict(Kind.TORN, Reason.PIECES, TORN, read, read)

    def _judge_zeros(self, timeline: "_Timeline", brief: list[_Zone]) -> Iterator[Conflict]:
        givers: list[tuple[int, int, int]] = []  # (first instant, last instant, serial) of each discard
        discards = [*self.discards, _BEFORE] if self.initial == ZEROS else self.discards
        for serial, access in enumerate(discards):
            first, last = timeline.open_from(access.start), timeline.open_until(access.end)
            if first <= last:
                givers.append((first, last, serial))
            elif access.certain:
                yield timeline.blame(access)
        givers.sort()
        demands: list[tuple[int, int, int, Access, _Zone | None]] = []
        nearest = _Before(timeline, brief)
        for serial, read in enumerate(self.zero_reads):
            first, last = timeline.open_from(read.start), timeline.open_until(read.end)
            if first > last:
                yield timeline.blame(read)
                continue
            left, zone = nearest.demand(first)
            demands.append((last, -left, serial, read, zone))
        demands.sort(key=lambda demand: demand[:3])
        ready: list[tuple[int, int]] = []
        given, next_giver = BEGINNING - 1, 0
        for last, negated, _, read, zone in demands:
            left = -negated
            if given >= left:
                continue
            while next_giver < len(givers) and givers[next_giver][0] <= last:
                heapq.heappush(ready, givers[next_giver][1:])
                next_giver += 1
            while ready and ready[0][0] < left:
                heapq.heappop(ready)
            if ready:
                given = min(last, heapq.heappop(ready)[0])
            elif zone is not None:
                kind = _kind(read, zone.starter)
                yield Conflict(kind, Reason.NO_DISCARD, zone.value, zone.ender, zone.starter, ZEROS, read)
            else:
                yield Conflict(Kind.INVENTED, Reason.UNWRITTEN, ZEROS, read, read)


class _Timeline:
    """The held zones, which do not overlap: where the register's value is certain, and where it is open."""

    def __init__(self, held: list[_Zone]) -> None:
        self.held = held
        self.begins = [zone.begin for zone in held]
        self.finishes = [zone.finish for zone in held]

    def _inside(self, instant: int) -> _Zone | None:
        index = bisect_left(self.begins, instant) - 1
        return self.held[index] if index >= 0 and instant < self.finishes[index] else None

    def open_from(self, instant: int) -> int:
        """The first open instant that is not before this one."""
        zone = self._inside(instant)
        return instant if zone is None else zone.finish

    def open_until(self, instant: int) -> int:
        zone = self._inside(instant)
        return instant if zone is None else zone.begin

    def last_finish(self, instant: int) -> tuple[int, _Zone | None]:
        """The latest end of a held zone that is not after this instant."""
        index = bisect_right(self.finishes, instant) - 1
        return (self.finishes[index], self.held[index]) if index >= 0 else (BEGINNING, None)

    def place(self, brief: list[_Zone]) -> Iterator[Conflict]:
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
        kind = _kind(access, zone.ender, zone.starter)
        return Conflict(kind, Reason.BETWEEN, zone.value, zone.ender, zone.starter, value, access)


class _Before:
    """For an open instant: since when a discard is needed for the register to hold zeros then."""

    def __init__(self, timeline: _Timeline, brief: list[_Zone]) -> None:
        self._timeline = timeline
        by_end = sorted(brief, key=lambda zone: zone.begin)
        self._ends = [zone.begin for zone in by_end]
        self._latest = list(accumulate(by_end, _later))

    def demand(self, instant: int) -> tuple[int, _Zone | None]:
        left, zone = self._timeline.last_finish(instant)
        index = bisect_left(self._ends, instant) - 1
        if index >= 0 and (zone is None or self._latest[index].finish > left):
            zone = self._latest[index]
            left = zone.finish
        return left, zone


def _later(one: _Zone, two: _Zone) -> _Zone:
    return two if two.finish > one.finish else one


def _zone_of(cluster: _Cluster) -> _Zone | Conflict | None:
    """None: this write takes no part."""
    write, ender, starter = cluster.write, cluster.ender, cluster.starter
    if ender is None or starter is None:
        assert write is not None
        return _Zone(write.end, write.start, cluster.value, write, write) if write.certain else None
    if write is None or ender.end < write.start:
        kind = Kind.MISDIRECTED if cluster.value == MISDIRECTED else Kind.INVENTED
        reason = Reason.UNWRITTEN if write is None else Reason.EARLY
        return Conflict(kind, reason, cluster.value, ender, ender, cluster.value, write)
    if write.end < ender.end:
        ender = write
    if write.start > starter.start:
        starter = write
    return _Zone(ender.end, starter.start, cluster.value, ender, starter)


def _overlaps(held: list[_Zone]) -> Iterator[Conflict]:
    """Of zones in the order of their begin."""
    last: _Zone | None = None
    for zone in held:
        if last is not None and zone.begin < last.finish:
            kind = _kind(zone.ender, zone.starter, last.ender, last.starter)
            yield Conflict(kind, Reason.BETWEEN, last.value, last.ender, last.starter, zone.value, zone.ender)
        if last is None or zone.finish > last.finish:
            last = zone


def _kind(*accesses: Access) -> Kind:
    return Kind.NOT_DURABLE if any(access.power_cut for access in accesses) else Kind.LOST


def _beside(read: Access, write: Access) -> bool:
    """They overlap, and come from different guests."""
    ours, theirs = read.source, write.source
    if not isinstance(ours, Operation) or not isinstance(theirs, Operation):
        return False
    return ours.seed != theirs.seed and read.start <= write.end and write.start <= read.end
