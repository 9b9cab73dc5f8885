"""Guests with several queues to one disk, for tests."""

import contextlib
import struct
import threading
import time
from collections.abc import Iterator

from bus.native import RingError
from partitions.child import Partition
from partitions.storage.disk import Disk
from partitions.storage.errors import DiskClosedError, DiskProtocolError
from partitions.vsc.conversation import VmbusError

BLOCK = 4096
PATIENCE_S = 20.0
IMPOSSIBLE = 0xFFFF_FFF0  # a write index beyond any ring


def open_and_break(partition: Partition) -> None:
    """Open one to three queues, with bytes through each; break the ring of a sub-channel; begin again."""
    for round_, queues in enumerate((1, 3, 2, 3)):
        with partition.open_disk("disk0", queues=queues) as disk:
            _write_and_read_crosswise(disk, round_)
    try:
        with partition.open_disk("disk0", queues=4):
            raise AssertionError("there are three queues")
    except DiskProtocolError as error:
        partition.report("refused", reason=str(error))
    with partition.open_disk("disk0", queues=3) as disk:
        _break(partition, disk.queues[2])
        for queue in disk.queues:
            _read_until_closed(queue)
    with _opened_again(partition) as disk:
        _write_and_read_crosswise(disk, 9)
    partition.report("done")


def _write_and_read_crosswise(disk: Disk, round_: int) -> None:
    """Each in a thread of its own; then each reads what another one wrote."""
    count = len(disk.queues)
    texts = [f"{round_}.{index}".encode().ljust(BLOCK, b".") for index in range(count)]
    writers = [
        threading.Thread(
            target=lambda number: disk.queues[number].write(number * BLOCK, texts[number]), args=(each,)
        )
        for each in range(count)
    ]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    disk.queues[-1].flush()
    for index, queue in enumerate(disk.queues):
        other = (index + 1) % count
        assert queue.read(other * BLOCK, BLOCK) == texts[other]


def _break(partition: Partition, queue: Disk) -> None:
    (opened,) = (one for one in partition.vmbus._channels.values() if one.channel is queue.channel)
    struct.pack_into("<I", opened.slot.memory, 0, IMPOSSIBLE)
    opened.channel.kick()


def _read_until_closed(queue: Disk) -> None:
    """A bad ring takes its device along, whichever queue it was of; no other guest's."""
    ends = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends:
        try:
            queue.read(0, BLOCK)
        except (DiskClosedError, RingError):
            return
    raise AssertionError("the queue goes on")


@contextlib.contextmanager
def _opened_again(partition: Partition) -> Iterator[Disk]:
    ends = time.monotonic() + PATIENCE_S
    with contextlib.ExitStack() as stack:
        while True:
            try:
                disk = stack.enter_context(partition.open_disk("disk0", queues=3))
            except (VmbusError, DiskClosedError):
                assert time.monotonic() < ends, "it was not offered again"
                time.sleep(0.01)
            else:
                yield disk
                return
