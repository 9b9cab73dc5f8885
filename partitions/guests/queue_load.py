"""A guest that reads 4 KiB blocks at random over one queue of its disk, over two, and so on, in turns; all checked.

    args = { device = "disk0", queues = [1, 2], operations = 50000, depth = 32, rounds = 5 }

The requests in flight are as many whatever the queues, shared between them: what differs is who carries them. For each
round the event guest.queue_load has what it took: seconds, and seconds of this guest's processor time.
"""

import random
import threading
import time
from typing import Final

from partitions.child import Partition
from partitions.guests.disk_load import Volume
from partitions.storage.disk import Disk

USED_BYTES: Final = 16 << 20


def main(partition: Partition) -> int:
    """args: device (text), bytes (to use), queues (numbers of them), operations (each round), depth, rounds."""
    args = partition.args
    counts = [int(count) for count in args.get("queues", (1, 2))]
    operations, depth = int(args.get("operations", 50_000)), int(args.get("depth", 32))
    mismatches = 0
    with partition.open_disk(str(args["device"]), queues=max(counts)) as disk:
        volume = Volume(disk, min(int(args.get("bytes", USED_BYTES)), disk.size_bytes))
        for number in range(int(args.get("rounds", 5))):
            for count in counts if number % 2 == 0 else reversed(counts):
                began, began_cpu = time.monotonic(), time.process_time()
                wrong = _read(volume, disk.queues[:count], operations, depth)
                partition.report(
                    "queue_load",
                    queues=count,
                    operations=operations,
                    seconds=time.monotonic() - began,
                    cpu_seconds=time.process_time() - began_cpu,
                    mismatches=wrong,
                )
                mismatches += wrong
    return int(mismatches > 0)


def _read(volume: Volume, queues: tuple[Disk, ...], operations: int, depth: int) -> int:
    """By a thread for each queue. How many blocks were not what they should be."""
    wrong = [0] * len(queues)

    def read(index: int) -> None:
        share = volume.through(queues[index])
        seed = random.randrange(1 << 30)
        wrong[index] = share.read_randomly(operations // len(queues), depth // len(queues), seed).mismatches

    threads = [threading.Thread(target=read, args=(index,)) for index in range(1, len(queues))]
    for thread in threads:
        thread.start()
    read(0)
    for thread in threads:
        thread.join()
    return sum(wrong)
