"""A virtual machine monitor: serves the rings of one guest, and passes each request on to the host process.

The servers of its channels are those of any driver partition. Behind them is a device that it reaches by send, receive
and reply, one request at a time; the data goes through a socket, and so through this process.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

from bus.seam import Seam
from partitions.calls.endpoint_service import EndpointService
from partitions.calls.serving import Caller
from partitions.child import Partition
from partitions.drivers.device_classes import class_of
from partitions.drivers.driven_device import PassedOnDevice
from partitions.drivers.process import Driver
from partitions.faults.faulty_medium import FaultyMedium
from partitions.stack.offered_device import OfferedDevice
from partitions.stack.vmbus_ports import message_connection, receive_connection
from partitions.storage.errors import DiskError
from partitions.vsc.message_connection import connect_to
from runtime.hypercalls.caller import HypercallPort


class ForwardedDevices:
    """The devices of one guest, by the numbers that the stack gave them. Each is opened when it is first asked for."""

    def __init__(self, call: HypercallPort, kinds: Sequence[str]) -> None:
        """`kinds`: of those that there were when we were started."""
        self._call, self._kinds = call, kinds
        self._opened: dict[int, PassedOnDevice] = {}

    def select(self, number: int, kind: str) -> OfferedDevice:
        """LookupError: its host does not answer, or does not know us."""
        if number not in self._opened:
            to = message_connection(number), receive_connection(number)
            calls, receives = (connect_to(self._call, connection) for connection in to)
            try:
                self._opened[number] = class_of(kind).pass_on(calls, receives)
            except (DiskError, ConnectionError) as error:
                raise LookupError(f"device {number}: {error}") from error
        return self._opened[number]

    def medium(self, name: str) -> FaultyMedium | None:
        return None  # the host's

    def settled(self, first: bool) -> None:
        """Hosts wait for that after the death of our predecessor, also those that nobody has a channel to."""
        if first:
            for number, kind in enumerate(self._kinds):
                with contextlib.suppress(LookupError):
                    self.select(number, kind)
        for device in self._opened.values():
            device.settled()

    def open_messages(self, caller: Caller, record: memoryview, seam: Seam) -> EndpointService:
        raise LookupError("a monitor has no device of its own")

    def stick(self) -> None:
        for device in self._opened.values():
            device.stick()

    def close(self) -> None:
        for device in self._opened.values():
            device.close()


class Vmm(Driver):
    def _open_device(self, args: Any) -> ForwardedDevices:
        return ForwardedDevices(self._call, [str(kind) for kind in args["kinds"]])


def main(partition: Partition) -> int:
    return Vmm(partition).run()
