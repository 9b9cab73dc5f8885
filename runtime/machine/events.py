"""What happened on a machine: numbered records, of which the last few thousand are kept.

The log is bounded by count and by bytes, so no partition can make the platform grow by being talkative. A
reader that wants everything asks for what is kept, then follows the stream; the numbers show whether it
missed any.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

EVENTS_KEPT_MAX: Final = 4096
EVENTS_KEPT_BYTES_MAX: Final = 4 << 20
EVENT_BYTES_MAX: Final = 32 << 10


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One thing that happened. Made by `EventLog.append` alone."""

    sequence: int  # from 1, without gaps
    monotonic_ns: int  # of this host since its boot: for differences
    wall_ns: int  # since 1970: for people
    kind: str  # "partition.started"; the part before the dot groups kinds
    partition: str | None
    fields: dict[str, Any]

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)


class KeptEvents(msgspec.Struct, frozen=True):
    """What a log answers to the question for its past: the result of the management verb "events"."""

    events: list[Event]  # oldest first, as many as fit into an answer
    last_sequence: int  # the newest one's, in the answer or not; 0: nothing has happened yet


def decode_event(data: bytes) -> Event:
    """msgspec.DecodeError (a ValueError): not an event."""
    return msgspec.msgpack.decode(data, type=Event)


class EventLog:
    """The last events of a machine, and whoever listens for the next. Belongs to one thread."""

    def __init__(self, kept_max: int = EVENTS_KEPT_MAX, kept_bytes_max: int = EVENTS_KEPT_BYTES_MAX) -> None:
        self._kept_max, self._kept_bytes_max = kept_max, kept_bytes_max
        self._kept: deque[tuple[Event, bytes]] = deque()
        self._kept_bytes = 0
        self._sequence = 0
        self._listeners: list[Callable[[Event, bytes], None]] = []

    @property
    def last_sequence(self) -> int:
        """0: nothing has happened yet."""
        return self._sequence

    def append(self, kind: str, partition: str | None = None, **fields: object) -> Event:
        """Record an event now and tell every listener. Never blocks.

        Fields that cannot be encoded, or take more than EVENT_BYTES_MAX, are left out and the event says so.
        """
        self._sequence += 1
        event = Event(self._sequence, time.monotonic_ns(), time.time_ns(), kind, partition, dict(fields))
        try:
            encoded = event.encode()
            reason = f"{len(encoded)} bytes" if len(encoded) > EVENT_BYTES_MAX else None
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            reason = str(error) or type(error).__name__
        if reason is not None:
            event = msgspec.structs.replace(event, fields={"fields_left_out": reason[:200]})
            encoded = event.encode()
        self._kept.append((event, encoded))
        self._kept_bytes += len(encoded)
        while len(self._kept) > self._kept_max or self._kept_bytes > self._kept_bytes_max:
            self._kept_bytes -= len(self._kept.popleft()[1])
        for listener in tuple(self._listeners):
            listener(event, encoded)
        return event

    def since(self, sequence: int, bytes_max: int) -> list[Event]:
        """Kept events after `sequence`, oldest first, as many as encode to `bytes_max` (one at least)."""
        events: list[Event] = []
        size = 0
        for event, encoded in self._kept:
            if event.sequence <= sequence:
                continue
            size += len(encoded)
            if events and size > bytes_max:
                break
            events.append(event)
        return events

    def listen(self, listener: Callable[[Event, bytes], None]) -> Callable[[], None]:
        """Call `listener(event, encoded)` for each event from now on. Call what it returns to end that."""
        self._listeners.append(listener)

        def end() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return end
