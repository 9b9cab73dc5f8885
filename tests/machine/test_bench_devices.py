"""The benchmark of devices: every row is measured, its peers beside it, and its checks can fail."""

import statistics
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bus.native import Histogram
from runtime.config.model import WaitingKind
from runtime.exits import CommandError
from runtime.measure.architectures import LoadFigures
from runtime.measure.bench_devices import (
    DEVICES,
    measure_devices,
    run,
)
from runtime.measure.devices.flow_split import Side, split_by_side
from runtime.measure.devices.operations import (
    OPERATIONS,
    OUTSIDE_OPERATIONS,
    Look,
    Means,
    Operation,
    Peer,
    PeerKind,
)
from runtime.measure.devices.outside import traced_outside
from runtime.measure.devices.path_walk import PathSplit
from runtime.measure.devices.paths import Place
from runtime.measure.devices.peers import PeerFigures
from runtime.measure.devices.picture import devices_page, split_svg
from runtime.measure.devices.report import figure_rows, flow_rows, peer_rows, split_rows
from runtime.measure.devices.row import Row
from runtime.measure.process_usage import Usage

pytestmark = pytest.mark.machine

COUNTS_NS = Path(
    "/proc/self/schedstat"
).exists()  # of threads; so short a flow may have none of the kernel's ticks
CLOCK_ERROR = 0.01  # of a mean of a histogram's buckets
ALL_OPERATIONS = (*OPERATIONS, *OUTSIDE_OPERATIONS)
NOT_HERE = ("namespace", "here", "tun", "installed", "terminal")  # why a peer may be missing


def figures(p50_ns: int, operations: int, seconds: float = 1.0) -> LoadFigures:
    latency = Histogram()
    latency.record(p50_ns)
    usage = {
        "asker": Usage(operations * 2_000),
        "root": Usage(operations * 3_000),
        "answerer": Usage(operations * 500),
    }
    return LoadFigures("a load", ("asker",), 64, 1, operations, seconds, latency, usage)


def adds_up(split: PathSplit) -> bool:
    """Every operation that was measured was traced, and its stamps lie within what its own clock said."""
    assert split.operations == split.measured > 0
    assert all(ns >= 0 for ns in split.parts.values())
    return 0 < sum(split.parts.values()) <= split.whole_ns * (1 + CLOCK_ERROR)


@pytest.mark.parametrize("devices", [("serial",), pytest.param(DEVICES, marks=pytest.mark.soak)])
def test_every_operation_is_measured_with_its_peers(devices: tuple[str, ...]) -> None:
    """Loads too short to say anything: what they say is nobody's business here."""
    rows = measure_devices(devices, 1, 0.02, WaitingKind.BLOCK, (0, 0), lambda text: None)
    wanted = [operation for operation in ALL_OPERATIONS if operation.device in devices]
    assert [row.operation for row in rows] == wanted
    for row, shown in zip(rows, figure_rows(rows), strict=True):
        if row.unmeasured is not None:
            assert (row.operation.device, "fio" in row.unmeasured) == ("nbd", True)
            continue
        assert row.per_second > 0
        assert row.latency.count > 0 or row.operation.device == "nbd"
        assert (shown["p50_us"] is not None) == (row.operation.means is Means.LATENCY)
        assert set(row.peers) | set(row.missing) == set(row.operation.peers)
        assert all(any(word in reason for word in NOT_HERE) for reason in row.missing.values())
        assert (row.split is not None) == row.can_be_traced
        assert row.split is None or adds_up(row.split)
        assert (row.flow is not None) == row.is_flow != row.can_be_traced
        assert row.flow is None or row.flow.cpu_ns[Side.VSP] > 0 or not COUNTS_NS
    assert {row["device"] for row in split_rows(rows)} == set(devices)
    assert len(flow_rows(rows)) == sum(row.is_flow for row in rows)
    assert len(peer_rows(rows)) == sum(len(row.operation.peers) for row in rows if row.unmeasured is None)


def test_every_class_has_operations_and_every_operation_a_class() -> None:
    assert {operation.device for operation in ALL_OPERATIONS} == set(DEVICES)
    assert len({(one.device, one.text) for one in ALL_OPERATIONS}) == len(ALL_OPERATIONS)
    assert len({one.short for one in ALL_OPERATIONS}) == len(ALL_OPERATIONS)


def test_what_this_host_cannot_measure_is_said_and_stands_in_no_figure() -> None:
    row = Row(OUTSIDE_OPERATIONS[-1], unmeasured="fio is not installed")
    assert row.to_json()["missing"] == "fio is not installed"
    assert "not measured: fio is not installed" in figure_rows([row])[0]["operation"]
    assert peer_rows([row]) == split_rows([row]) == []
    assert row.is_met


def test_a_ratio_is_that_of_each_rounds_own_two_figures() -> None:
    """The median over rounds, of which one was disturbed on both sides; of the rate, or of the latency."""
    paces = (1, 50, 2)
    for means, ratio in ((Means.LATENCY, 0.5), (Means.RATE, 2.0)):
        peer = Peer(PeerKind.VETH, 64, means)
        operation = Operation(
            device="net", text="", short="", load="a load", toml="", means=means, peers=(peer,)
        )
        row = Row(operation, [figures(100 * pace, 2000, pace) for pace in paces])
        row.peers[peer] = [PeerFigures(200 * pace, 1000 / pace, 1.0) for pace in paces]
        assert row.ratio(peer).value == pytest.approx(ratio, rel=0.02)


def test_processor_time_is_told_by_process_and_operation() -> None:
    row = Row(OPERATIONS[0], [figures(100, 1000)])
    assert [row.cpu_us(name) for name in ("asker", "root", "hypervisor", "others")] == [2.0, 3.0, 0.0, 0.5]


@pytest.mark.parametrize(("operations", "met"), [(999_999, False), (1_000_000, True)])
def test_a_goal_can_be_missed(operations: int, met: bool) -> None:
    operation = Operation(
        device="net",
        text="",
        short="",
        load="",
        toml="",
        means=Means.RATE,
        bytes_per_operation=1000,
        at_least_gb_per_s=1,
    )
    row = Row(operation, [figures(100, operations)])
    assert row.is_met is met
    assert ("MISSED" in figure_rows([row])[0]["goal"]) is not met


def test_a_client_outside_is_joined_with_the_stamps_of_the_machine(scratch: Path) -> None:
    """Reads of an NBD client: from its socket by the engine in the guest, the ring and the disk, and back."""
    operation = next(one for one in OUTSIDE_OPERATIONS if one.look is Look.NBD_READ)
    (split,) = traced_outside([operation], scratch, 0.02, WaitingKind.BLOCK, (0, 0))
    assert adds_up(split)
    assert {Place.GUEST, Place.WAKE, Place.VSP, Place.BACKEND, Place.OUTSIDE} <= set(split.parts)


def test_a_picture_and_a_page_show_every_part_and_load_nothing() -> None:
    row = Row(OPERATIONS[0], [figures(100, 10)])
    row.split = PathSplit(10, 9, 1000.0, {Place.GUEST: 300.0, Place.BACKEND: 750.0})
    drawn, document = (
        split_svg([row]),
        devices_page([row, Row(OPERATIONS[1], [figures(1, 1)])], {"rounds": 1}),
    )
    for text in (drawn, document):
        assert "://" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "-5.0%" in text
        assert OPERATIONS[0].short in text
    ElementTree.fromstring(drawn)
    assert "75.0%" in document
    assert "30.0%" in document


def test_the_sides_of_a_flow_are_all_of_its_processor_time() -> None:
    """Of the root by its threads; a thread's time may be newer than its process's, and then nothing is left of that."""
    found = replace(figures(100, 1000), threads={11: 1_000_000, 12: 500_000, 13: 7})
    for serving, vsp, rest in (({11, 12}, 1500, 1500), (set[int](), 0, 3000)):
        flow = split_by_side(found, frozenset(serving))
        assert flow.whole_ns == 5500
        assert [flow.per_operation_ns(side) for side in flow.cpu_ns] == [2000, 500, vsp, rest, 0]
        assert sum(flow.share(side) for side in flow.cpu_ns) == pytest.approx(1)
    newer = split_by_side(replace(found, threads={11: 4_000_000}), frozenset((11,)), client_ns=1e6)
    assert newer.cpu_ns[Side.ROOT] == 0
    assert newer.per_operation_ns(Side.CLIENT) == 1000
    assert (newer.busiest, newer.busy(newer.busiest)) == (Side.VSP, 0.004)
    row = Row(OPERATIONS[4], [found], flow=flow)
    assert row.is_flow
    assert row.to_json()["flow"]["cpu_us"]["guest"] == 2.0
    assert flow_rows([row])[0]["guest"] == "36.4%"
    assert flow_rows([row])[0]["client"] is None
    document = devices_page([row], {"rounds": 1})
    assert "36.4%" in document
    assert "rest of the root, 0% of a CPU" in document


def test_a_class_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(CommandError, match="no device class 'floppy': there are disk"):
        run(devices=["floppy"], quick=True)


def test_rows_say_what_was_measured_in_the_middle() -> None:
    row = Row(OPERATIONS[1], [figures(100, count) for count in (10, 30, 20)])
    assert row.per_second == statistics.median((10, 30, 20))
