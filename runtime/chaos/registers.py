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
from collections.abc import Iterator
from dataclasses import dataclass, field

from runtime.chaos.blocks import MISDIRECTED, TORN, UNFILLED, ZEROS
from runtime.chaos.history import Operation
from runtime.chaos.register_conflicts import BEFORE, BEGINNING, NEVER, Access, Conflict, Kind, Reason, kind_of
from runtime.chaos.register_zones import Cluster, DiscardDemands, Timeline, Zone, overlaps_of, zone_of


@dataclass(slots=True, eq=False)
class Register:
    """One block between two power cuts: accesses in, in any order; then `conflicts`."""

    initial: int | None = None  # None: unknown, and of no consequence
    clusters: dict[int, Cluster] = field(default_factory=dict)
    discards: list[Access] = field(default_factory=list)
    zero_reads: list[Access] = field(default_factory=list)
    torn_reads: list[Access] = field(default_factory=list)

    def write(self, value: int, access: Access) -> None:
        """ValueError: this value was written before."""
        cluster = self.clusters.get(value)
        if cluster is None:
            self.clusters[value] = Cluster(value, access)
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
            cluster = self.clusters[value] = Cluster(value)
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
        if not self.clusters and self.initial == ZEROS and not self.torn_reads:
            return []  # zeros from the beginning on, as half of a disk's blocks are
        found: list[Conflict] = []
        if self.initial not in (None, ZEROS, TORN):
            cluster = self.clusters.setdefault(self.initial, Cluster(self.initial))
            cluster.write = cluster.write or BEFORE
        if self.initial != TORN:  # where it was torn before, it may go on being read so
            found += self._judge_torn(tearing)
        held: list[Zone] = []
        brief: list[Zone] = []
        for cluster in self.clusters.values():
            zone = zone_of(cluster)
            if isinstance(zone, Conflict):
                found.append(zone)
            elif zone is not None:
                (held if zone.begin < zone.finish else brief).append(zone)
        held.sort(key=lambda zone: zone.begin)
        overlaps = list(overlaps_of(held))
        found += overlaps
        if not overlaps and (held or self.zero_reads):  # else nothing is in the way of anything
            timeline = Timeline(held)
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
                cluster = self.clusters.setdefault(TORN, Cluster(TORN))
                cluster.write = cluster.write or Access(start, end, unfinished[0].source, certain=False)
                cluster.add(read)
            else:
                yield Conflict(Kind.TORN, Reason.PIECES, TORN, read, read)

    def _judge_zeros(self, timeline: "Timeline", brief: list[Zone]) -> Iterator[Conflict]:
        givers: list[tuple[int, int, int]] = []  # (first instant, last instant, serial) of each discard
        discards = [*self.discards, BEFORE] if self.initial == ZEROS else self.discards
        for serial, access in enumerate(discards):
            first, last = timeline.open_from(access.start), timeline.open_until(access.end)
            if first <= last:
                givers.append((first, last, serial))
            elif access.certain:
                yield timeline.blame(access)
        givers.sort()
        demands: list[tuple[int, int, int, Access, Zone | None]] = []
        nearest = DiscardDemands(timeline, brief)
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
                kind = kind_of(read, zone.starter)
                yield Conflict(kind, Reason.NO_DISCARD, zone.value, zone.ender, zone.starter, ZEROS, read)
            else:
                yield Conflict(Kind.INVENTED, Reason.UNWRITTEN, ZEROS, read, read)


def _beside(read: Access, write: Access) -> bool:
    """They overlap, and come from different guests."""
    ours, theirs = read.source, write.source
    if not isinstance(ours, Operation) or not isinstance(theirs, Operation):
        return False
    return ours.seed != theirs.seed and read.start <= write.end and write.start <= read.end
