"""A virtual machine monitor: serves the rings of one guest, and passes each request on to the host process.

The servers of its channels are those of any driver partition. Their backend is a disk of its own, reached by send,
receive and reply, one request at a time; the data goes through a socket, and so through this process.
"""

import contextlib
import mmap
from collections.abc import Callable
from typing import Any, Final

from partitions.child import Partition
from partitions.driver import Driver
from partitions.message_connection import connect_to
from partitions.storage.device import OfferedDevice
from partitions.storage.disk import Disk
from partitions.storage.errors import DiskError
from partitions.storage.message_channel import MessageChannel
from partitions.storage.message_service import MessageService
from partitions.storage.passed_on import PassedOnDisk
from partitions.vmbus_ports import message_connection
from runtime.hypercalls import HypercallPort

DATA_BYTES: Final = 1 << 20  # of our own memory, for the data of requests on their way


class ForwardedDisks:
    """The disks of one guest, by the numbers that the stack gave them. Each is opened when it is first asked for."""

    def __init__(self, call: HypercallPort, links: int) -> None:
        self._call, self._links = call, links  # links: there were so many when we were started
        self._opened: dict[int, tuple[MessageChannel, Disk, PassedOnDisk]] = {}

    def select(self, number: int) -> OfferedDevice:
        """LookupError: its host does not answer, or does not know us."""
        if number not in self._opened:
            area = memoryview(mmap.mmap(-1, DATA_BYTES))
            try:
                channel = MessageChannel(connect_to(self._call, message_connection(number)), area, 0)
                disk = Disk(channel, area, 0)
            except (DiskError, ConnectionError) as error:
                raise LookupError(f"device {number}: {error}") from error
            self._opened[number] = channel, disk, PassedOnDisk(disk.description.serial, disk)
        return self._opened[number][2]

    def settled(self, first: bool) -> None:
        """Hosts wait for that after the death of our predecessor, also those that nobody has a channel to."""
        if first:
            for number in range(self._links):
                with contextlib.suppress(LookupError):
                    self.select(number)
        for channel, _, _ in self._opened.values():
            channel.settled()

    def open_messages(self, record: memoryview, passing: Callable[[], None]) -> MessageService:
        raise LookupError("a monitor has no device of its own")

    def stick(self) -> None:
        for _, _, disk in self._opened.values():
            disk.stick()

    def close(self) -> None:
        for channel, disk, _ in self._opened.values():
            channel.settled()
            disk.close()
            channel.destroy()


class Vmm(Driver):
    def _open_device(self, args: Any) -> ForwardedDisks:
        return ForwardedDisks(self._call, int(args["links"]))


def main(partition: Partition) -> int:
    return Vmm(partition).run()
