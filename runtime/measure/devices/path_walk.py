"""From stamps to where the time of each operation went, along its way. Pure: a capture in, numbers out.

Operations follow one another: each has the stretch from its CALL to its RETURN for itself. Within it a way's gates are
found one behind the other, across a ring by the packet's own id; the seams between two gates are those that were
passed. The parts are differences between neighbours, so they add up to the time from CALL to RETURN. Whether that is
what the one who asked has measured by its own clock is another question, and `unaccounted` is the answer.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bus.trace import ROUTE, SERVER, Hop
from runtime.measure.devices.paths import CLIENT, Pick, Place, Seam, Spot, Way
from runtime.trace_file import Capture

_FOUND: Final = (Hop.TAKE, Hop.RECEIVE)  # what ends a crossing


@dataclass(frozen=True, slots=True)
class ClientMoments:
    """One operation as its client saw it, in ns of CLOCK_MONOTONIC, which the whole host shares."""

    call: int
    returned: int
    own_ns: int = 0  # of these, in the client's own code; counted as if it came last
    identity: int = 0  # what the operation's messages carry


class Stamps:
    """All stamps by spot and hop, in the order of their times."""

    def __init__(self) -> None:
        self._found: defaultdict[tuple[Spot, Hop], list[tuple[float, int]]] = defaultdict(list)

    def add(self, spot: Spot, hop: Hop, at: float, identity: int) -> None:
        self._found[spot, hop].append((at, identity))

    def sort(self) -> None:
        for every in self._found.values():
            every.sort()

    def all(self, spot: Spot, hop: Hop) -> Sequence[tuple[float, int]]:
        return self._found.get((spot, hop), ())

    def pick(
        self, seam: Seam, begin: float, end: float, identity: int | None = None
    ) -> tuple[float, int] | None:
        """From `begin` to `end`, both included; of that id, if one is given."""
        every = self.all(seam.spot, seam.hop)
        first, after = bisect_left(every, (begin, 0)), bisect_right(every, (end, 1 << 64))
        places = range(first, after) if seam.pick is Pick.FIRST else range(after - 1, first - 1, -1)
        return next((every[at] for at in places if identity is None or every[at][1] == identity), None)


@dataclass(frozen=True, slots=True)
class PathSplit:
    """Means over operations, in ns."""

    measured: int  # operations, by who asks
    operations: int  # that were traced from end to end
    whole_ns: float  # by the clock of who asks, over all that were measured
    parts: Mapping[Place, float] = field(default_factory=dict)

    @property
    def incomplete(self) -> int:
        """Whose stamps are not all there, or contradict each other."""
        return self.measured - self.operations

    @property
    def unaccounted_ns(self) -> float:
        """What that clock measured beyond the parts; below zero: less than they are."""
        return self.whole_ns - sum(self.parts.values())

    def share(self, ns: float) -> float:
        return ns / self.whole_ns if self.whole_ns else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "measured": self.measured,
            "operations": self.operations,
            "incomplete": self.incomplete,
            "whole_us": round(self.whole_ns / 1e3, 3),
            "parts_us": {place.value: round(ns / 1e3, 3) for place, ns in self.parts.items()},
            "unaccounted_us": round(self.unaccounted_ns / 1e3, 3),
        }


def walk(stamps: Stamps, way: Way) -> Iterable[dict[Place, float] | None]:
    """The parts of each operation. None: it is incomplete."""
    begin, end = way[0], way[-1]
    returns = stamps.all(end.spot, end.hop)
    calls = stamps.all(begin.spot, begin.hop)
    for (called, identity), (following, _) in zip(calls, [*calls[1:], (float("inf"), 0)], strict=True):
        at = bisect_left(returns, (called, 0))
        if at == len(returns) or returns[at][0] > following:
            yield None
        else:
            yield _parts(stamps, way, called, returns[at][0], identity)


def _parts(
    stamps: Stamps, way: Way, called: float, returned: float, identity: int
) -> dict[Place, float] | None:
    parts: defaultdict[Place, float] = defaultdict(float)
    at, passing = called, list[Seam]()
    for seam in way[1:]:
        if not seam.is_gate:
            passing.append(seam)
            continue
        if seam is way[-1]:
            until = returned
        else:
            found = stamps.pick(seam, at, returned, identity if seam.has_id else None)
            if found is None:
                return None
            until, identity = found
        woken = False
        for between in passing:
            if (found := stamps.pick(between, at, until)) is not None:
                parts[between.place] += found[0] - at
                at = found[0]
                woken |= between.hop is Hop.WAKE
        passing.clear()
        parts[seam.place if woken or seam.hop not in _FOUND or seam.spot == CLIENT else Place.RING] += (
            until - at
        )
        at = until
    return dict(parts)


def split_of_way(stamps: Stamps, way: Way, measured: int, whole_ns: float) -> PathSplit:
    """`measured`, `whole_ns`: how many operations there were, and their mean, by the clock of who asks."""
    complete = [parts for parts in walk(stamps, way) if parts is not None]
    count = len(complete)
    means = {
        place: sum(parts.get(place, 0.0) for parts in complete) / count
        for place in Place
        if any(place in parts for parts in complete)
    }
    return PathSplit(measured, count, whole_ns, means)


# -- out of a capture


def stamps_of_way(capture: Capture, way: Way, client: Sequence[ClientMoments] = ()) -> Stamps:
    """Of the channels that the way crosses, each found by its guest and its device; and of the client."""
    to_ns = capture.clock()
    wanted = {seam.spot for seam in way if seam.spot != CLIENT}
    channels = {}
    for guest, device in {(spot.guest, spot.device) for spot in wanted}:
        if (channel := _channel_of(capture, guest, device)) is not None:
            channels[channel] = guest, device
    names = [name for process in capture.processes for name in process.names]
    ports = {name.port: name.channel for name in names if not name.channel & ROUTE}
    routes = {name.channel: ports[name.port] for name in names if name.channel & ROUTE and name.port in ports}
    stamps = Stamps()
    for process in capture.processes:
        for track in process.tracks:
            for stamp in track.stamps:
                target = routes.get(stamp.channel, 0) if stamp.channel & ROUTE else stamp.channel
                if (end := channels.get(target & ~SERVER)) is not None:
                    spot = Spot(*end, bool(target & SERVER))
                    stamps.add(spot, stamp.hop, to_ns(stamp.ticks), stamp.transaction_id)
    for one in client:
        stamps.add(CLIENT, Hop.CALL, one.call, one.identity)
        stamps.add(CLIENT, Hop.RECEIVE, one.returned - one.own_ns, one.identity)
        stamps.add(CLIENT, Hop.RETURN, one.returned, one.identity)
    stamps.sort()
    return stamps


def _channel_of(capture: Capture, guest: str, device: str) -> int | None:
    """Of several, as a guest's streams are, the one that the most passes through."""
    served = {
        name.channel & ~SERVER
        for process in capture.processes
        for name in process.names
        if name.channel & SERVER and name.text.partition(" of ")[2].partition(" ")[2].startswith(device)
    }
    counts: defaultdict[int, int] = defaultdict(int)
    for process in capture.processes:
        if process.name == guest:
            for track in process.tracks:
                for stamp in track.stamps:
                    if stamp.channel in served:
                        counts[stamp.channel] += 1
    return max(counts, key=lambda channel: counts[channel], default=None)
