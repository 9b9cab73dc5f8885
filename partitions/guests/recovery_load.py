"""A guest that keeps its disk busy, but not itself, and writes down when something completed.

File `completions` is an array of u64 in this host's byte order: CLOCK_MONOTONIC in ns of each time that completions
came in, in order of happening; zeros from there on. Whoever maps the same file knows each gap, and what ended it. The
file's size says how many fit; then the load ends.
"""

import mmap
import os
import random
import time
from typing import Final

from bus.native import monotonic_ns
from partitions.child import Partition

BLOCK_BYTES: Final = 4096
DEPTH: Final = 8
PACE_US: Final = (
    500  # between the beginnings of two bursts: far below any outage, and leaves the CPU to others
)
SEED: Final = 1


def main(partition: Partition) -> None:
    """Bursts of reads and writes, half and half. args: device (text), depth, pace_us."""
    depth = int(partition.args.get("depth", DEPTH))
    pace_ns = int(partition.args.get("pace_us", PACE_US)) * 1000
    completions = partition.files["completions"]
    times = memoryview(mmap.mmap(completions, os.fstat(completions).st_size)).cast("Q")
    rng = random.Random(SEED)
    with (
        partition.open_disk(str(partition.args["device"])) as disk,
        disk.open_queue(depth, BLOCK_BYTES) as queue,
    ):
        blocks = disk.size_bytes // BLOCK_BYTES
        readers, writers = list(range(depth // 2)), list(range(depth // 2, depth))
        place = 0
        begin_ns = monotonic_ns()
        while place < len(times):
            offsets = [rng.randrange(blocks) * BLOCK_BYTES for _ in range(depth)]
            left = queue.submit_reads(readers, offsets[: len(readers)])
            left += queue.submit_writes(writers, offsets[len(readers) :])
            while left and place < len(times):
                left -= len(queue.reap()) + len(queue.failed)
                queue.failed.clear()
                times[place] = monotonic_ns()
                place += 1
            begin_ns = max(begin_ns + pace_ns, monotonic_ns())  # what an outage took is not caught up with
            time.sleep(max(begin_ns - monotonic_ns(), 0) / 1e9)
