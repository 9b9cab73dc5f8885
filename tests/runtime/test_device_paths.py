"""Where an operation's time goes: parts add up to the whole, whatever was passed, and strangers change nothing."""

import random
from array import array

import pytest

from bus.native import Histogram
from bus.trace import ROUTE, SERVER, ChannelName, Hop, Stamp, Track, channel_number, port_number
from runtime.measure.devices import paths
from runtime.measure.devices.operations import OPERATIONS, OUTSIDE_OPERATIONS
from runtime.measure.devices.path_split import mean_ns, of_each_load, split_of_requests
from runtime.measure.devices.path_walk import ClientMoments, Stamps, split_of_way, stamps_of_way
from runtime.measure.devices.paths import CLIENT, Pick, Place, Seam, Spot, Way
from runtime.measure.trace_split import Request, Step
from runtime.trace_file import Capture, Moment, Process

WAYS = {
    name: way
    for name in dir(paths)
    if name.isupper() and isinstance(way := getattr(paths, name), tuple) and isinstance(way[0], Seam)
}


def passed(way: Way, rng: random.Random, begin: float, number: int) -> list[tuple[Seam, float, int]]:
    """One operation: every gate, and of the other seams some."""
    at, identity = begin, number
    found: list[tuple[Seam, float, int]] = []
    for seam in way:
        if seam.is_gate or rng.random() < 0.7:
            at += rng.randrange(1, 1000)
            if seam.is_gate and not seam.has_id:
                identity = identity * 7 + 1 if found else number
            found.append((seam, at, identity if seam.is_gate else 0))
    return found


@pytest.mark.parametrize("name", WAYS)
def test_the_parts_of_any_way_are_the_time_from_call_to_return(name: str) -> None:
    way, rng, stamps, whole, at = WAYS[name], random.Random(name), Stamps(), 0.0, 0.0
    for number in range(1, 40):
        operation = passed(way, rng, at, number)
        for seam, moment, identity in operation:
            stamps.add(seam.spot, seam.hop, moment, identity)
        whole += operation[-1][1] - operation[0][1]
        at = operation[-1][1] + 1
    stamps.sort()
    split = split_of_way(stamps, way, 39, whole / 39 + 5)
    assert (split.operations, split.incomplete) == (39, 0)
    assert sum(split.parts.values()) == pytest.approx(whole / 39)
    assert split.unaccounted_ns == pytest.approx(5)
    assert all(ns >= 0 for ns in split.parts.values())


@pytest.mark.parametrize("name", WAYS)
def test_an_operation_that_lacks_a_gate_is_incomplete_and_in_no_part(name: str) -> None:
    way = WAYS[name]
    gates = [seam for seam in way if seam.is_gate]
    for missing in gates[1:-1]:
        stamps = Stamps()
        for number, seam in enumerate(gates):
            if seam is not missing:
                stamps.add(seam.spot, seam.hop, number, 1)
        stamps.sort()
        split = split_of_way(stamps, way, 1, 10.0)
        assert (split.operations, split.incomplete, split.parts) == (0, 1, {})


def test_a_packet_of_another_operation_is_not_taken_for_this_one() -> None:
    """A stroke of before is still found by the guest while the next one is on its way to it."""
    guest, server = Spot("asker", "keyboard0"), Spot("asker", "keyboard0", True)
    screen, drawing = Spot("asker", "video0", True), Spot("asker", "video0")
    stamps = Stamps()
    for spot, hop, at, identity in (
        (CLIENT, Hop.CALL, 0, 0),
        (server, Hop.WRITE, 10, 8),
        (guest, Hop.TAKE, 12, 7),  # the stranger
        (guest, Hop.TAKE, 20, 8),
        (drawing, Hop.WRITE, 30, 3),
        (screen, Hop.TAKE, 40, 3),
        (CLIENT, Hop.RECEIVE, 50, 0),
        (CLIENT, Hop.RETURN, 60, 0),
    ):
        stamps.add(spot, hop, at, identity)
    stamps.sort()
    parts = split_of_way(stamps, paths.KEY, 1, 60.0).parts
    assert parts == {Place.VSP: 10, Place.RING: 20, Place.GUEST: 10, Place.BACKEND: 10, Place.OUTSIDE: 10}


def test_time_behind_a_wake_up_is_the_receivers_and_without_one_the_rings() -> None:
    def parts(*more: tuple[Spot, Hop, float]) -> dict[Place, float]:
        guest, server = Spot("asker", "echo0"), Spot("asker", "echo0", True)
        stamps = Stamps()
        for spot, hop, at in (
            (guest, Hop.CALL, 0.0),
            (guest, Hop.WRITE, 10.0),
            (server, Hop.TAKE, 50.0),
            (server, Hop.ANSWER, 60.0),
            (guest, Hop.RECEIVE, 70.0),
            (guest, Hop.RETURN, 80.0),
            *((server if spot.is_server else guest, hop, at) for spot, hop, at in more),
        ):
            stamps.add(spot, hop, at, 1)
        stamps.sort()
        return dict(split_of_way(stamps, paths.ECHO, 1, 80.0).parts)

    assert parts() == {Place.GUEST: 20, Place.RING: 50, Place.VSP: 10}
    woken = parts((Spot("", "", True), Hop.WAKE, 45.0), (Spot("", ""), Hop.PUBLISH, 15.0))
    assert woken == {Place.GUEST: 25, Place.WAKE: 30, Place.VSP: 15, Place.RING: 10}


def test_channels_are_found_by_guest_and_device_and_of_several_the_busiest_counts() -> None:
    """The interrupts of the hypervisor belong to the channel at whose port they arrive."""
    busy, idle, other = channel_number(3, 7), channel_number(3, 6), channel_number(4, 7)
    port, route = port_number(1, 9), ROUTE | 5
    names = [
        ChannelName(busy | SERVER, port, "server of 3.7 stream:2"),
        ChannelName(idle | SERVER, port_number(1, 8), "server of 3.6 stream:1"),
        ChannelName(other | SERVER, port_number(1, 7), "server of 4.7 disk0"),
    ]
    stamps = tuple(
        Stamp(at, channel, 1, Hop.WRITE) for at, channel in enumerate((idle, busy, busy, other, idle, busy))
    )
    root = Process("root", tuple(names), (Track(1, (Stamp(9, busy | SERVER, 1, Hop.TAKE),), 0),), 0)
    guest = Process("asker", (), (Track(2, stamps, 0),), 0)
    hypervisor = Process(
        "hypervisor",
        (ChannelName(route, port, "a route"),),
        (Track(3, (Stamp(8, route, 0, Hop.FLAG_SET),), 0),),
        0,
    )
    capture = Capture(Moment(0, 0), Moment(10, 1000), (root, guest, hypervisor))
    way = (
        Seam(Spot("asker", "stream:"), Hop.WRITE, Place.GUEST, is_gate=True),
        Seam(Spot("asker", "stream:", True), Hop.TAKE, Place.VSP, is_gate=True),
    )
    found = stamps_of_way(capture, way, [ClientMoments(100, 900, own_ns=50, identity=2)])
    assert [at for at, _ in found.all(Spot("asker", "stream:"), Hop.WRITE)] == [100, 200, 500]
    assert found.all(Spot("asker", "stream:", True), Hop.TAKE) == [(900, 1)]
    assert found.all(Spot("asker", "stream:", True), Hop.FLAG_SET) == [(800, 0)]
    assert [found.all(CLIENT, hop) for hop in (Hop.CALL, Hop.RECEIVE, Hop.RETURN)] == [
        [(100, 2)],
        [(850, 2)],
        [(900, 2)],
    ]


def test_of_requests_that_overlap_only_those_of_the_load_count() -> None:
    def one(number: int, scale: float) -> Request:
        moments = ((Step.WRITE, 0.0), (Step.PUBLISH, 10.0), (Step.TAKE_RUNNING, 40.0), (Step.ANSWER, 100.0))
        return Request(number, 1, number, tuple((step, at * scale) for step, at in moments))

    every = [one(number, scale) for number, scale in enumerate((1000.0, 5.0, 1.0, 3.0))]
    first, second = of_each_load(every, [1, 2])
    assert [request.number for request in (*first, *second)] == [1, 2, 3]
    split = split_of_requests(second, 2, 210.0)
    assert split.parts == {Place.GUEST: 20, Place.RING: 60, Place.VSP: 120}
    assert (split.operations, split.incomplete, split.unaccounted_ns) == (2, 0, 10)
    first, second = of_each_load(every, [9, 3])  # the oldest stamps are lost
    assert [len(first), len(second)] == [1, 3]
    assert split_of_requests(first, 9, 1.0).incomplete == 8
    assert split_of_requests((), 0, 0.0).parts == {}


def test_a_mean_of_buckets_is_the_mean_of_the_values() -> None:
    rng, latency = random.Random(4), Histogram()
    values = [rng.randrange(1, 1 << rng.randrange(1, 40)) for _ in range(5000)]
    latency.record_many(array("Q", values))
    assert mean_ns(latency) == pytest.approx(sum(values) / len(values), rel=0.004)
    assert mean_ns(Histogram()) == 0


def test_every_operation_that_waits_for_its_answer_has_a_way() -> None:
    for one in (*OPERATIONS, *OUTSIDE_OPERATIONS):
        assert one.means.name != "LATENCY" or one.way
    for way in WAYS.values():
        assert way[0].spot == way[-1].spot
        assert (way[0].hop, way[-1].hop) == (Hop.CALL, Hop.RETURN)
        assert way[0].pick is Pick.FIRST
