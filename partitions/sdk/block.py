"""Drivers of disks: plain methods, or coroutines. See docs/drivers.md.

Offsets and lengths are whole blocks inside the disk; everything that a guest sent has been checked. Calls of one driver
never overlap, though they come from the threads of several channels; of an asynchronous one, several requests of one
channel may be under way at a time.
"""

import errno
import os
from collections.abc import Sequence

from partitions.sdk.context import DriverContext
from partitions.storage.backends import BackendError


class DriverBase:
    """What all block drivers have. Whatever it says must not change while the driver lives."""

    can_discard: bool = False  # True: `discard` works, and what was discarded reads as zeros

    def __init__(self, context: DriverContext) -> None:
        self.context = context

    @property
    def size_bytes(self) -> int:
        """Of the disk. By itself what the configuration says."""
        if self.context.size_bytes is None:
            raise ValueError(f"{self.context.name} has no size: give it one, or a path")
        return self.context.size_bytes

    @property
    def block_bytes(self) -> int:
        return self.context.block_bytes

    @property
    def read_only(self) -> bool:
        return self.context.read_only

    @property
    def descriptor(self) -> int | None:
        """Where preadv and pwritev at the same offsets do the same as `readv` and `writev`: plain requests then never
        leave C. None: only the methods will do."""
        return None

    def close(self) -> None:
        """After the last call of all others. Not when the process is killed."""
        if self.context.backing_fd is not None:
            os.close(self.context.backing_fd)


class BlockDriver(DriverBase):
    """A disk with plain methods. BackendError is an ordinary answer; anything else costs the channel its worker."""

    def readv(self, views: Sequence[memoryview], offset: int) -> None:
        """Fill all views, the guest's own pages, from `offset` on. Their content is undefined after an error."""
        raise NotImplementedError

    def writev(self, views: Sequence[memoryview], offset: int) -> None:
        """Write all views, the guest's own pages, which may change meanwhile. Undefined after an error."""
        raise NotImplementedError

    def flush(self) -> None:
        """Return once all that was written before is where it survives."""

    def discard(self, offset: int, length: int) -> None:
        raise BackendError(errno.EOPNOTSUPP, "this disk cannot discard")


class AsyncBlockDriver(DriverBase):
    """A disk with coroutines, under trio. What does not wait costs no more than a plain method.

    Answers leave in the order of the requests. Reads and writes of one channel overlap; a flush or a discard has it to
    itself. Where a driver is called (hosted, microkernel), there is one request of a client at a time.
    """

    async def readv(self, views: Sequence[memoryview], offset: int) -> None:
        raise NotImplementedError

    async def writev(self, views: Sequence[memoryview], offset: int) -> None:
        raise NotImplementedError

    async def flush(self) -> None:
        """As BlockDriver.flush."""

    async def discard(self, offset: int, length: int) -> None:
        raise BackendError(errno.EOPNOTSUPP, "this disk cannot discard")
