"""A load's clock stands around its requests, and around nothing that the program does for itself."""

from collections.abc import Sequence
from typing import Final, cast

import pytest

from partitions.guests import block_load
from partitions.guests.block_load import BLOCK_BYTES, LoadPlan
from partitions.measuring import Load
from partitions.storage.io_queue import IoQueue

OWN_WORK_NS: Final = 1 << 40  # of making what is written
REQUEST_NS: Final = 10


class Clock:
    def __init__(self) -> None:
        self.at = 0

    def now(self) -> int:
        return self.at


class InstantQueue:
    """Every request takes the same time, and all of a batch end together."""

    def __init__(self, clock: Clock, depth: int) -> None:
        self.clock, self.depth, self.waiting = clock, depth, list[int]()
        self.views = [memoryview(bytearray(BLOCK_BYTES)) for _ in range(depth)]
        self.failed: list[tuple[int, object]] = []

    @property
    def in_flight(self) -> int:
        return len(self.waiting)

    def submit_writes(self, slots: Sequence[int], offsets: Sequence[int]) -> int:
        for slot, offset in zip(slots, offsets, strict=True):
            assert block_load.is_whole(self.views[slot], offset)
        self.waiting += slots
        return len(slots)

    def reap(self) -> list[int]:
        self.clock.at += REQUEST_NS
        ended, self.waiting = self.waiting, []
        return ended


@pytest.mark.parametrize("depth", [2, 4])
def test_what_is_written_is_made_before_its_time_begins(monkeypatch: pytest.MonkeyPatch, depth: int) -> None:
    clock, number_blocks = Clock(), block_load._number_blocks

    def slowly(view: memoryview, offset: int) -> None:
        clock.at += OWN_WORK_NS
        number_blocks(view, offset)

    monkeypatch.setattr(block_load, "monotonic_ns", clock.now)
    monkeypatch.setattr(block_load, "_number_blocks", slowly)
    load, queue = Load(), InstantQueue(clock, depth)
    plan = LoadPlan(True, BLOCK_BYTES, depth, OWN_WORK_NS * depth * 3 / 1e9)
    block_load.run(cast(IoQueue, queue), plan, [BLOCK_BYTES * 5, 0, BLOCK_BYTES * 9], load)
    assert load.latency.count == 3 * depth
    assert load.latency.percentile(100) == REQUEST_NS
