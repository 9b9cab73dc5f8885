"""A switch's port to a driver: what guests send outwards goes into it, what comes in goes to the switch.

One thread waits for frames of the driver's. A driver that raises BackendError loses the frames at hand; whatever else
it raises is raised again, in the worker of the next guest that sends something, and so costs that its worker.
"""

import contextlib
import os
import select
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Final

from partitions.hardware.watch import Condition, HardwareWatch
from partitions.net.frames import ETHERNET_HEADER_BYTES
from partitions.net.switch import LearningSwitch
from partitions.sdk.net import NetDriver
from partitions.stack.device_gone import DeviceGone
from partitions.storage.backends import BackendError

RECEIVE_FRAMES_MAX: Final = 64  # asked of a driver at a time
POLL_MS: Final = 50  # how often a driver without a descriptor is asked, and each for its link


class DriverFailed(Exception):
    """It raised what is no answer. The text says what."""


class Uplink:
    """A SwitchPort."""

    mac: Final = None

    def __init__(
        self,
        driver: NetDriver,
        switch: LearningSwitch,
        link_changed: Callable[[bool], None],
        watch: HardwareWatch | None = None,
    ) -> None:
        self._driver, self._switch, self._link_changed, self._watch = driver, switch, link_changed, watch
        self._lock = threading.Lock()  # of the driver: every guest's thread comes here, and our own
        self._failure: str | None = None
        self._link_up = driver.link_up
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopping = False
        self.frames_out = self.frames_in = self.dropped = self.errors = 0
        switch.join(self)
        self._thread = threading.Thread(target=self._run, name="uplink", daemon=True)
        self._thread.start()

    def accepts(self, address: bytes) -> bool:
        return True

    def deliver(self, frames: Sequence[memoryview], *, patient: bool) -> None:
        if (failure := self._failure) is not None:
            self._failure = None
            raise DriverFailed(failure)
        try:
            with self._lock:
                taken = self._driver.transmit(frames)
        except BackendError as error:
            self.errors += 1
            taken = 0
            self._failed("transmit", error)
        if not 0 <= taken <= len(frames):
            raise DriverFailed(f"transmit took {taken} of {len(frames)} frames")
        self.frames_out += taken
        self.dropped += len(frames) - taken
        if self._driver.descriptor is None:
            self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._wake_fd, 1)

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._wake_fd, select.POLLIN)
        if (descriptor := self._driver.descriptor) is not None:
            poller.register(descriptor, select.POLLIN)
        while not self._stopping:
            for fd, what in poller.poll(POLL_MS):
                if fd == self._wake_fd:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._wake_fd)
                elif not what & select.POLLIN:  # it has hung up: ask by the clock
                    poller.unregister(fd)
            try:
                while not self._stopping and self._take_in():
                    pass
                self._look_at_link()
            except Exception as error:
                if self._failure is None:
                    traceback.print_exc()
                self._failure = f"{type(error).__name__}: {error}"
                poller = select.poll()  # by the clock, until it is better
                poller.register(self._wake_fd, select.POLLIN)

    def _take_in(self) -> bool:
        """False: there was less than it could have been."""
        try:
            with self._lock:
                frames = self._driver.receive(RECEIVE_FRAMES_MAX)
        except BackendError as error:
            self.errors += 1
            self._failed("receive", error)
            return False
        good = [memoryview(frame) for frame in frames if len(frame) >= ETHERNET_HEADER_BYTES]
        self.errors += len(frames) - len(good)
        self.frames_in += len(good)
        if good:
            self._switch.forward(self, good)
        return len(frames) >= RECEIVE_FRAMES_MAX

    def _failed(self, operation: str, error: BackendError) -> None:
        """Frames are not sent again: whoever wants them does that. A device that is removed says so to its guests."""
        if self._watch is not None:
            with contextlib.suppress(DeviceGone):
                self._watch.failed(operation, error.errno)

    def _look_at_link(self) -> None:
        is_well = self._watch is None or self._watch.condition is Condition.WELL
        if (up := is_well and self._driver.link_up) != self._link_up:
            self._link_up = up
            self._link_changed(up)

    def close(self) -> None:
        """Ends the thread, then the driver."""
        self._stopping = True
        self._wake()
        self._thread.join(1)
        self._switch.leave(self)
        self._driver.close()
        if not self._thread.is_alive():
            os.close(self._wake_fd)
