"""A guest that measures its disk: single reads, random reads with many in flight, sequential reads; all checked.

Block n of 4 KiB holds its own number and then bytes that all blocks share, so its CRC-32C says both that it is
whole and that it is the one that was asked for.
"""

import copy
import random
import struct
import time
from array import array
from dataclasses import asdict, dataclass
from typing import Final

from bus.native import Histogram, crc32c, monotonic_ns
from partitions.child import Partition
from partitions.storage.disk import Disk

BLOCK_BYTES: Final = 4096
CHUNK_BYTES: Final = 64 * 1024
QUEUE_DEPTH: Final = 32
SEQUENTIAL_DEPTH: Final = 16
SEED: Final = 1


@dataclass(frozen=True, slots=True)
class Load:
    """One workload's result. Mismatches other than 0: the disk returned something else than what it was given."""

    name: str
    transfer_bytes: int
    depth: int
    operations: int
    seconds: float
    mismatches: int
    p50_ns: int = 0  # of one operation, where each was timed
    p99_ns: int = 0
    p999_ns: int = 0

    @property
    def operations_per_second(self) -> float:
        return self.operations / self.seconds


class Volume:
    """The disk's first `size_bytes`, filled with blocks that can be checked."""

    def __init__(self, disk: Disk, size_bytes: int, seed: int = SEED) -> None:
        """Write and flush all of it."""
        self.disk = disk
        self.blocks: Final = size_bytes // BLOCK_BYTES
        self.size_bytes: Final = self.blocks * BLOCK_BYTES
        shared = random.Random(seed).randbytes(BLOCK_BYTES - 8)
        self.sums: Final = array("I")
        self.chunk_sums: Final = array("I")
        per_chunk = CHUNK_BYTES // BLOCK_BYTES
        for first in range(0, self.blocks - per_chunk + 1, per_chunk):
            blocks = [struct.pack("<Q", number) + shared for number in range(first, first + per_chunk)]
            self.sums.extend(crc32c(block) for block in blocks)
            chunk = b"".join(blocks)
            self.chunk_sums.append(crc32c(chunk))
            disk.write(first * BLOCK_BYTES, chunk)
        disk.flush()

    def through(self, disk: Disk) -> "Volume":
        """The same blocks by another queue."""
        other = copy.copy(self)
        other.disk = disk
        return other

    def read_singly(self, operations: int, seed: int = SEED) -> Load:
        """One 4 KiB read after the other, at random; each timed from the call to the bytes being there."""
        rng, latency, mismatches = random.Random(seed), Histogram(), 0
        numbers = [rng.randrange(len(self.sums)) for _ in range(operations)]
        with self.disk.open_queue(1, BLOCK_BYTES) as queue:
            view, read, sums = queue.views[0], queue.read, self.sums
            started = time.monotonic()
            for number in numbers:
                begun = monotonic_ns()
                read(number * BLOCK_BYTES)
                latency.record(monotonic_ns() - begun)
                mismatches += crc32c(view) != sums[number]
            seconds = time.monotonic() - started
        return Load(
            "single 4 KiB reads",
            BLOCK_BYTES,
            1,
            operations,
            seconds,
            mismatches,
            latency.percentile(50),
            latency.percentile(99),
            latency.percentile(99.9),
        )

    def read_randomly(self, operations: int, depth: int = QUEUE_DEPTH, seed: int = SEED) -> Load:
        rng = random.Random(seed)
        numbers = [rng.randrange(len(self.sums)) for _ in range(operations)]
        seconds, mismatches = self._keep_in_flight(BLOCK_BYTES, depth, numbers, self.sums)
        return Load("random 4 KiB reads", BLOCK_BYTES, depth, operations, seconds, mismatches)

    def read_in_order(self, operations: int, depth: int = SEQUENTIAL_DEPTH) -> Load:
        numbers = [number % len(self.chunk_sums) for number in range(operations)]
        seconds, mismatches = self._keep_in_flight(CHUNK_BYTES, depth, numbers, self.chunk_sums)
        return Load("sequential 64 KiB reads", CHUNK_BYTES, depth, operations, seconds, mismatches)

    def _keep_in_flight(
        self, transfer_bytes: int, depth: int, numbers: list[int], sums: "array[int]"
    ) -> tuple[float, int]:
        """Read each numbered piece, `depth` at a time; (seconds, how many did not have their sum)."""
        offsets = [number * transfer_bytes for number in numbers]
        wanted = [sums[number] for number in numbers]
        depth = min(depth, len(numbers), self.disk.pool.longest_run_bytes // transfer_bytes)
        mismatches, done = 0, 0
        with self.disk.open_queue(depth, transfer_bytes) as queue:
            views, reap, submit = queue.views, queue.reap, queue.submit_reads
            expected = wanted[:depth]  # by slot
            started = time.monotonic()
            next_one = submit(list(range(depth)), offsets[:depth])
            assert next_one == depth, "the ring holds fewer requests than the queue is deep"
            while done < len(numbers):
                ended = reap()
                mismatches += sum([crc32c(views[slot]) != expected[slot] for slot in ended])
                done += len(ended) + len(queue.failed)
                if queue.failed:
                    mismatches += len(queue.failed)
                    ended += [slot for slot, _ in queue.failed]
                    queue.failed.clear()
                del ended[len(numbers) - next_one :]
                for slot, value in zip(ended, wanted[next_one : next_one + len(ended)], strict=True):
                    expected[slot] = value
                next_one += submit(ended, offsets[next_one : next_one + len(ended)])
            seconds = time.monotonic() - started
        return seconds, mismatches


def main(partition: Partition) -> int:
    """args: device (text), bytes (of the disk to use), single, random and sequential (how many operations of each)."""
    single, scattered, ordered = (
        int(partition.args.get(kind, 0)) for kind in ("single", "random", "sequential")
    )
    with partition.open_disk(str(partition.args["device"])) as disk:
        volume = Volume(disk, min(int(partition.args.get("bytes", 64 << 20)), disk.size_bytes))
        measures = (
            (volume.read_singly, single),
            (volume.read_randomly, scattered),
            (volume.read_in_order, ordered),
        )
        mismatches = 0
        for measure, operations in measures:
            if operations:
                partition.report("disk_load_begins", operations=operations)
                load = measure(operations)
                partition.report("disk_load", **asdict(load))
                mismatches += load.mismatches
    return 1 if mismatches else 0
