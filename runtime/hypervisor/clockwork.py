"""What the broker does because time has passed, and for no other reason: timers of VPs, promises,
pages of clocks and of statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from runtime.hypervisor.dispatch import Hypervisor
from runtime.hypervisor.effects import Effect
from runtime.hypervisor.loop import Loop, now_ns
from runtime.hypervisor.reference_clock import REFRESH_MS, ReferenceClock

_TIMERS: Final = "timers"  # keys of alarms; those of partitions are their numbers
_CLOCK: Final = "clock"


class Clockwork:
    """Sets the loop's alarms for the state machine."""

    def __init__(
        self,
        loop: Loop,
        hypervisor: Hypervisor,
        clock: ReferenceClock,
        serve_last_calls: Callable[[int], None],
        carry_out: Callable[[list[Effect]], object],
    ) -> None:
        self._loop, self._hypervisor, self._clock, self._carry_out = loop, hypervisor, clock, carry_out
        self._serve_last_calls = serve_last_calls
        clock.wanted = self._refresh_later

    def arm(self, when_ns: int | None) -> None:
        """An ArmTimers."""
        if when_ns is None:
            self._loop.cancel(_TIMERS)
        else:
            self._loop.alarm_at(_TIMERS, when_ns, self._expire)

    def _expire(self) -> None:
        self._carry_out(self._hypervisor.timers_due(now_ns()))

    def check_heartbeat(self, partition: int, after_ms: int) -> None:
        """A CheckHeartbeat."""

        def look() -> None:
            self._serve_last_calls(partition)  # it may have called in time, and we were slow
            self._carry_out(self._hypervisor.heartbeat_due(partition, now_ns()))

        self._loop.alarm(partition, after_ms, look)

    def refresh_statistics(self, after_ms: int) -> None:
        """A RefreshStatistics."""

        def write() -> None:
            self._carry_out(self._hypervisor.statistics_due(now_ns()))

        self._loop.after(after_ms, write)

    def _refresh_later(self) -> None:
        self._loop.alarm(_CLOCK, REFRESH_MS, self._refresh)

    def _refresh(self) -> None:
        if self._clock.has_pages:
            self._clock.refresh()
            self._refresh_later()
