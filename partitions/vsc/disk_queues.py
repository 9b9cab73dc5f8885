"""More than one channel to a disk: asked for on the first one, opened, and closed before it."""

import contextlib
from collections.abc import Callable, Iterator

from bus.guids import SCSI
from partitions.storage.disk import Disk
from partitions.storage.errors import DiskProtocolError
from partitions.vsc.channel import GuestChannel


@contextlib.contextmanager
def further_queues(
    open_channel: Callable[..., GuestChannel], name: str, disk: Disk, data_bytes: int, queues: int
) -> Iterator[None]:
    """Until the block ends `disk.queues` are so many. `open_channel`: of the partition.

    Raises:
        DiskProtocolError: the disk has not as many; nothing was asked for.
        VmbusError, HypercallError: a channel could not be opened; those that were are closed.
    """
    if not 1 <= queues <= 1 + disk.description.max_sub_channels:
        there_are = 1 + disk.description.max_sub_channels
        raise DiskProtocolError(
            f"{name} has {there_are} queues, not {queues}: set queues in its [[root.device]]"
        )
    with contextlib.ExitStack() as opened:
        if queues > 1:
            disk.ask_for_sub_channels(queues - 1)
            found = []
            for index in range(1, queues):
                channel = opened.enter_context(open_channel(name, SCSI, data_bytes, sub_channel=index))
                rings = channel.channel, channel.data, channel.data_gpfn
                found.append(opened.enter_context(Disk(*rings, description=disk.description)))
            disk.further_queues = tuple(found)
            opened.callback(setattr, disk, "further_queues", ())
        yield
