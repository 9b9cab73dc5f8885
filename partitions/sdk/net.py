"""Drivers of network adapters: frames out, frames in. See docs/network.md.

Behind each device is a switch: its ports are the partitions that have the device, and the driver is the port to the
outside. Calls of `transmit` and `receive` come from several threads, and never overlap.
"""

import os
from collections.abc import Sequence

from partitions.sdk.context import DriverContext


class NetDriver:
    """One adapter. BackendError from a method costs those frames; anything else costs the channel its worker."""

    mtu: int = 1500  # bytes of a frame behind its Ethernet header
    mac: bytes | None = None  # of the only guest; None: each guest gets one of its own

    def __init__(self, context: DriverContext) -> None:
        self.context = context

    def transmit(self, frames: Sequence[memoryview]) -> int:
        """Send frames, without waiting; how many of the first ones were taken. The others are dropped.

        The views are the guest's own pages: they are valid until this returns, and may change meanwhile.
        """
        raise NotImplementedError

    def receive(self, limit: int) -> list[bytes]:
        """Frames that have come in, at most `limit`, without waiting."""
        raise NotImplementedError

    @property
    def descriptor(self) -> int | None:
        """Readable while frames wait. None: `receive` is called after each `transmit`, and now and then."""
        return None

    @property
    def link_up(self) -> bool:
        """Asked now and then: the guests are told when it changes."""
        return True

    def close(self) -> None:
        """After the last call of all others. Not when the process is killed."""
        if self.context.backing_fd is not None:
            os.close(self.context.backing_fd)
