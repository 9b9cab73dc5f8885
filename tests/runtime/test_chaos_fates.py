"""What became of a fault, as its trial's events and histories tell."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from runtime.chaos.experiment.fates import fates_of, latency_points, outages_ms, timeline_of
from runtime.chaos.experiment.schedule import Injection, Moment
from runtime.chaos.faults.orders import Order
from runtime.chaos.history import Ending, History, Operation, OperationKind, Outcome

MS = 1_000_000
BEGAN = 50 * MS
SCHEDULE = (Injection(Order(1, "kill", "root"), Moment(10), None),)


def event(kind: str, at_ms: float, partition: str | None = None, **fields: Any) -> dict[str, Any]:
    at = BEGAN + round(at_ms * MS)
    return {"kind": kind, "monotonic_ns": at, "partition": partition, "fields": fields, "sequence": 1}


def history(*completions_ms: float, took_ms: float = 1.0) -> History:
    operations = [
        Operation(
            1,
            number,
            OperationKind.READ,
            0,
            1,
            BEGAN + round((at - took_ms) * MS),
            BEGAN + round(at * MS),
            Outcome.DONE,
        )
        for number, at in enumerate(completions_ms, 1)
    ]
    return History(1, 0, 8, BEGAN, operations, Ending.FINISHED, BEGAN + round(max(completions_ms) * MS))


def test_a_fault_that_was_noticed_and_survived() -> None:
    events = [
        event("fault.injected", 10, number=1),
        event("fault.fired", 11, number=1),
        event("root.exited", 12, "root"),
        event("root.restored", 20, "root"),
        event("fault.healed", 90, number=1, passes=3, fired=1),
    ]
    (fate,) = fates_of(SCHEDULE, {}, events, {}, [history(9, 11.5, 25, 26)], BEGAN)
    assert (fate.injected_ms, fate.fired_ms, fate.healed_ms) == (10, 11, 90)
    assert (fate.detected_ms, fate.recovered_ms) == (12, 25)
    assert (fate.passes, fate.fired) == (3, 1)


def test_what_the_machine_says_after_a_healing_is_not_about_that_fault() -> None:
    """Its own end least of all: nothing completes after that, and still the guest had gone on."""
    events = [
        event("fault.fired", 11, number=1),
        event("fault.healed", 40, number=1, passes=1, fired=1),
        event("partition.exited", 90, "guest"),
        event("machine.ending", 91),
    ]
    (fate,) = fates_of(SCHEDULE, {}, events, {}, [history(9, 14, 60)], BEGAN)
    assert (fate.detected_ms, fate.recovered_ms) == (None, 14)


def test_what_happened_before_a_fault_is_not_its_doing() -> None:
    events = [event("root.exited", 5, "root"), event("fault.fired", 11, number=1)]
    (fate,) = fates_of(SCHEDULE, {}, events, {1: (7, 2)}, [history(9, 14)], BEGAN)
    assert (fate.detected_ms, fate.recovered_ms) == (None, 14)
    assert (fate.passes, fate.fired) == (7, 2)


def test_one_that_did_not_fire_has_neither_end() -> None:
    events = [event("fault.injected", 10, number=1), event("root.exited", 12, "root")]
    (fate,) = fates_of(SCHEDULE, {}, events, {1: (7, 0)}, [history(9, 14)], BEGAN)
    assert (fate.fired, fate.fired_ms, fate.detected_ms, fate.recovered_ms) == (0, None, None, None)


def test_one_that_was_refused_says_why() -> None:
    (fate,) = fates_of(SCHEDULE, {1: "no such disk"}, [], {}, [history(9)], BEGAN)
    assert (fate.error, fate.injected_ms) == ("no such disk", None)


def test_an_outage_is_the_wait_around_the_strike() -> None:
    events = [event("fault.fired", 11, number=1)]
    busy = history(9, 31, 32, took_ms=21)
    (fate,) = fates_of(SCHEDULE, {}, events, {}, [busy], BEGAN)
    assert outages_ms([fate], [busy, history(5, 6)], BEGAN) == (21.0,)


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=50), st.floats(0.001, 30))
def test_the_picture_has_the_slowest_of_each_moment(at_ms: list[float], took_ms: float) -> None:
    points = latency_points([history(*sorted(at_ms), took_ms=took_ms)], BEGAN)
    assert [at for at, _ in points] == sorted({at // 20 * 20.0 for at, _ in points})
    assert all(abs(slowest - took_ms) < 0.001 for _, slowest in points)
    assert 0 < len(points) <= len(at_ms)


def test_a_timeline_is_in_order_and_leaves_out_the_noise() -> None:
    events = [event("output", 1, "guest"), event("root.exited", 2, "root"), event("fault.fired", 3, number=1)]
    assert timeline_of(events, BEGAN) == ((2.0, "root.exited", "root"), (3.0, "fault.fired", ""))
