"""Two guests: one puts a file onto its disk, the other reads such a disk back. Both keep many requests in flight.

Disk layout: the file's bytes from offset 0, the last block padded with zeros.
"""

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from bus.native import Histogram
from partitions.child import Partition
from partitions.storage.buffers import Buffer
from partitions.storage.disk import Disk
from partitions.storage.requests import Ticket

CHUNK_BYTES: Final = 256 * 1024
DEPTH: Final = 8
PROGRESS_S: Final = 0.25


def write_file(partition: Partition) -> None:
    """File `source` -> disk, flushed. args: device (text), bytes (how many; left out: the whole file)."""
    source = partition.files["source"]
    total = int(partition.args.get("bytes", os.fstat(source).st_size))

    def fill(buffer: Buffer, offset: int, length: int) -> None:
        view, done = buffer.view[:length], 0
        while done < length:
            moved = os.preadv(source, [view[done:]], offset + done)
            if moved == 0:
                raise OSError(f"the source ended at byte {offset + done}; {total} were announced")
            done += moved

    _copy(partition, "write", total, before=fill)


def read_back(partition: Partition) -> None:
    """Disk -> nothing but its sum. args: device (text), bytes (how many; left out: the whole disk)."""
    total = partition.args.get("bytes")
    _copy(partition, "read", None if total is None else int(total), before=None)


def _copy(
    partition: Partition, direction: str, total: int | None, before: Callable[[Buffer, int, int], None] | None
) -> None:
    """Move `total` bytes in order, DEPTH requests in flight, and report the sum and what it took."""
    digest, round_trips = hashlib.sha256(), Histogram()
    with partition.open_disk(str(partition.args["device"])) as disk:
        total = disk.size_bytes if total is None else total
        chunk = min(CHUNK_BYTES, disk.max_transfer_bytes)
        free = [disk.allocate(chunk) for _ in range(DEPTH)]
        flying: deque[tuple[Ticket, Buffer, int]] = deque()
        offset = done = 0
        started = reported = latest = time.monotonic()
        longest_gap_s, halfway_told = 0.0, False
        while done < total:
            while free and offset < total:
                buffer, length = free.pop(), min(chunk, total - offset)
                if before is not None:
                    before(buffer, offset, length)
                    digest.update(buffer.view[:length])
                flying.append((_submit(disk, direction, offset, buffer, length, round_trips), buffer, length))
                offset += length
            ticket, buffer, length = flying.popleft()
            disk.wait(ticket)
            if before is None:
                digest.update(buffer.view[:length])
            free.append(buffer)
            done += length
            now = time.monotonic()
            longest_gap_s, latest = max(longest_gap_s, now - latest), now
            if not halfway_told and done * 2 >= total:
                halfway_told = True
                partition.report("halfway", direction=direction, bytes=done, of=total)
            if now - reported > PROGRESS_S:
                reported = now
                partition.report("progress", direction=direction, bytes=done, of=total)
        if direction == "write":
            disk.flush()
        seconds = time.monotonic() - started
        channel = disk.channel.statistics()
        partition.report(
            "copied",
            direction=direction,
            bytes=done,
            seconds=seconds,
            sha256=digest.hexdigest(),
            requests=round_trips.count,
            longest_gap_ns=int(longest_gap_s * 1e9),
            round_trip_ns={str(percent): round_trips.percentile(percent) for percent in (50, 90, 99)},
            interrupts_sent=channel["signals_sent"],
            interrupts_suppressed=channel["signals_suppressed"],
        )


def _submit(
    disk: Disk, direction: str, offset: int, buffer: Buffer, length: int, round_trips: Histogram
) -> Ticket:
    padded = -(-length // disk.block_bytes) * disk.block_bytes
    if direction == "write" and padded > length:
        buffer.view[length:padded] = bytes(padded - length)
    begun = time.monotonic_ns()
    submit = disk.submit_write if direction == "write" else disk.submit_read
    ticket = submit(offset, buffer, padded)
    ticket.on_done = lambda: round_trips.record(time.monotonic_ns() - begun)
    return ticket
