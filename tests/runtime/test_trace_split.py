"""From stamps to splits and pictures: sums are whole, order is kept, and what does not belong is left out."""

import json
import mmap
import os
import random
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bus.native import Trace
from bus.trace import (
    ROUTE,
    SERVER,
    STAMPS_MIN,
    ChannelName,
    Hop,
    Stamp,
    TraceReader,
    Track,
    channel_number,
    create_trace,
    port_number,
)
from runtime.exits import CommandError
from runtime.measure.trace_flame import flame_svg
from runtime.measure.trace_perfetto import chosen, perfetto
from runtime.measure.trace_split import Request, Step, Where, find_requests, split_of, titles
from runtime.trace_file import Capture, CaptureError, Moment, Process

CHANNEL = channel_number(2, 1)
ANOTHER = channel_number(2, 2)
TO_SERVER, TO_CLIENT = port_number(1, 0x20001), port_number(2, 0x40001)
Mark = tuple[int, str, Hop, int]  # ns, who, hop, id


def capture(marks: Sequence[Mark], channel: int = CHANNEL) -> Capture:
    """One tick is half a nanosecond."""
    ours = {"client": channel, "server": channel | SERVER, "there": ROUTE | 1, "back": ROUTE | 2}
    stamps: dict[str, list[Stamp]] = {"client": [], "server": [], "hypervisor": []}
    for at, who, hop, identity in sorted(marks):
        process = who if who in stamps else "hypervisor"
        stamps[process].append(Stamp(2 * at, ours[who], identity, hop))
    names = {
        "client": (ChannelName(channel, TO_CLIENT, "disk0"),),
        "server": (ChannelName(channel | SERVER, TO_SERVER, "server"),),
        "hypervisor": (ChannelName(ROUTE | 1, TO_SERVER, ""), ChannelName(ROUTE | 2, TO_CLIENT, "")),
    }
    processes = tuple(
        Process(name, names[name], (Track(1, tuple(each), 0),), 0) for name, each in stamps.items()
    )
    return Capture(Moment(0, 0), Moment(2_000_000, 1_000_000), processes)


WOKEN: list[Mark] = [
    (10, "client", Hop.CALL, 0),
    (20, "client", Hop.WRITE, 5),
    (30, "client", Hop.PUBLISH, 5),
    (40, "client", Hop.SIGNAL, 5),
    (60, "there", Hop.BROKER_WAKE, 0),
    (61, "there", Hop.FLAG_SET, 0),
    (100, "server", Hop.WAKE, 0),
    (110, "server", Hop.TAKE, 5),
    (120, "server", Hop.BACKEND_BEGIN, 5),
    (220, "server", Hop.BACKEND_END, 5),
    (221, "server", Hop.ANSWER, 5),
    (230, "server", Hop.PUBLISH, 5),
    (240, "server", Hop.SIGNAL, 5),
    (260, "back", Hop.BROKER_WAKE, 0),
    (262, "back", Hop.FLAG_SET, 0),
    (300, "client", Hop.WAKE, 0),
    (310, "client", Hop.RECEIVE, 5),
    (330, "client", Hop.RETURN, 0),
]


def steps(request: Request) -> list[Step]:
    return [step for step, _ in request.moments]


def test_a_request_through_every_hop_is_split_into_all_of_them() -> None:
    (request,) = find_requests(capture(WOKEN)).requests
    running = {Step.TAKE_RUNNING, Step.RECEIVE_RUNNING}
    assert steps(request) == [step for step in Step if step not in running]
    assert request.total_ns == 320
    rows = {row["hop"]: row for row in split_of([request])}
    assert rows[Step.BACKEND_END.text]["p50_ns"] == 100
    assert rows[Step.BACKEND_END.text]["share"] == pytest.approx(100 / 320, abs=1e-4)
    assert rows[Step.WAKE.text]["p50_ns"] == 39


@pytest.mark.parametrize("seed", range(60))
def test_whatever_stamps_are_missing_the_parts_add_up_to_the_whole(seed: int) -> None:
    rng = random.Random(seed)
    kept = [mark for mark in WOKEN if rng.random() < 0.8]
    found = find_requests(capture(kept))
    needed = {Hop.WRITE, Hop.TAKE, Hop.ANSWER, Hop.RECEIVE}
    complete = needed <= {mark[2] for mark in kept}
    assert len(found.requests) == complete
    for request in found.requests:
        times = [at for _, at in request.moments]
        assert times == sorted(times)
        assert sum(took for _, _, took in request.parts) == pytest.approx(request.total_ns)
        assert sum(row["share"] for row in split_of([request])) == pytest.approx(1, abs=1e-3)


def test_a_doorbell_that_rang_after_the_request_was_taken_did_not_bring_it() -> None:
    """A server that was awake takes it before the client has come to ringing."""
    late = [mark for mark in WOKEN if mark[2] not in (Hop.WAKE, Hop.SIGNAL, Hop.BROKER_WAKE, Hop.FLAG_SET)]
    late += [
        (150, "client", Hop.SIGNAL, 5),
        (160, "there", Hop.BROKER_WAKE, 0),
        (170, "there", Hop.FLAG_SET, 0),
    ]
    (request,) = find_requests(capture(late)).requests
    assert steps(request)[2:4] == [Step.PUBLISH, Step.TAKE_RUNNING]
    assert not {Step.SIGNAL, Step.BROKER_WAKE, Step.WAKE} & set(steps(request))
    assert Step.RECEIVE_RUNNING in steps(request)


def test_requests_of_a_batch_share_a_publish_and_a_wake_up() -> None:
    marks: list[Mark] = [(10 + n, "client", Hop.WRITE, n) for n in (1, 2, 3)]
    marks += [(20, "client", Hop.PUBLISH, 3), (30, "client", Hop.SIGNAL, 3), (50, "server", Hop.WAKE, 0)]
    for n in (1, 2, 3):
        marks += [(60 + 10 * n, "server", Hop.TAKE, n), (65 + 10 * n, "server", Hop.ANSWER, n)]
        marks += [(110 + n, "client", Hop.RECEIVE, n)]
    marks += [(100, "server", Hop.PUBLISH, 3)]
    found = find_requests(capture(marks))
    assert [request.transaction_id for request in found.requests] == [1, 2, 3]
    assert found.incomplete == 0
    for request in found.requests:
        assert dict(request.moments)[Step.PUBLISH] == 20
        assert dict(request.moments)[Step.WAKE] == 50
        assert dict(request.moments)[Step.PUBLISH_BACK] == 100


def test_an_id_that_is_used_again_is_another_request() -> None:
    again = [(at + 1000, who, hop, identity) for at, who, hop, identity in WOKEN]
    found = find_requests(capture([*WOKEN, *again]))
    assert [request.total_ns for request in found.requests] == [320, 320]
    assert [request.number for request in found.requests] == [0, 1]


def test_an_answer_from_before_its_request_is_counted_as_disorder_and_left_out() -> None:
    swapped = [mark for mark in WOKEN if mark[2] is not Hop.TAKE] + [(15_0, "server", Hop.TAKE, 5)]
    swapped = [mark for mark in swapped if mark[2] is not Hop.ANSWER] + [(14_0, "server", Hop.ANSWER, 5)]
    found = find_requests(capture(swapped))
    assert (len(found.requests), found.disordered) == (0, 1)


def test_a_capture_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    ours = capture(WOKEN)
    assert Capture.decode(ours.encode()) == ours
    path = tmp_path / "trace"
    for content in (b"", b"\x00" * 100, b"\x80", ours.encode()[:-3]):
        path.write_bytes(content)
        with pytest.raises(CaptureError, match="no trace: make one with"):
            Capture.read(path)
    with pytest.raises(CaptureError, match="No such file"):
        Capture.read(tmp_path / "none")


def overlapping(seed: int) -> list[Request]:
    """Requests on two channels, at any times."""
    rng = random.Random(seed)
    requests = []
    for number in range(30):
        at = rng.uniform(0, 1000)
        moments = [(Step.WRITE, at)]
        for step in (Step.PUBLISH, Step.TAKE_RUNNING, Step.ANSWER, Step.PUBLISH_BACK, Step.RECEIVE_RUNNING):
            at += rng.choice([0.0, rng.uniform(0, 80)])
            moments.append((step, at))
        requests.append(Request(number, rng.choice([CHANNEL, ANOTHER]), number, tuple(moments)))
    return requests


def check_perfetto(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The rules of the format, and those of slices: in the order of time, nested or apart."""
    assert set(document) == {"displayTimeUnit", "traceEvents"}
    last = 0.0
    open_slices: dict[tuple[int, int], list[tuple[float, float]]] = {}
    slices = []
    for event in document["traceEvents"]:
        assert type(event["pid"]) is int
        assert type(event["tid"]) is int
        assert isinstance(event["name"], str)
        assert isinstance(event["ts"], int | float)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name")
            assert isinstance(event["args"]["name"], str)
            continue
        assert event["ph"] == "X"
        assert isinstance(event["dur"], int | float)
        assert event["ts"] >= last
        assert event["dur"] >= 0
        last = event["ts"]
        begin, end = event["ts"], event["ts"] + event["dur"]
        stack = open_slices.setdefault((event["pid"], event["tid"]), [])
        while stack and stack[-1][1] <= begin + 1e-6:
            stack.pop()
        assert all(start - 1e-6 <= begin and end <= stop + 1e-6 for start, stop in stack), event
        stack.append((begin, end))
        slices.append(event)
    return slices


@pytest.mark.parametrize("seed", range(20))
def test_a_perfetto_trace_is_in_order_and_properly_nested(seed: int) -> None:
    requests = overlapping(seed)
    document = json.loads(json.dumps(perfetto(requests, {CHANNEL: "disk0"})))
    slices = check_perfetto(document)
    whole = [event for event in slices if event["cat"] == "request"]
    assert sorted(event["args"]["number"] for event in whole) == list(range(30))
    for event in whole:
        parts = [
            part
            for part in slices
            if part["cat"] != "request"
            and (part["pid"], part["tid"]) == (event["pid"], event["tid"])
            and event["ts"] <= part["ts"]
            and part["ts"] + part["dur"] <= event["ts"] + event["dur"] + 1e-6
        ]
        assert sum(part["dur"] for part in parts) == pytest.approx(event["dur"], abs=0.005)


def test_one_request_can_be_picked() -> None:
    requests = overlapping(1)
    assert chosen(requests, "7") == [requests[7]]
    assert chosen(requests, "all") == requests
    (slowest,) = chosen(requests, "slowest")
    assert slowest.total_ns == max(request.total_ns for request in requests)
    for wrong in ("30", "-1", "x"):
        with pytest.raises(CommandError, match="0 to 29"):
            chosen(requests, wrong)
    with pytest.raises(CommandError, match="no whole request"):
        chosen([], "all")


def test_a_flame_is_one_svg_that_needs_nothing_else() -> None:
    (request,) = find_requests(capture(WOKEN)).requests
    picture = flame_svg({"disk<0>": split_of([request])}, {"disk<0>": "p50 320 ns"})
    root = ElementTree.fromstring(picture)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert picture.count("http") == 1  # the name space, which nobody fetches
    texts = "".join(root.itertext())
    assert "disk<0>" in texts
    assert all(where.value in texts for where in Where if where is not Where.TRAVEL)
    widths = [float(box.attrib["width"]) for box in root.iter("{http://www.w3.org/2000/svg}rect")][1:]
    row, hops = widths[0], len(request.parts)
    assert sum(widths[-hops:]) == pytest.approx(row, rel=0.02)


def test_what_another_process_of_the_server_answered_stands_apart() -> None:
    """One dies with a request begun: its successor answers that, and all that follow."""
    dying = [(at + 1000, who, hop, identity + 1) for at, who, hop, identity in WOKEN if at <= 120]
    rest = [
        (at + 1000, who, hop, identity + 1) for at, who, hop, identity in WOKEN if at > 120 or who == "there"
    ]
    again = [(at + 1090, who, hop, identity + 1) for at, who, hop, identity in WOKEN if hop is Hop.TAKE]
    first, second = capture([*WOKEN, *dying]), capture([*rest, *again])
    processes = []
    for one, successor in zip(first.processes, second.processes, strict=True):
        (before,), (after,) = one.tracks, successor.tracks
        generation = 2 if one.name == "server" else 1
        tracks = (before, Track(2, after.stamps, 0, generation))
        processes.append(Process(one.name, one.names * 2, tracks, 0))
    both = Capture(first.begin, first.end, tuple(processes))
    assert Capture.decode(both.encode()) == both
    found = find_requests(both)
    assert [(request.transaction_id, request.generation) for request in found.requests] == [(5, 1), (6, 2)]
    assert dict(found.requests[1].moments)[Step.TAKE] == 1200
    wanted = ["disk0, server generation 1", "disk0, server generation 2"]
    assert list(titles(found.requests, found.names).values()) == wanted
    assert list(titles(found.requests[:1], found.names).values()) == ["disk0"]
    events = perfetto(found.requests, found.names)["traceEvents"]
    assert [event["args"]["name"] for event in events if event["name"] == "process_name"] == wanted


def test_processes_one_after_the_other_stamp_into_one_trace_as_generations() -> None:
    fd = create_trace("generations", uses_tsc=False, stamps=STAMPS_MIN, tracks=4)
    reader = TraceReader(fd, stamps=STAMPS_MIN, tracks=4)
    try:
        for generation in (1, 2, 3):
            trace = Trace(mmap.mmap(fd, os.fstat(fd).st_size))
            assert trace.name(CHANNEL, TO_CLIENT, "disk0")
            trace.stamp(Hop.CALL, CHANNEL, generation)
        assert reader.names() == [ChannelName(CHANNEL, TO_CLIENT, "disk0")]  # once: there is room for few
        tracks = list(reader.tracks())
        assert [track.generation for track in tracks] == [1, 2, 3]
        assert [[stamp.transaction_id for stamp in track.stamps] for track in tracks] == [[1], [2], [3]]
    finally:
        reader.close()
