"""One real device's errors, where its driver runs: counted, reported, and answered as its `on_error` says.

    WELL --as many errors as its threshold, or one that says it is gone--> DEGRADED or REMOVED

retry     a request that failed is tried again, a few times, with pauses that double
degrade   from the threshold on it is used for reading alone; a network's link is down
remove    from the threshold on nobody is served: its offers are withdrawn

A full disk is no fault of the device's: it is reported, and counts for nothing else.
"""

import enum
import errno
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Final, TypeVar

from partitions.stack.device_gone import DeviceGone
from partitions.stack.served_channel import ServedChannel
from partitions.storage.backends import BackendError
from runtime.config.on_error import OnError

RETRIES_MAX: Final = 4  # of one request
RETRY_PAUSE_MS: Final = 1  # before the first; it doubles
ERROR_THRESHOLD: Final = 3  # errors, where the config says nothing else
REPORTED_ONE_BY_ONE_MAX: Final = 16  # of one kind; from there on each time their number has doubled
_GONE: Final = frozenset({errno.ENODEV, errno.ENXIO, errno.EBADFD, errno.ENOMEDIUM, errno.ESHUTDOWN})
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

_Result = TypeVar("_Result")


class Condition(enum.StrEnum):
    WELL = "well"
    DEGRADED = "degraded"
    REMOVED = "removed"


class Severity(enum.StrEnum):
    """As UEFI's common platform error record has them."""

    CORRECTED = "corrected"  # a later try went well
    RECOVERABLE = "recoverable"  # the request failed, the device goes on
    FATAL = "fatal"  # the device does not


_emit: dict[str | None, Callable[..., None]] = {}  # of this process, by device: where its records go


def deliver_to(emit: Callable[..., None], device: str | None = None) -> None:
    """`emit(kind, **fields)`: from here on, of this device; None: of every other one of this process."""
    _emit[device] = emit


class HardwareWatch:
    """Of one device. Any number of threads."""

    def __init__(
        self, device: str, source: str, on_error: str | None = None, threshold: int | None = None
    ) -> None:
        """`source`: what kind of hardware it is: "storage", "network"."""
        self.device, self.source = device, source
        self.on_error: Final = OnError(on_error or OnError.REPORT)
        self.threshold: Final = threshold or ERROR_THRESHOLD
        self.condition = Condition.WELL
        self.on_change: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._errors = 0  # that count
        self._seen: dict[tuple[str, int, Severity], tuple[int, int]] = {}  # count, and when the first was
        self._served: weakref.WeakSet[ServedChannel] = weakref.WeakSet()

    def serves(self, channel: ServedChannel) -> None:
        """A channel is about to be opened to the device. DeviceGone: it is not any more."""
        with self._lock:
            self._served.add(channel)
        self.check()

    def check(self) -> None:
        """DeviceGone: nobody is served any more."""
        if self.condition is Condition.REMOVED:
            raise DeviceGone(f"{self.device} was removed after {self._errors} errors")

    def run(self, operation: str, act: Callable[[], _Result]) -> _Result:
        """`act`, and again as the policy says. Raises BackendError: what it raised last; DeviceGone."""
        self.check()
        for attempt in range(RETRIES_MAX + 1):
            try:
                result = act()
            except BackendError as error:
                last = error
                if self.on_error is not OnError.RETRY or error.errno in _GONE | _FULL:
                    break
                time.sleep(RETRY_PAUSE_MS * (1 << attempt) / 1000)
            else:
                if attempt:
                    self._record(operation, last.errno, Severity.CORRECTED)
                return result
        self.failed(operation, last.errno)
        raise last

    def failed(self, operation: str, number: int) -> None:
        """A request did. DeviceGone: and that was the last one."""
        is_fatal = number in _GONE
        changes = False
        if number not in _FULL:
            with self._lock:
                self._errors += 1
                over = is_fatal or self._errors >= self.threshold
                wanted = {OnError.DEGRADE: Condition.DEGRADED, OnError.REMOVE: Condition.REMOVED}
                if over and self.condition is Condition.WELL and self.on_error in wanted:
                    self.condition, changes = wanted[self.on_error], True
        self._record(operation, number, Severity.FATAL if is_fatal else Severity.RECOVERABLE, changes)
        if changes:
            self.on_change()
            with self._lock:
                served = list(self._served)
            for channel in served:
                channel.change_service()
        self.check()

    def _record(self, operation: str, number: int, severity: Severity, changes: bool = False) -> None:
        now_ns = time.time_ns()
        with self._lock:
            count, first_ns = self._seen.get((operation, number, severity), (0, now_ns))
            self._seen[operation, number, severity] = count + 1, first_ns
        count += 1
        if not changes and count > REPORTED_ONE_BY_ONE_MAX and count & (count - 1):
            return
        fields: dict[str, Any] = {
            "source": self.source,
            "device": self.device,
            "operation": operation,
            "errno": number,
            "severity": str(severity),
            "count": count,
            "first_ns": first_ns,
            "last_ns": now_ns,
            "policy": str(self.on_error),
            "condition": str(self.condition),
        }
        if (emit := _emit.get(self.device, _emit.get(None))) is not None:
            emit("hardware.error", **fields)
