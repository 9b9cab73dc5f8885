"""A guest that measures its disk in turns with others, so that levels of a tree can be compared within one run.

Nobody tells it whose turn it is: the host's monotonic clock is cut into windows, and window n is of the one whose
`turn` is n modulo `turns`. A guest works in the first nine tenths of its windows and sleeps through those of others.

It has a part of the disk to itself. Each of its blocks holds its number and bytes that follow from `turn`; each read is
checked by CRC-32C, and at the end everything is read once more and its SHA-256 compared with that of what was written.

    args = { device = "disk0", turn = 0, turns = 3 }

args: device; turn and turns; depth (of the partition in the tree; only reported); rounds (windows of its own);
window_ms; blocks of 4 KiB, from turn * blocks on.

Event nested_load: p50 and p99 of reads and of writes, one 4 KiB block at a time, over all rounds; the p50 of each
round; random reads a second with 32 in flight; mismatches; sha256 of its part of the disk.
"""

import hashlib
import random
import struct
import time
from typing import Final

from bus.native import Histogram, crc32c, monotonic_ns
from partitions.child import Partition
from partitions.storage.disk import Disk

BLOCK_BYTES: Final = 4096
CHUNK_BLOCKS: Final = 16
QUEUE_DEPTH: Final = 32
_SINGLE_SHARE: Final = 0.6  # of a window: one at a time
_QUEUED_SHARE: Final = 0.9  # from there to here: many in flight
WINDOWS_A_ROUND_MAX: Final = 20  # that may be missed
_LOOK_EVERY: Final = 16  # operations between two looks at the clock


class Region:
    """One guest's part of the disk."""

    def __init__(self, disk: Disk, turn: int, blocks: int) -> None:
        """Fill it. ValueError: the disk is too small."""
        if (turn + 1) * blocks * BLOCK_BYTES > disk.size_bytes:
            raise ValueError(f"the disk has {disk.size_bytes} bytes: too few for {blocks} blocks a turn")
        self._disk, self._first, self.blocks = disk, turn * blocks, blocks
        shared = random.Random(turn).randbytes(BLOCK_BYTES - 8)
        content = [struct.pack("<Q", self._first + number) + shared for number in range(blocks)]
        self.sums: Final = [crc32c(block) for block in content]
        self.sha256: Final = hashlib.sha256(b"".join(content)).hexdigest()
        for number in range(0, blocks, CHUNK_BLOCKS):
            disk.write(self.offset(number), b"".join(content[number : number + CHUNK_BLOCKS]))
        disk.flush()

    def offset(self, number: int) -> int:
        return (self._first + number) * BLOCK_BYTES

    def read_all(self) -> str:
        """The SHA-256 of what is there."""
        found = hashlib.sha256()
        for number in range(0, self.blocks, CHUNK_BLOCKS):
            count = min(CHUNK_BLOCKS, self.blocks - number)
            found.update(self._disk.read(self.offset(number), count * BLOCK_BYTES))
        return found.hexdigest()


class Load:
    """What one guest measures, round by round."""

    def __init__(self, disk: Disk, region: Region, turn: int) -> None:
        self._disk, self._region = disk, region
        self._random = random.Random(turn)
        self.reads, self.writes = Histogram(), Histogram()
        self.round_p50_ns: list[int] = []
        self.queued_reads = self.mismatches = 0
        self.queued_s = 0.0

    def run_window(self, begin_ns: int, window_ns: int) -> bool:
        """False: it is no round, as it was over before each of its parts had begun. A busy host may let us sleep on."""
        queued = self.queued_reads
        p50_ns = self._one_at_a_time(begin_ns + int(window_ns * _SINGLE_SHARE))
        self._many_in_flight(begin_ns + int(window_ns * _QUEUED_SHARE))
        if p50_ns is None or self.queued_reads == queued:
            return False
        self.round_p50_ns.append(p50_ns)
        return True

    def _one_at_a_time(self, until_ns: int) -> int | None:
        """Read a block, check it, write it back as it is. The reads' p50, if there were any."""
        region, latency = self._region, Histogram()
        with self._disk.open_queue(1, BLOCK_BYTES) as queue:
            view = queue.views[0]
            while monotonic_ns() < until_ns:
                for _ in range(_LOOK_EVERY):
                    number = self._random.randrange(region.blocks)
                    begun = monotonic_ns()
                    queue.read(region.offset(number))
                    took = monotonic_ns() - begun
                    latency.record(took)
                    self.reads.record(took)
                    self.mismatches += crc32c(view) != region.sums[number]
                    begun = monotonic_ns()
                    queue.write(region.offset(number))
                    self.writes.record(monotonic_ns() - begun)
        return latency.percentile(50) if latency.count else None

    def _many_in_flight(self, until_ns: int) -> None:
        region, begun = self._region, time.monotonic()
        with self._disk.open_queue(QUEUE_DEPTH, BLOCK_BYTES) as queue:
            slots, wanted = list(range(QUEUE_DEPTH)), [0] * QUEUE_DEPTH
            in_flight = 0
            while slots or in_flight:
                if slots and monotonic_ns() < until_ns:
                    numbers = [self._random.randrange(region.blocks) for _ in slots]
                    for slot, number in zip(slots, numbers, strict=True):
                        wanted[slot] = region.sums[number]
                    started = queue.submit_reads(slots, [region.offset(number) for number in numbers])
                    in_flight += started
                elif not in_flight:
                    break
                slots = queue.reap()
                self.mismatches += sum(crc32c(queue.views[slot]) != wanted[slot] for slot in slots)
                self.mismatches += len(queue.failed)
                in_flight -= len(slots) + len(queue.failed)
                self.queued_reads += len(slots)
                queue.failed.clear()
        self.queued_s += time.monotonic() - begun


def main(partition: Partition) -> int:
    """1: a block was not what was written to it."""
    args = partition.args
    turn, turns = int(args["turn"]), int(args["turns"])
    rounds, window_ns = int(args.get("rounds", 5)), int(args.get("window_ms", 200)) * 1_000_000
    with partition.open_disk(str(args["device"])) as disk:
        region = Region(disk, turn, int(args.get("blocks", 1024)))
        load = Load(disk, region, turn)
        done = 0
        for _ in range(rounds * WINDOWS_A_ROUND_MAX):
            begin_ns = _next_window(turn, turns, window_ns)
            time.sleep(max(begin_ns - monotonic_ns(), 0) / 1e9)
            done += load.run_window(begin_ns, window_ns)
            if done == rounds:
                break
        whole = region.read_all() == region.sha256
    partition.report(
        "nested_load",
        depth=int(args.get("depth", 1)),
        read_p50_ns=load.reads.percentile(50),
        read_p99_ns=load.reads.percentile(99),
        write_p50_ns=load.writes.percentile(50),
        write_p99_ns=load.writes.percentile(99),
        operations=load.reads.count + load.writes.count,
        queued_reads_per_second=round(load.queued_reads / load.queued_s),
        round_p50_ns=load.round_p50_ns,
        mismatches=load.mismatches,
        sha256=region.sha256,
        whole=whole,
    )
    return int(load.mismatches > 0 or not whole)


def _next_window(turn: int, turns: int, window_ns: int) -> int:
    """When the next one that is ours begins."""
    number = monotonic_ns() // window_ns + 1
    return (number + (turn - number) % turns) * window_ns
