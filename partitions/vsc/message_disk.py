"""A guest's disk without rings: its server is called, and replies."""

import contextlib
from collections.abc import Iterator
from typing import Final

from bus.memory import PAGE_BYTES, MemorySlot
from bus.native import RingClosed
from partitions.stack.vmbus_ports import message_connection
from partitions.storage.disk import Disk
from partitions.storage.errors import DiskClosedError
from partitions.storage.message_channel import MessageChannel
from partitions.vsc.message_connection import connect_to
from runtime.hypercalls.caller import HypercallPort

_DATA_GPFN: Final = 0x200_0000  # in the guest's own space, above what the bus takes
_DATA_STRIDE: Final = 0x1_0000


@contextlib.contextmanager
def open_message_disk(call: HypercallPort, number: int, data_bytes: int) -> Iterator[Disk]:
    """Of the guest's device of that number. The data area is of the guest's own pages; nobody else ever maps them.

    Raises:
        DiskClosedError: its server is gone for good, or the config gave it none.
        HypercallError: INSUFFICIENT_MEMORY: this partition has not that many pages left.
    """
    gpfn, pages = _DATA_GPFN + number * _DATA_STRIDE, data_bytes // PAGE_BYTES
    mapped = call.map_gpa_pages(gpfn, pages)
    with contextlib.ExitStack() as undo:
        slot = MemorySlot.from_fd(mapped.fd, gpfn, pages)
        undo.callback(call.unmap_gpa_pages, gpfn, pages)
        undo.callback(slot.close)
        area = slot.memory
        try:
            channel = MessageChannel(connect_to(call, message_connection(number)), area, gpfn)
        except RingClosed as error:
            raise DiskClosedError(str(error)) from error
        undo.callback(channel.destroy)
        with Disk(channel, area, gpfn) as disk:
            yield disk
