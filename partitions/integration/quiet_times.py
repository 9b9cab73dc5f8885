"""Where writers of a guest stop while its disks are copied: as many as like are in, until somebody asks for quiet."""

import contextlib
import threading
import time
from collections.abc import Iterator


class QuietTimes:
    """Any thread. A quiet time ends by `end`, or when its time is over: `ended_in_time` of `end` says which."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._writers = 0
        self._until: float | None = None  # monotonic; None: nobody asked for quiet

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """What is done in here is done whole before a quiet time, or after it. Do not nest it."""
        with self._changed:
            while self._until is not None:
                self._changed.wait(max(self._until - time.monotonic(), 0))
                self._expire()
            self._writers += 1
        try:
            yield
        finally:
            with self._changed:
                self._writers -= 1
                self._changed.notify_all()

    @property
    def is_wanted(self) -> bool:
        """Whether a quiet time has begun, or waits for writers to come out."""
        return self._until is not None

    def begin(self, patience_s: float, seconds_max: float) -> bool:
        """Until nobody writes. False: somebody does, for longer than `patience_s`; there is no quiet time then."""
        with self._changed:
            self._until = time.monotonic() + seconds_max
            if self._changed.wait_for(lambda: self._writers == 0, patience_s):
                self._until = time.monotonic() + seconds_max
                return True
            self._until = None
            self._changed.notify_all()
            return False

    def end(self) -> bool:
        """Whether it was quiet until now."""
        with self._changed:
            self._expire()
            was_quiet, self._until = self._until is not None, None
            self._changed.notify_all()
            return was_quiet

    def _expire(self) -> None:
        if self._until is not None and time.monotonic() >= self._until:
            self._until = None
            self._changed.notify_all()
