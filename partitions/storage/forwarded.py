"""A disk of another process, reached by messages, as a monitor offers it to its guest."""

import mmap
from typing import Final

from partitions.storage.disk import Disk
from partitions.storage.message_channel import Connect, MessageChannel
from partitions.storage.passed_on import PassedOnDisk

DATA_BYTES: Final = 1 << 20  # of our own memory, for the data of requests on their way


class ForwardedDisk(PassedOnDisk):
    """A PassedOnDevice. Our successors find the records of our channels."""

    has_successor = True

    def __init__(self, connect: Connect) -> None:
        """DiskError, ConnectionError: nobody answers there."""
        area = memoryview(mmap.mmap(-1, DATA_BYTES))
        self._messages = MessageChannel(connect, area, 0)
        self._disk = Disk(self._messages, area, 0)
        super().__init__(self._disk.description.serial, self._disk)

    def settled(self) -> None:
        self._messages.settled()

    def close(self) -> None:
        self._messages.settled()
        super().close()
        self._disk.close()
        self._messages.destroy()
