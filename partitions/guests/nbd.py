"""A guest that exports its disk over NBD, for any NBD client of the host: nbdinfo, nbdcopy, qemu-img, fio, a kernel.

    [[partition]]
    program = "partitions.guests.nbd:main"
    args = { device = "disk0", socket = "nbd" }

    [[partition.device]]
    name = "disk0"

    [[partition.file]]
    name = "nbd"
    mode = "listen"

It tells the URI as the event `guest.nbd_ready`, and serves until it is stopped.
"""

import signal
import socket
import sys

import trio

from partitions.child import Partition
from partitions.nbd.export import POOL_BYTES, NbdExport, NotExportable


async def main(partition: Partition) -> int:
    """args: device, socket (names), export (text; by default the device's name)."""
    device, name = str(partition.args["device"]), str(partition.args.get("socket", "nbd"))
    listener = socket.socket(fileno=partition.files[name])
    stop, status = trio.Event(), 0
    with partition.open_disk(device, POOL_BYTES) as disk:
        try:
            export = NbdExport(disk, listener, str(partition.args.get("export", device)), partition.report)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_await_stop, stop)
                partition.report("nbd_ready", uri=export.uri, size_bytes=disk.size_bytes)
                await export.serve(stop)
                nursery.cancel_scope.cancel()
        except* NotExportable as errors:
            print(f"nbd: {errors.exceptions[0]}", file=sys.stderr)
            status = 1
    return status


async def _await_stop(stop: trio.Event) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            stop.set()
