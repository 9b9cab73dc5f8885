"""What a guest says of its load: a whole report comes through as it was, and anything else is refused by name."""

import base64
import threading
import time
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.native import Histogram
from partitions.measuring import PAUSES, measuring
from runtime.machine.console import ConsoleWriter, console_pair, read_record
from runtime.measure.workload_report import ReportRefused, WorkloadReport

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


class Reporter:
    """What of a partition a report needs."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.console = self

    def wait_until_read(self, patience_s: float) -> None:
        assert self.events

    def report(self, kind: str, **fields: Any) -> None:
        self.events.append((kind, fields))


def reported(latencies: list[int]) -> dict[str, Any]:
    guest = Reporter()
    with measuring(guest, "reads", transfer_bytes=4096, depth=2) as load:
        for latency in latencies:
            load.latency.record(latency)
    assert [kind for kind, _ in guest.events] == ["measuring", PAUSES, "measured", PAUSES]
    assert guest.events[0][1] == {"name": "reads"}
    return guest.events[2][1]


@pytest.fixture(scope="module")
def honest() -> dict[str, Any]:
    return reported([1, 1000, 10**9, 2**63])


def test_a_report_comes_through_as_it_was(honest: dict[str, Any]) -> None:
    found = WorkloadReport.from_fields("guest", honest)
    whole = Histogram()
    for latency in (1, 1000, 10**9, 2**63):
        whole.record(latency)
    assert found.latency == whole
    assert (found.name, found.transfer_bytes, found.depth, found.operations) == ("reads", 4096, 2, 4)
    assert found.seconds > 0


@given(
    st.sampled_from(["name", "transfer_bytes", "depth", "operations", "seconds", "mismatches", "latency"]),
    VALUES,
)
def test_whatever_else_stands_in_a_report_is_refused_or_of_its_type(
    honest: dict[str, Any], key: str, value: Any
) -> None:
    """Never another exception: a guest cannot make the comparison fail in any other way."""
    try:
        found = WorkloadReport.from_fields("guest", honest | {key: value})
    except ReportRefused as error:
        refusal = str(error)
    else:
        refusal = "guest"
        assert found.operations > 0
        assert found.seconds > 0
    assert "guest" in refusal
    assert "\n" not in refusal


def test_a_histogram_that_unpacks_to_too_much_is_refused_before_it_does(honest: dict[str, Any]) -> None:
    bomb = base64.b85encode(zlib.compress(bytes(64 << 20), 9)).decode()
    tracemalloc.start()
    try:
        with pytest.raises(ReportRefused):
            WorkloadReport.from_fields("guest", honest | {"latency": bomb})
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 << 20


def test_a_load_without_requests_is_refused() -> None:
    with pytest.raises(ReportRefused, match="no request"):
        WorkloadReport.from_fields("guest", reported([]))


def test_a_block_that_raises_reports_nothing() -> None:
    guest = Reporter()
    with pytest.raises(ZeroDivisionError), measuring(guest, "x"):
        raise ZeroDivisionError
    assert [kind for kind, _ in guest.events] == ["measuring", PAUSES]


def test_a_guest_waits_until_it_was_heard_and_not_for_ever() -> None:
    """With nobody reading it waits as long as it may; it goes on when the last record has been taken in."""
    reader, writer = console_pair()
    console = ConsoleWriter(writer.detach())
    with reader, console._socket:  # its end is open as long as its process lives
        console.wait_until_read(60)  # nothing was said
        for number in range(3):
            console.emit("guest.x", number=number)
        begun = time.monotonic()
        console.wait_until_read(0.05)
        assert time.monotonic() - begun >= 0.05
        waiting = threading.Thread(target=console.wait_until_read, args=(60,))
        waiting.start()
        for _ in range(3):
            assert waiting.is_alive()
            read_record(reader)
        waiting.join(60)
        assert not waiting.is_alive()
