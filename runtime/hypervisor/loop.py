"""One epoll and some timers. Handlers must not block; a handler may be called though nothing has happened.

All timers share one timerfd, armed for the earliest: epoll's own timeout counts in milliseconds.
"""

from __future__ import annotations

import heapq
import select
import time
from collections.abc import Callable, Hashable
from typing import Final

from bus.native import Timer
from runtime.hypervisor.outbox import Outbox

TIMERS_REPLACED_MAX: Final = 1024  # that are still in the heap
_NS_MAX: Final = 2**63 - 1  # of the kernel's clocks


class Loop:
    """Calls handlers of descriptors and timers, one at a time."""

    def __init__(self) -> None:
        self._epoll: Final = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}  # by descriptor
        self._timer: Final = Timer()
        self._armed_ns: int | None = None  # what the timerfd is armed for
        self._timers: list[tuple[int, int, Callable[[], None]]] = []  # heap of (when, serial, action)
        self._serial = 0  # orders timers of the same moment
        self._alarms: dict[Hashable, int] = {}  # serials by key
        self._replaced: set[int] = set()  # serials of alarms that are not to go off
        self.turns = 0  # waits for the kernel
        self.poll: Callable[[int | None], list[tuple[int, int]]] = self._wait  # (ms or for ever): what came
        self.watch(self._timer.fileno(), lambda events: self._went_off())

    def watch(self, fd: int, handler: Callable[[int], None]) -> None:
        """Call `handler(epoll events)` whenever the descriptor can be read or has hung up."""
        self._epoll.register(fd, select.EPOLLIN)
        self._handlers[fd] = handler

    def watch_writable(self, fd: int, outbox: Outbox) -> None:
        """Call after every use of an outbox: the loop wakes for room only while something waits for it."""
        self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if outbox.waits else 0))

    def drop(self, fd: int) -> None:
        """Before the descriptor is closed."""
        del self._handlers[fd]
        self._epoll.unregister(fd)

    def after(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Call once, not before this time has passed. A timer cannot be taken back: the action looks for itself
        whether there is still something to do."""
        self._at(now_ns() + delay_ms * 1_000_000, action)

    def _at(self, when_ns: int, action: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._timers, (when_ns, self._serial, action))

    def alarm(self, key: Hashable, delay_ms: int, action: Callable[[], None]) -> None:
        """As `after`, in place of an earlier alarm of this key that has not gone off yet. However often somebody
        changes his mind, one is left."""
        self.alarm_at(key, now_ns() + delay_ms * 1_000_000, action)

    def alarm_at(self, key: Hashable, when_ns: int, action: Callable[[], None]) -> None:
        """The same, not before a moment of CLOCK_MONOTONIC."""

        def go_off() -> None:
            del self._alarms[key]
            action()

        if (earlier := self._alarms.get(key)) is not None:
            self._replaced.add(earlier)
        self._at(when_ns, go_off)
        self._alarms[key] = self._serial
        if len(self._replaced) > TIMERS_REPLACED_MAX:
            self._timers = [timer for timer in self._timers if timer[1] not in self._replaced]
            heapq.heapify(self._timers)
            self._replaced.clear()

    def cancel(self, key: Hashable) -> None:
        """An alarm of this key that has not gone off yet does not."""
        if (serial := self._alarms.pop(key, None)) is not None:
            self._replaced.add(serial)

    def run_once(self, timeout_ms: int | None = None) -> None:
        """Wait, at most this long, and handle what came: descriptors first, then the timers that were due."""
        self._arm()
        self.turns += 1
        for fd, events in self.poll(timeout_ms):
            # The handler of an event before this one may have closed the descriptor, or another have its number.
            if (handler := self._handlers.get(fd)) is not None:
                handler(events)
        until_ns = now_ns()  # a timer set by a timer waits its turn: descriptors come first
        while self._timers and self._timers[0][0] <= until_ns:
            _, serial, action = heapq.heappop(self._timers)
            if serial in self._replaced:
                self._replaced.remove(serial)
            else:
                action()

    @property
    def epoll_fd(self) -> int:
        return self._epoll.fileno()

    def _wait(self, timeout_ms: int | None) -> list[tuple[int, int]]:
        return self._epoll.poll(None if timeout_ms is None else timeout_ms / 1000)

    def _arm(self) -> None:
        earliest_ns = self._timers[0][0] if self._timers else None
        if earliest_ns != self._armed_ns:
            self._armed_ns = earliest_ns
            self._timer.disarm() if earliest_ns is None else self._timer.arm(min(earliest_ns, _NS_MAX))

    def _went_off(self) -> None:
        if self._timer.take():
            self._armed_ns = None


def now_ns() -> int:
    """CLOCK_MONOTONIC."""
    return time.monotonic_ns()
