"""From stamps to requests, and from requests to where their time went. Pure: a capture in, numbers out.

A request begins at its WRITE and ends at its RECEIVE, or at the CALL and RETURN around them where a program made such.
Stamps that carry its id are found by that. Those of a whole end of a channel, such as a wake-up, belong to a request if
they lie where they must in its order: a doorbell that rang after the request had been taken was not what brought it on.
The split is made of the differences between neighbours, so its sum is the whole, exactly.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from bus.trace import ROUTE, SERVER, Hop
from runtime.trace_file import Capture


class Where(Enum):
    CLIENT = "client"
    TRAVEL = "ring"  # both sides run: cache lines, and looking
    WAKE = "wake-up"
    HYPERVISOR = "hypervisor"
    SERVER = "server"
    BACKEND = "backend"


class Step(Enum):
    """A moment of a request; its text names the time that ends there."""

    CALL = "", Where.CLIENT
    WRITE = "client: into the call", Where.CLIENT
    PUBLISH = "client: write the request", Where.CLIENT
    SIGNAL = "client: publish, up to the doorbell", Where.CLIENT
    BROKER_WAKE = "doorbell to hypervisor awake", Where.HYPERVISOR
    FLAG_SET = "hypervisor: set the flag", Where.HYPERVISOR
    WAKE = "doorbell to server awake", Where.WAKE
    TAKE = "server: awake, to the request", Where.SERVER
    TAKE_RUNNING = "request to a running server", Where.TRAVEL
    BACKEND_BEGIN = "server: understand the request", Where.SERVER
    BACKEND_END = "backend", Where.BACKEND
    ANSWER = "server: up to the answer", Where.SERVER
    PUBLISH_BACK = "server: write the completion", Where.SERVER
    SIGNAL_BACK = "server: publish, up to the doorbell", Where.SERVER
    BROKER_WAKE_BACK = "doorbell back to hypervisor awake", Where.HYPERVISOR
    FLAG_SET_BACK = "hypervisor: set the flag back", Where.HYPERVISOR
    WAKE_BACK = "doorbell back to client awake", Where.WAKE
    RECEIVE = "client: awake, to the completion", Where.CLIENT
    RECEIVE_RUNNING = "completion to a running client", Where.TRAVEL
    RETURN = "client: out of the call", Where.CLIENT

    @property
    def text(self) -> str:
        return self.value[0]

    @property
    def where(self) -> Where:
        return self.value[1]


ORDER: Final = tuple(Step)


@dataclass(frozen=True, slots=True)
class Request:
    """One request and its moments, in order: (step, ns)."""

    number: int  # in the order of their beginnings, over all channels
    channel: int
    transaction_id: int
    moments: tuple[tuple[Step, float], ...]
    generation: int = 1  # of who serves the channel: which of its processes answered, or asked

    @property
    def begin_ns(self) -> float:
        return self.moments[0][1]

    @property
    def end_ns(self) -> float:
        return self.moments[-1][1]

    @property
    def total_ns(self) -> float:
        return self.end_ns - self.begin_ns

    @property
    def parts(self) -> list[tuple[Step, float, float]]:
        """(what, from, ns): one behind the other, without a gap."""
        pairs = zip(self.moments, self.moments[1:], strict=False)
        return [(step, before, at - before) for (_, before), (step, at) in pairs]


@dataclass(frozen=True, slots=True)
class Requests:
    """What a capture holds."""

    requests: tuple[Request, ...]
    names: Mapping[int, str]  # of channels
    incomplete: int  # some stamps are missing: begun before, ended after, or lost
    disordered: int  # the clocks of two CPUs disagree: an answer seen before it was written
    lost_stamps: int


def titles(requests: Sequence[Request], names: Mapping[int, str]) -> dict[tuple[int, int], str]:
    """By channel and generation of who serves it, in order. The generation is said where there are several."""
    every = sorted({(one.channel, one.generation) for one in requests})
    channels = [channel for channel, _ in every]
    return {
        (channel, generation): names.get(channel, f"channel {channel:#x}")
        + (f", server generation {generation}" if channels.count(channel) > 1 else "")
        for channel, generation in every
    }


class _End:
    """One end of a channel, or the hypervisor's way to it: times by hop, sorted."""

    def __init__(self) -> None:
        self._times: defaultdict[Hop, list[float]] = defaultdict(list)

    def add(self, hop: Hop, at: float) -> None:
        self._times[hop].append(at)

    def sort(self) -> None:
        for times in self._times.values():
            times.sort()

    def first(self, hop: Hop, begin: float, end: float) -> float | None:
        """The first from `begin` to `end`, both included."""
        times = self._times[hop]
        index = bisect_left(times, begin)
        return times[index] if index < len(times) and times[index] <= end else None

    def last(self, hop: Hop, begin: float, end: float) -> float | None:
        times = self._times[hop]
        index = bisect_right(times, end) - 1
        return times[index] if index >= 0 and times[index] >= begin else None


@dataclass(slots=True)
class _Channel:
    client: _End
    server: _End
    to_client: _End
    to_server: _End
    marks: list[
        tuple[float, int, Hop, int]
    ]  # with an id: (ns, id, hop, generation of who serves the channel, or 0)

    def turned(self) -> "_Channel":
        """For requests of who serves it to the guest."""
        return _Channel(self.server, self.client, self.to_server, self.to_client, [])


_OF_REQUEST: Final = {Hop.WRITE, Hop.TAKE, Hop.BACKEND_BEGIN, Hop.BACKEND_END, Hop.ANSWER, Hop.RECEIVE}


def find_requests(capture: Capture) -> Requests:
    """Every whole request of a capture, in the order of their beginnings."""
    channels, names = _sorted_out(capture)
    found: list[tuple[int, int, tuple[tuple[Step, float], ...], int]] = []
    incomplete = disordered = 0
    for key, channel in channels.items():
        open_marks: dict[int, dict[Hop, float]] = {}
        asked_by_server: dict[int, bool] = {}
        served_by: dict[
            int, int
        ] = {}  # generation, by id: of the last stamp, for a successor does it all again
        for at, identity, hop, generation in sorted(channel.marks, key=lambda mark: mark[0]):
            if hop is Hop.WRITE:
                served_by.pop(identity, None)
                incomplete += identity in open_marks and Hop.TAKE in open_marks[identity]
                open_marks[identity] = {hop: at}
                asked_by_server[identity] = generation > 0
            if generation:
                served_by[identity] = generation
            if hop is Hop.WRITE:
                continue
            if identity not in open_marks:
                incomplete += hop is Hop.RECEIVE
            else:
                open_marks[identity][hop] = at
                if hop is Hop.RECEIVE:
                    marks = open_marks.pop(identity)
                    roles = channel.turned() if asked_by_server[identity] else channel
                    if not {Hop.TAKE, Hop.ANSWER} <= set(marks):
                        incomplete += 1
                    elif (moments := _moments(roles, marks)) is None:
                        disordered += 1
                    else:
                        found.append((key, identity, moments, served_by.get(identity, 1)))
        incomplete += len(open_marks)
    found.sort(key=lambda one: one[2][0][1])
    requests = tuple(Request(number, *one) for number, one in enumerate(found))
    return Requests(requests, names, incomplete, disordered, capture.lost)


def _sorted_out(capture: Capture) -> tuple[dict[int, _Channel], dict[int, str]]:
    to_ns = capture.clock()
    every = [name for process in capture.processes for name in process.names]
    ports = {name.port: name.channel for name in every if not name.channel & ROUTE}
    routes = {name.channel: ports[name.port] for name in every if name.channel & ROUTE and name.port in ports}
    names = {name.channel: name.text for name in every if not name.channel & (ROUTE | SERVER)}
    channels: dict[int, _Channel] = {}

    def channel_of(key: int) -> _Channel:
        if key not in channels:
            channels[key] = _Channel(_End(), _End(), _End(), _End(), [])
        return channels[key]

    for process in capture.processes:
        for track in process.tracks:
            for stamp in track.stamps:
                at = to_ns(stamp.ticks)
                target = routes.get(stamp.channel) if stamp.channel & ROUTE else stamp.channel
                if target is None:
                    continue
                channel = channel_of(target & ~SERVER)
                if stamp.channel & ROUTE:
                    (channel.to_server if target & SERVER else channel.to_client).add(stamp.hop, at)
                elif stamp.hop in _OF_REQUEST:
                    generation = max(track.generation, 1) if target & SERVER else 0
                    channel.marks.append((at, stamp.transaction_id, stamp.hop, generation))
                else:
                    (channel.server if target & SERVER else channel.client).add(stamp.hop, at)
    for channel in channels.values():
        for end in (channel.client, channel.server, channel.to_client, channel.to_server):
            end.sort()
    return channels, names


def _moments(channel: _Channel, marks: Mapping[Hop, float]) -> tuple[tuple[Step, float], ...] | None:
    """None: they contradict each other."""
    write, take, answer, receive = (marks[hop] for hop in (Hop.WRITE, Hop.TAKE, Hop.ANSWER, Hop.RECEIVE))
    if not write <= take <= answer <= receive:
        return None
    moments: list[tuple[Step, float]] = []
    call = channel.client.last(Hop.CALL, 0, write)
    returned = channel.client.last(Hop.RETURN, 0, write)
    if call is not None and (returned is None or returned <= call):
        moments.append((Step.CALL, call))
    moments.append((Step.WRITE, write))
    moments += _way(channel.client, channel.to_server, channel.server, write, take, _THERE)
    begin, end = marks.get(Hop.BACKEND_BEGIN), marks.get(Hop.BACKEND_END)
    if begin is not None and end is not None and take <= begin <= end <= answer:
        moments += [(Step.BACKEND_BEGIN, begin), (Step.BACKEND_END, end)]
    moments.append((Step.ANSWER, answer))
    moments += _way(channel.server, channel.to_client, channel.client, answer, receive, _BACK)
    following = channel.client.first(Hop.CALL, receive, float("inf"))
    after = channel.client.first(Hop.RETURN, receive, float("inf") if following is None else following)
    if call is not None and after is not None:
        moments.append((Step.RETURN, after))
    return tuple(moments)


_THERE: Final = (
    Step.PUBLISH,
    Step.SIGNAL,
    Step.BROKER_WAKE,
    Step.FLAG_SET,
    Step.WAKE,
    Step.TAKE,
    Step.TAKE_RUNNING,
)
_BACK: Final = (
    Step.PUBLISH_BACK,
    Step.SIGNAL_BACK,
    Step.BROKER_WAKE_BACK,
    Step.FLAG_SET_BACK,
    Step.WAKE_BACK,
    Step.RECEIVE,
    Step.RECEIVE_RUNNING,
)


def _way(
    sender: _End, hypervisor: _End, target: _End, begin: float, end: float, steps: Sequence[Step]
) -> list[tuple[Step, float]]:
    """From writing a packet to its being found: what lies in between, in its order."""
    publish, signal, broker, flag, wake, found, found_running = steps
    moments: list[tuple[Step, float]] = []
    at = begin
    if (published := sender.first(Hop.PUBLISH, begin, end)) is not None:
        moments.append((publish, published))
        at = published
    awake = target.last(Hop.WAKE, at, end)
    until = end if awake is None else awake
    for step, hop, where in (
        (signal, Hop.SIGNAL, sender),
        (broker, Hop.BROKER_WAKE, hypervisor),
        (flag, Hop.FLAG_SET, hypervisor),
    ):
        if (next_at := where.first(hop, at, until)) is None:
            break
        moments.append((step, next_at))
        at = next_at
    if awake is not None:
        moments.append((wake, awake))
    moments.append((found if awake is not None else found_running, end))
    return moments


def percentile(sorted_values: Sequence[float], percent: float) -> float:
    """Nearest rank: a value that was measured."""
    rank = max(-(-len(sorted_values) * percent // 100), 1)
    return sorted_values[int(rank) - 1]


def split_of(requests: Iterable[Request]) -> list[dict[str, Any]]:
    """A row for each hop: how many requests had it, p50 and p99 of those, and its share of the time of all."""
    values: defaultdict[Step, list[float]] = defaultdict(list)
    whole = 0.0
    for request in requests:
        whole += request.total_ns
        for step, _, took in request.parts:
            values[step].append(took)
    return [
        {
            "hop": step.text,
            "where": step.where.value,
            "requests": len(times),
            "p50_ns": round(percentile(times, 50)),
            "p99_ns": round(percentile(times, 99)),
            "share": round(sum(times) / whole, 4) if whole else 0.0,
        }
        for step in ORDER
        if (times := sorted(values[step]))
    ]
