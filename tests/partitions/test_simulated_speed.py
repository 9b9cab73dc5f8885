"""What the deterministic mode may do for one request, by count: a clock would measure the machine that this runs on.

A campaign is a thousand trials, so what one does for a request is what the campaign takes. Counts are the same every
time, as the trials are: whoever adds a look to each event, or an object to each request, sees it here.
"""

import sys
from types import FrameType
from typing import Any

import pytest

from partitions.simulated.medium import STOCK_MAX, MemoryMedium
from partitions.simulated.performing import perform_task
from partitions.simulated.plan import planned
from runtime.chaos.experiment.journal import Trial
from runtime.chaos.faults.catalogue import FAULTS
from tests.partitions.simulated_making import Tables, finding, tables, tasks

EVENTS_A_REQUEST = 3.0  # of the clock: its part of a thought; served; taken in; looks at an empty ring
CALLS_A_REQUEST = 215  # of Python functions, where guests hardly think; the whole trial, with its judging
CALLS_A_TRIAL = 20_000  # of two guests that ask for next to nothing
EVENTS_WITHOUT_REQUESTS = 10  # more, in an hour more: a patience or two that is looked at


def _performed(made: Tables) -> tuple[Trial, int]:
    """A trial, and how many calls of Python functions it took; what is made once for all trials is there before."""
    (task,) = tasks(made, seed=7)
    planned(task.experiment, task.folder, task.architecture, task.machine)
    calls = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        trial = perform_task(task)
    finally:
        sys.setprofile(before)
    return trial, calls


def _thinking(think_ms: int, seconds: int, **more: Any) -> Tables:
    return tables() | {"simulated": {"seconds": seconds, "think_ms": think_ms, "burst": 8} | more}


def test_a_request_takes_no_more_events_and_calls_than_stated() -> None:
    trial, calls = _performed(_thinking(20, 2))
    figures = finding(trial, "rules").figures
    assert trial.outcome.value == "passed"
    assert figures["requests"] > 400  # else the trial's own beginning and end would count for much
    assert figures["turns"] <= EVENTS_A_REQUEST * figures["requests"]
    assert calls <= CALLS_A_REQUEST * figures["requests"]


def test_a_trial_takes_no_more_calls_to_begin_and_to_end_than_stated() -> None:
    trial, calls = _performed(_thinking(600_000, 1, operations=1))
    assert finding(trial, "rules").figures["requests"] < 40
    assert calls <= CALLS_A_TRIAL


def test_time_in_which_nobody_asks_takes_no_events() -> None:
    """The clock jumps from one thing that is due to the next, however far that is."""
    rows = []
    for minutes in (10, 90):
        made = _thinking(600_000, minutes * 60, operations=1) | {"steady": {"within_ms": 3_600_000}}
        trial, _ = _performed(made)
        rows.append((trial.seconds, finding(trial, "rules").figures))
    (short_s, short), (long_s, long) = rows
    assert long_s - short_s > 70 * 60
    requests = long["requests"] - short["requests"]
    assert long["turns"] - short["turns"] <= 2 * EVENTS_A_REQUEST * requests + EVENTS_WITHOUT_REQUESTS


@pytest.mark.parametrize("kind", ["stutter", "interrupt-duplicate", "storage-slow", "ring-delayed"])
def test_a_fault_that_lasts_takes_no_more_events_for_a_request(kind: str) -> None:
    """What is armed looks at what passes it; nothing goes round while it waits."""
    assert kind in FAULTS
    target = {"stutter": "guest1", "interrupt-duplicate": "*"}.get(kind, "disk0")
    made = _thinking(20, 1) | {"fault": [{"kind": kind, "target": target, "at_ms": [0, 0], "for_ms": 900}]}
    figures = finding(_performed(made)[0], "rules").figures
    assert figures["turns"] <= 2 * EVENTS_A_REQUEST * figures["requests"]


def test_memory_of_a_disk_that_is_gone_is_all_zeros_to_the_next() -> None:
    size = 3 << 20  # nobody else's, so that the stock has none of it before
    gone = [MemoryMedium(size) for _ in range(STOCK_MAX + 1)]
    for medium in gone:
        medium.writev([memoryview(b"\1" * 4096), memoryview(b"\2" * 512)], size - 8192)
        medium.writev([memoryview(b"\3" * 512)], 1024)
        medium.recycle()
    for _ in range(STOCK_MAX + 1):
        found = bytearray(size)
        MemoryMedium(size).readv([memoryview(found)], 0)
        assert not any(found)
