"""Synthetic timers: four a VP, and the one queue that tells when the next of all is due.

    COUNT   one-shot: a moment of reference time. Periodic: a period. 100 ns units; writing 0 stops the timer
    CONFIG  bit 0 enable, 1 periodic, 2 lazy, 3 auto-enable, 11:4 vector, 12 direct, 19:16 SINT

A timer in message mode has one message buffer: while its message waits for the VP to empty the slot, nothing
expires. Then a lazy timer goes on with its next period; one that is not lazy catches up in shortened periods,
with at most CATCH_UP_PERIODS_MAX of those that it missed. No timer expires before its time.

Nothing here knows a clock, a VP or a message. Source: TLFS "Timers"; limits are ours.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Final

from runtime.abi import (
    TIMER_AUTO_ENABLE,
    TIMER_DIRECT,
    TIMER_ENABLE,
    TIMER_LAZY,
    TIMER_PERIOD_MIN_100NS,
    TIMER_PERIODIC,
    TIMER_SINT_SHIFT,
    TIMER_VECTOR_SHIFT,
)

TIMER_SPACING_NS: Final = 500_000  # between expiries of one partition's timers, in the long run
TIMER_BURST: Final = 16  # of them that may come at once
TIMER_GRID_NS: Final = 2_000_000  # who asks for more is served in groups, so that they cost one wake-up
CATCH_UP_PERIODS_MAX: Final = 4  # missed periods that are made up for; the rest is dropped
CATCH_UP_DIVISOR: Final = 2  # a shortened period is this part of a whole one
_STALE_MAX: Final = 256  # entries of the queue that do not count any more
_SINT_BITS: Final = 0xF
_VECTOR_BITS: Final = 0xFF


@dataclass(slots=True)
class SyntheticTimer:
    """One timer's registers and what follows from them. All times are reference times, in 100 ns."""

    config: int = 0
    count: int = 0
    scheduled: int = 0  # when the next expiry should be, by the period alone
    due: int | None = None  # when it is to be: later than scheduled while catching up. None: it is stopped
    waits: bool = False  # its message has not been taken over by the slot yet
    booked: bool = False  # its owner's pace has put it off once: no more

    @property
    def is_direct(self) -> bool:
        return bool(self.config & TIMER_DIRECT)

    @property
    def sint(self) -> int:
        return self.config >> TIMER_SINT_SHIFT & _SINT_BITS

    @property
    def vector(self) -> int:
        return self.config >> TIMER_VECTOR_SHIFT & _VECTOR_BITS

    @property
    def fires_at(self) -> int | None:
        """When `expire` is to be called. None: not before something else happens."""
        return None if self.waits else self.due

    def write_config(self, value: int, now: int) -> None:
        self.config = value
        self._refuse_to_run_without_a_target()
        self._restart(now)

    def write_count(self, value: int, now: int) -> None:
        self.count = value
        if value == 0:
            self.config &= ~TIMER_ENABLE
        elif self.config & TIMER_AUTO_ENABLE:
            self.config |= TIMER_ENABLE
            self._refuse_to_run_without_a_target()
        self._restart(now)

    def stop(self) -> None:
        self.config &= ~TIMER_ENABLE
        self.due = None

    def expire(self, now: int) -> int:
        """It is due. Returns when that should have been, and knows when it is due next.

        In message mode it waits from here on, until `delivered` is called.
        """
        assert not self.waits
        assert self.due is not None
        assert self.due <= now
        expired = self.scheduled
        if self.config & TIMER_PERIODIC:
            self._schedule_next(now)
        else:
            self.stop()
        self.waits = not self.is_direct
        return expired

    def delivered(self) -> None:
        """Its message is in the slot, so its buffer is free again."""
        self.waits = False

    def _refuse_to_run_without_a_target(self) -> None:
        if not self.is_direct and self.sint == 0:
            self.config &= ~TIMER_ENABLE

    def _restart(self, now: int) -> None:
        if not self.config & TIMER_ENABLE or self.count == 0:
            self.due = None
            return
        self.scheduled = now + self._period if self.config & TIMER_PERIODIC else self.count
        self.due = self.scheduled

    @property
    def _period(self) -> int:
        return max(self.count, TIMER_PERIOD_MIN_100NS)

    def _schedule_next(self, now: int) -> None:
        period = self._period
        self.scheduled += period
        missed = (now - self.scheduled) // period + 1 if self.scheduled <= now else 0
        if self.config & TIMER_LAZY:
            self.scheduled += missed * period
            self.due = self.scheduled
            return
        self.scheduled += max(missed - CATCH_UP_PERIODS_MAX, 0) * period
        shortened = max(period // CATCH_UP_DIVISOR, TIMER_PERIOD_MIN_100NS)
        self.due = max(self.scheduled, now + shortened) if missed else self.scheduled


TimerKey = tuple[int, int, int]  # partition, VP, which of its four


@dataclass(slots=True)
class TimerQueue:
    """When which timer is due, by CLOCK_MONOTONIC: a heap. However often timers are set anew, it stays as large
    as there are timers, and a little."""

    _heap: list[tuple[int, int, TimerKey]] = field(default_factory=list)  # (due, serial, timer)
    _live: dict[TimerKey, tuple[int, int]] = field(default_factory=dict)  # (due, serial) of those that count
    _serial: int = 0  # so that timers of one moment go in the order in which they were set

    def set(self, key: TimerKey, due_ns: int | None) -> None:
        """In place of what was set before. None: it is not due at all."""
        if due_ns is None:
            self._live.pop(key, None)
        else:
            self._serial += 1
            self._live[key] = due_ns, self._serial
            heapq.heappush(self._heap, (due_ns, self._serial, key))
        if len(self._heap) > 2 * len(self._live) + _STALE_MAX:
            self._heap = [(due, serial, key) for key, (due, serial) in self._live.items()]
            heapq.heapify(self._heap)

    def earliest_ns(self) -> int | None:
        heap = self._heap
        while heap:
            due_ns, serial, key = heap[0]
            if self._live.get(key) == (due_ns, serial):
                return due_ns
            heapq.heappop(heap)
        return None

    def pop_due(self, now_ns: int) -> TimerKey | None:
        """The next that is due, which is then not set any more."""
        earliest_ns = self.earliest_ns()
        if earliest_ns is None or earliest_ns > now_ns:
            return None
        key = heapq.heappop(self._heap)[2]
        del self._live[key]
        return key

    def due_ns(self, key: TimerKey) -> int | None:
        found = self._live.get(key)
        return None if found is None else found[0]

    def __len__(self) -> int:
        return len(self._live)

    @property
    def size(self) -> int:
        """Entries, with those that do not count any more."""
        return len(self._heap)


@dataclass(slots=True)
class Pace:
    """How fast one partition's timers may expire, all together: `spacing_ns` apart in the long run, and `burst`
    of them at once. Who asks for more gets them later, at the next multiple of `grid_ns`; nobody else notices."""

    spacing_ns: int
    burst: int
    grid_ns: int
    paid_until_ns: int = 0  # each expiry moves it on by one spacing

    def take(self, now_ns: int) -> int:
        """Book one expiry. Returns when it may happen: now, or later."""
        self.paid_until_ns = max(self.paid_until_ns, now_ns) + self.spacing_ns
        when_ns = self.paid_until_ns - self.burst * self.spacing_ns
        return now_ns if when_ns <= now_ns else -(-when_ns // self.grid_ns) * self.grid_ns
