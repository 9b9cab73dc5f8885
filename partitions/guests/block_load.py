"""A guest that reads and writes its disk for a while, times each request, and checks what it gets.

    args = { device = "disk0", bytes = 8388608, loads = [
        { operation = "read", bytes = 4096, seconds = 0.2 },
        { operation = "write", bytes = 65536, depth = 8, seconds = 0.2 },
    ] }

Each 4 KiB block begins and ends with its own number, so a read says whether it is the block that was asked for, from
its first byte to its last. Writes write the same again. With more than one in flight a request counts from the moment
it is submitted to the moment it is taken in, with those that ended beside it. What is written is made before that: it
is the program's own work, and no part of the request.
"""

import random
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Final

from bus.native import monotonic_ns
from bus.trace import Hop
from partitions.child import Partition
from partitions.measuring import Load, stamps_of
from partitions.storage.disk import Disk
from partitions.storage.io_queue import IoQueue

BLOCK_BYTES: Final = 4096
USED_BYTES: Final = 8 << 20  # of the disk, unless `bytes` says otherwise
SECONDS: Final = 0.2
_FILL_BYTES: Final = 256 << 10  # of one write while the disk is filled
_OFFSETS: Final = 4096  # drawn once, then taken in turn
_NUMBER: Final = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """One table of `loads`."""

    write: bool
    transfer_bytes: int
    depth: int
    seconds: float

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> "LoadPlan":
        """ValueError: it can't be done."""
        operation = str(table.get("operation", "read"))
        plan = cls(
            operation == "write",
            int(table.get("bytes", BLOCK_BYTES)),
            int(table.get("depth", 1)),
            float(table.get("seconds", SECONDS)),
        )
        if operation not in ("read", "write"):
            raise ValueError(f'operation = "{operation}": "read" or "write" is wanted')
        if plan.transfer_bytes < BLOCK_BYTES or plan.transfer_bytes % BLOCK_BYTES:
            raise ValueError(f"bytes = {plan.transfer_bytes}: a multiple of {BLOCK_BYTES} is wanted")
        if plan.depth < 1 or plan.seconds <= 0:
            raise ValueError(f"depth = {plan.depth}, seconds = {plan.seconds:g}: both are above 0")
        return plan

    @property
    def name(self) -> str:
        what = f"{self.transfer_bytes >> 10} KiB {'writes' if self.write else 'reads'}"
        return what if self.depth == 1 else f"{what}, {self.depth} at a time"


def block(number: int) -> bytes:
    """Its number at both ends."""
    stamp = _NUMBER.pack(number)
    return stamp + bytes(BLOCK_BYTES - 2 * len(stamp)) + stamp


def is_whole(view: memoryview, offset: int) -> bool:
    """Whether these are the bytes of `offset`, by the first block's beginning and the last one's end."""
    first, last = offset // BLOCK_BYTES, (offset + len(view)) // BLOCK_BYTES - 1
    return bool(_NUMBER.unpack_from(view)[0] == first and _NUMBER.unpack(view[-_NUMBER.size :])[0] == last)


def fill(disk: Disk, size_bytes: int) -> None:
    for start in range(0, size_bytes, _FILL_BYTES):
        end = min(start + _FILL_BYTES, size_bytes)
        disk.write(start, b"".join(block(at // BLOCK_BYTES) for at in range(start, end, BLOCK_BYTES)))
    disk.flush()


def run(queue: IoQueue, plan: LoadPlan, offsets: list[int], load: Load) -> None:
    """Keep `depth` requests in flight until the time is over, then take in the last ones."""
    views, now, record = queue.views, monotonic_ns, load.latency.record
    submit = queue.submit_writes if plan.write else queue.submit_reads
    following = cycle(offsets)
    at, begun = [0] * queue.depth, [0] * queue.depth  # by slot
    free = list(range(queue.depth))
    deadline = now() + int(plan.seconds * 1e9)
    while True:
        if free and now() < deadline:
            for slot in free:
                at[slot] = next(following)
                if plan.write:
                    _number_blocks(views[slot], at[slot])
            places = [at[slot] for slot in free]
            moment = now()
            for slot in free:
                begun[slot] = moment
            submit(free, places)
        if not queue.in_flight:
            return
        ended = queue.reap()
        moment = now()
        for slot in ended:
            record(moment - begun[slot])
            if not plan.write:
                load.mismatches += not is_whole(views[slot], at[slot])
        load.mismatches += len(queue.failed)
        free = ended + [slot for slot, _ in queue.failed]
        queue.failed.clear()


def _number_blocks(view: memoryview, offset: int) -> None:
    for start in range(0, len(view), BLOCK_BYTES):
        number = _NUMBER.pack((offset + start) // BLOCK_BYTES)
        view[start : start + _NUMBER.size] = number
        view[start + BLOCK_BYTES - _NUMBER.size : start + BLOCK_BYTES] = number


def run_singly(disk: Disk, queue: IoQueue, plan: LoadPlan, offsets: list[int], load: Load) -> None:
    """One request after the other, each timed from just before the call to the bytes being there."""
    view, now, record, stamp = queue.views[0], monotonic_ns, load.latency.record, stamps_of(disk)
    transfer = queue.write if plan.write else queue.read
    deadline = now() + int(plan.seconds * 1e9)
    for offset in cycle(offsets):
        if plan.write:
            _number_blocks(view, offset)
        begun = now()
        if stamp is not None:
            stamp(Hop.CALL)
        transfer(offset)
        if stamp is not None:
            stamp(Hop.RETURN)
        ended = now()
        record(ended - begun)
        if not plan.write:
            load.mismatches += not is_whole(view, offset)
        if ended >= deadline:
            return


def main(partition: Partition) -> int:
    """args: device (text), bytes (of the disk to use), loads (tables: operation, bytes, depth, seconds)."""
    plans = [LoadPlan.from_table(table) for table in partition.args.get("loads", ({},))]
    mismatches = 0
    with partition.open_disk(str(partition.args["device"])) as disk:
        size_bytes = min(int(partition.args.get("bytes", USED_BYTES)), disk.size_bytes)
        fill(disk, size_bytes)
        for number, plan in enumerate(plans):
            rng = random.Random(number)
            places = size_bytes // plan.transfer_bytes
            offsets = [rng.randrange(places) * plan.transfer_bytes for _ in range(_OFFSETS)]
            with (
                disk.open_queue(plan.depth, plan.transfer_bytes) as queue,
                partition.measuring(plan.name, transfer_bytes=plan.transfer_bytes, depth=plan.depth) as load,
            ):
                if plan.depth == 1:
                    run_singly(disk, queue, plan, offsets, load)
                else:
                    run(queue, plan, offsets, load)
            mismatches += load.mismatches
    return 1 if mismatches else 0
