"""Drivers of serial lines: bytes out, bytes in. See docs/network.md#serial-lines."""

import os

from partitions.sdk.context import DriverContext


class SerialDriver:
    """One line. BackendError from `write` loses those bytes; anything else costs the channel its worker.

    Calls of `write` and `read` come from different threads, and never overlap.
    """

    def __init__(self, context: DriverContext) -> None:
        self.context = context

    def write(self, data: bytes) -> int:
        """Take bytes, without waiting; how many. 0: none now, try again a little later."""
        raise NotImplementedError

    def read(self, limit: int) -> bytes:
        """Bytes that have come in, at most `limit`, without waiting."""
        raise NotImplementedError

    @property
    def descriptor(self) -> int | None:
        """Readable while bytes wait. None: `read` is called now and then."""
        return None

    def close(self) -> None:
        """After the last call of all others. Not when the process is killed."""
        if self.context.backing_fd is not None:
            os.close(self.context.backing_fd)
