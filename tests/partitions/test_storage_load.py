"""The measuring guest notices a disk that returns something else than it was given."""

import pytest

from partitions.guests.disk_load import BLOCK_BYTES, Volume
from partitions.storage.backends import MemoryBackend
from partitions.storage.disk import Disk
from tests.partitions.storage_pair import connected

SIZE = 1 << 20


@pytest.mark.parametrize("wrong", ["nothing", "one byte", "two blocks swapped"])
def test_each_workload_counts_exactly_the_blocks_that_are_wrong(wrong: str) -> None:
    with MemoryBackend(SIZE) as backend, connected(backend, data_pages=128) as pair:
        volume = Volume(Disk(pair.guest, pair.data, pair.data_gpfn, timeout_s=20), SIZE)
        first, second = bytearray(BLOCK_BYTES), bytearray(BLOCK_BYTES)
        backend.readv([memoryview(first), memoryview(second)], 0)
        if wrong == "one byte":
            first[100] ^= 1
            backend.writev([memoryview(first)], 0)
        elif wrong == "two blocks swapped":
            backend.writev([memoryview(second), memoryview(first)], 0)
        loads = (volume.read_singly(2000), volume.read_randomly(2000), volume.read_in_order(64))
        assert [load.operations for load in loads] == [2000, 2000, 64]
        assert all((load.mismatches > 0) == (wrong != "nothing") for load in loads)
        assert loads[0].mismatches == loads[1].mismatches, "the same seed, the same blocks"
        assert loads[2].mismatches == (0 if wrong == "nothing" else 64 * 65_536 // SIZE)
        assert all(load.seconds > 0 for load in loads)
