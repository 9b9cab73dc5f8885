"""The benchmark of devices: every row is measured, its peers beside it, and its checks can fail."""

import statistics

import pytest

from bus.native import Histogram
from runtime.config.model import WaitingKind
from runtime.exits import CommandError
from runtime.measure.architectures import LoadFigures
from runtime.measure.bench_devices import (
    DEVICES,
    Row,
    figure_rows,
    measure_devices,
    peer_rows,
    run,
    split_rows,
)
from runtime.measure.devices.operations import (
    OPERATIONS,
    OUTSIDE_OPERATIONS,
    Means,
    Operation,
    Peer,
    PeerKind,
)
from runtime.measure.devices.path_split import PLACES, split_of_places
from runtime.measure.devices.peers import PeerFigures
from runtime.measure.process_usage import Usage
from runtime.measure.trace_split import Request, Step

pytestmark = pytest.mark.machine

ALL_OPERATIONS = (*OPERATIONS, *OUTSIDE_OPERATIONS)
TRACED = {"disk", "net", "echo"}  # whose requests have answers that a trace can put together
NOT_HERE = ("namespace", "here", "tun", "installed")  # why a peer may be missing


def figures(p50_ns: int, operations: int, seconds: float = 1.0) -> LoadFigures:
    latency = Histogram()
    latency.record(p50_ns)
    usage = {
        "asker": Usage(operations * 2_000),
        "root": Usage(operations * 3_000),
        "answerer": Usage(operations * 500),
    }
    return LoadFigures("a load", ("asker",), 64, 1, operations, seconds, latency, usage)


@pytest.mark.parametrize("devices", [("net",), pytest.param(DEVICES, marks=pytest.mark.soak)])
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
        assert not row.split or sum(row.split.values()) == pytest.approx(1)
    assert {row["device"] for row in split_rows(rows)} == set(devices) & TRACED
    assert len(peer_rows(rows)) == sum(len(row.operation.peers) for row in rows if row.unmeasured is None)


def test_every_class_has_operations_and_every_operation_a_class() -> None:
    assert {operation.device for operation in ALL_OPERATIONS} == set(DEVICES)
    assert len({(one.device, one.text) for one in ALL_OPERATIONS}) == len(ALL_OPERATIONS)


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
        operation = Operation(device="net", text="", load="a load", toml="", means=means, peers=(peer,))
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
        load="",
        toml="",
        means=Means.RATE,
        bytes_per_operation=1000,
        at_least_gb_per_s=1,
    )
    row = Row(operation, [figures(100, operations)])
    assert row.is_met is met
    assert ("MISSED" in figure_rows([row])[0]["goal"]) is not met


def test_a_split_is_of_all_requests_together() -> None:
    moments = ((Step.WRITE, 0.0), (Step.PUBLISH, 10.0), (Step.TAKE_RUNNING, 40.0), (Step.ANSWER, 100.0))
    split = split_of_places([Request(0, 1, 1, moments), Request(1, 1, 2, moments)])
    assert split == {"guest": 0.1, "ring": 0.3, "VSP": 0.6}
    assert set(split) <= set(PLACES.values())
    assert split_of_places([]) == {}


def test_a_class_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(CommandError, match="no device class 'floppy': there are disk"):
        run(devices=["floppy"], quick=True)


def test_rows_say_what_was_measured_in_the_middle() -> None:
    row = Row(OPERATIONS[1], [figures(100, count) for count in (10, 30, 20)])
    assert row.per_second == statistics.median((10, 30, 20))
