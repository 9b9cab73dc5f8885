"""The flight recorder: the broker's last events and its partition table, in memory that outlives it.

    page 0          header: magic, version, how many events are kept
    then            EVENTS_KEPT records of 48 bytes, a ring: event n stands in place n % EVENTS_KEPT
    then            PARTITIONS_MAX rows of 128 bytes: the partition table, as of each partition's last event

The platform makes the memory and shares it, so it is there to be read when the broker hangs, is stopped or was killed.
One side writes, and never waits; a reader takes each record whose own number is the one that its place should have, so
one that is being overwritten is left out. Nothing in it is trusted by anybody but people.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from runtime.abi import PAGE_BYTES, PARTITIONS_MAX, HvStatus, HypercallCode, PartitionState

EVENTS_KEPT: Final = 1_024
_MAGIC: Final = b"PVRECORD"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sII")  # magic, version, events kept
_NUMBER: Final = struct.Struct("<Q")  # the first field of a record
# number from 1, CLOCK_MONOTONIC ns, partition, effects (a bit a kind), call code or detail, ns it took, status, kind
_RECORD: Final = struct.Struct("<QQQQIIHHxxxx")
# partition, parent, pages, pid, exit status + 1 (0: none), state, process, name
_ROW: Final = struct.Struct("<QQQIIBBxx64s28x")
_EVENTS_OFFSET: Final = PAGE_BYTES
_ROWS_OFFSET: Final = _EVENTS_OFFSET + EVENTS_KEPT * _RECORD.size
RECORDER_BYTES: Final = _ROWS_OFFSET + PARTITIONS_MAX * _ROW.size
_U32_MAX: Final = 2**32 - 1

assert _RECORD.size == 48
assert _ROW.size == 128
assert RECORDER_BYTES % PAGE_BYTES == 0


class EventKind(IntEnum):
    CALL = 1  # detail: call code
    STARTED = 2  # a process; detail: pid
    EXITED = 3  # detail: exit status as on the wire
    KILL = 4  # the platform pulls the plug
    HEARTBEAT_DUE = 5
    TIMERS_DUE = 6
    HALT = 7


class Recorder:
    """The writing side."""

    def __init__(self, memory: mmap.mmap) -> None:
        if len(memory) < RECORDER_BYTES:
            raise ValueError(f"{len(memory)} bytes, want {RECORDER_BYTES}")
        self._memory: Final = memory
        self._pack: Final = _RECORD.pack_into
        self.events = 0  # so far
        self._places: dict[int, int] = {}  # of partitions, in the table
        self._free = list(range(PARTITIONS_MAX - 1, -1, -1))
        _HEADER.pack_into(memory, 0, _MAGIC, _VERSION, EVENTS_KEPT)

    @property
    def records(self) -> memoryview:
        """Where the events stand, for who writes them in our place meanwhile."""
        return memoryview(self._memory)[_EVENTS_OFFSET:_ROWS_OFFSET]

    def record(
        self,
        kind: int,
        when_ns: int,
        partition: int,
        detail: int = 0,
        took_ns: int = 0,
        status: int = 0,
        effects: int = 0,
    ) -> None:
        """One event. This is on the way of every hypercall."""
        self.events = number = self.events + 1
        offset = _EVENTS_OFFSET + number % EVENTS_KEPT * 48
        if took_ns > _U32_MAX:
            took_ns = _U32_MAX
        self._pack(self._memory, offset, number, when_ns, partition, effects, detail, took_ns, status, kind)

    def describe(
        self,
        partition: int,
        parent: int,
        pages: int,
        pid: int,
        exit_wire: int | None,
        state: int,
        process: int,
        name: str,
    ) -> None:
        """A partition's row."""
        place = self._places.get(partition)
        if place is None:
            if not self._free:
                return
            place = self._places[partition] = self._free.pop()
        ended = 0 if exit_wire is None else exit_wire + 1
        _ROW.pack_into(
            self._memory,
            _ROWS_OFFSET + place * _ROW.size,
            partition,
            parent,
            pages,
            pid,
            ended,
            state,
            process,
            name.encode()[-64:],
        )

    def forget(self, partition: int) -> None:
        """It was deleted."""
        if (place := self._places.pop(partition, None)) is not None:
            offset = _ROWS_OFFSET + place * _ROW.size
            self._memory[offset : offset + _ROW.size] = bytes(_ROW.size)
            self._free.append(place)


# -- the reading side ----------------------------------------------------------------------------------------


class RecordingError(ValueError):
    """The bytes are no flight recorder's."""


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the log."""

    number: int
    when_ns: int
    kind: str
    partition: int
    detail: int
    took_ns: int
    status: str
    effects: tuple[str, ...]

    @property
    def what(self) -> str:
        """The call's name, or the kind of event."""
        if self.kind == EventKind.CALL.name:
            try:
                return HypercallCode(self.detail).name
            except ValueError:
                return f"call 0x{self.detail:x}"
        return self.kind.lower()

    def row(self) -> dict[str, object]:
        return {
            "number": self.number,
            "when_ns": self.when_ns,
            "partition": self.partition,
            "what": self.what,
            "detail": self.detail,
            "status": self.status,
            "took_ns": self.took_ns,
            "effects": list(self.effects),
        }


def read_events(data: bytes, effect_names: Mapping[int, str], since: int = 0) -> list[Event]:
    """Those after number `since` that are still there, oldest first. Raises: RecordingError."""
    _check(data)
    last = _last_number(data)
    events = []
    for number in range(max(since, last - EVENTS_KEPT, 0) + 1, last + 1):
        offset = _EVENTS_OFFSET + number % EVENTS_KEPT * _RECORD.size
        found, when_ns, partition, effects, detail, took_ns, status, kind = _RECORD.unpack_from(data, offset)
        if found != number:
            continue  # overwritten while we read
        names = tuple(name for bit, name in effect_names.items() if effects >> bit & 1)
        events.append(
            Event(
                number,
                when_ns,
                _name(EventKind, kind),
                partition,
                detail,
                took_ns,
                _name(HvStatus, status),
                names,
            )
        )
    return events


def read_partitions(data: bytes) -> list[dict[str, object]]:
    """The partition table, by id. Raises: RecordingError."""
    _check(data)
    rows = []
    for place in range(PARTITIONS_MAX):
        identity, parent, pages, pid, ended, state, _, name = _ROW.unpack_from(
            data, _ROWS_OFFSET + place * _ROW.size
        )
        if identity:
            rows.append(
                {
                    "id": identity,
                    "name": name.rstrip(b"\0").decode(errors="replace"),
                    "parent": parent or None,
                    "state": _name(PartitionState, state).lower(),
                    "pid": pid or None,
                    "exit": ended - 1 if ended else None,
                    "pages": pages,
                }
            )
    return sorted(rows, key=lambda row: int(str(row["id"])))


def _check(data: bytes) -> None:
    if len(data) < RECORDER_BYTES:
        raise RecordingError(f"{len(data)} bytes, want {RECORDER_BYTES}")
    magic, version, kept = _HEADER.unpack_from(data)
    if magic != _MAGIC or version != _VERSION or kept != EVENTS_KEPT:
        raise RecordingError("not a flight recorder of this version")


def _last_number(data: bytes) -> int:
    """Of the newest event; 0: there is none yet."""
    places = range(_EVENTS_OFFSET, _ROWS_OFFSET, _RECORD.size)
    return max(int(_NUMBER.unpack_from(data, place)[0]) for place in places)


def _name(kind: type[IntEnum], value: int) -> str:
    try:
        return kind(value).name
    except ValueError:
        return f"{value:#x}"
