"""A serial line of another process, as a monitor offers it to its guest: a driver whose calls the host answers."""

import contextlib
import time

from partitions.calls.call_socket import Connect
from partitions.sdk.context import DriverContext
from partitions.sdk.serial import SerialDriver
from partitions.serial.device import SerialDevice
from partitions.serial.message_calls import Reading, Writing


class _Forwarding(SerialDriver):
    """ConnectionError from each: the host is gone for good. `write` waits for the host, as long as it takes."""

    def __init__(self, name: str, calls: Connect, reads: Connect) -> None:
        super().__init__(DriverContext(name, "serial", {}, None, 512, False, None, None))
        self._writing = Writing(calls)
        try:
            self._reading = Reading(reads)
        except BaseException:
            self._writing.socket.destroy()
            raise

    def write(self, data: bytes) -> int:
        return self._writing.write(data)

    def read(self, limit: int) -> bytes:
        """What the outstanding READ was answered. The last bytes are in the guest's ring by now, so the host may forget
        them."""
        return self._reading.take(time.monotonic_ns())

    @property
    def descriptor(self) -> int | None:
        return self._reading.socket.fileno()

    def close(self) -> None:
        for one in (self._writing.socket, self._reading.socket):
            with contextlib.suppress(OSError):
                one.destroy()


class PassedOnLine(SerialDevice):
    """A PassedOnDevice."""

    def __init__(self, calls: Connect, reads: Connect) -> None:
        """ConnectionError: there is no host."""
        name = "passed on"
        super().__init__(name, _Forwarding(name, calls, reads))

    def settled(self) -> None:
        """The host waits for nothing."""
