"""The event log: bounded, numbered without gaps, and never the cause of an error."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.machine.events import EVENT_BYTES_MAX, Event, EventLog, decode_event

FIELDS = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=300) | st.binary(max_size=300))


@given(st.lists(FIELDS, max_size=40), st.integers(1, 10), st.integers(1, 3000))
def test_the_log_is_bounded_and_what_it_keeps_is_the_newest(
    many: list[dict[str, Any]], kept_max: int, kept_bytes_max: int
) -> None:
    log = EventLog(kept_max, kept_bytes_max)
    events = [
        log.append("kind", None, **{f"f{key}": value for key, value in fields.items()}) for fields in many
    ]
    kept = log.since(0, 1 << 30)
    assert len(kept) <= kept_max
    assert sum(len(event.encode()) for event in kept) <= kept_bytes_max
    assert kept == events[len(events) - len(kept) :]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    middle = len(events) // 2
    assert log.since(middle, 1 << 30) == [event for event in kept if event.sequence > middle]


def test_a_page_of_the_log_is_bounded_and_never_empty_while_something_is_left() -> None:
    log = EventLog()
    for _ in range(10):
        log.append("kind", None, text="x" * 100)
    page = log.since(0, 300)
    assert 1 <= len(page) <= 3
    assert len(log.since(0, 1)) == 1
    assert log.since(10, 1) == []


@pytest.mark.parametrize("value", [object(), 2**70, "x" * (EVENT_BYTES_MAX + 1), {1: object()}])
def test_fields_that_can_t_be_sent_are_left_out_and_the_event_says_so(value: object) -> None:
    log = EventLog()
    event = log.append("kind", "child", value=value)
    assert list(event.fields) == ["fields_left_out"]
    assert decode_event(event.encode()) == event


@given(st.binary(max_size=100))
def test_what_is_no_event_is_a_value_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(decode_event(data), Event)


def test_a_listener_hears_until_it_ends() -> None:
    log, heard = EventLog(), []
    end = log.listen(lambda event, encoded: heard.append((event.kind, decode_event(encoded) == event)))
    log.append("one")
    end()
    end()
    log.append("two")
    assert heard == [("one", True)]
