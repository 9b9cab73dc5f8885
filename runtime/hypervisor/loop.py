"""One epoll and a few timers. Handlers must not block; a handler may be called though nothing has happened."""

from __future__ import annotations

import heapq
import select
import time
from collections.abc import Callable
from typing import Final

from runtime.hypervisor.outbox import Outbox


class Loop:
    """Calls handlers of descriptors and timers, one at a time."""

    def __init__(self) -> None:
        self._epoll: Final = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}  # by descriptor
        self._timers: list[tuple[int, int, Callable[[], None]]] = []  # heap of (when, serial, action)
        self._serial = 0  # orders timers of the same moment

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
        self._serial += 1
        heapq.heappush(self._timers, (now_ns() + delay_ms * 1_000_000, self._serial, action))

    def run_once(self, timeout_ms: int | None = None) -> None:
        """Wait, at most this long, and handle what came."""
        if self._timers:
            left_ms = max(-((now_ns() - self._timers[0][0]) // 1_000_000), 0)  # rounded up
            timeout_ms = left_ms if timeout_ms is None else min(timeout_ms, left_ms)
        for fd, events in self._epoll.poll(None if timeout_ms is None else timeout_ms / 1000):
            # The handler of an event before this one may have closed the descriptor, or another have its number.
            if (handler := self._handlers.get(fd)) is not None:
                handler(events)
        while self._timers and self._timers[0][0] <= now_ns():
            heapq.heappop(self._timers)[2]()


def now_ns() -> int:
    """CLOCK_MONOTONIC."""
    return time.monotonic_ns()
