"""A load that takes turns with others: on a busy host it may sleep through a window of its own."""

from collections.abc import Iterator

import pytest

from bus.native import monotonic_ns
from partitions.guests.nested_load import Load, Region
from partitions.storage.backends import MemoryBackend
from partitions.storage.disk import Disk
from tests.partitions.storage_pair import connected

WINDOW_NS = 60_000_000


@pytest.fixture
def load() -> Iterator[Load]:
    with connected(MemoryBackend(1 << 20), data_pages=256) as pair:
        disk = Disk(pair.guest, pair.data, pair.data_gpfn)
        yield Load(disk, Region(disk, 0, 64), 0)


def test_a_window_that_was_missed_is_no_round(load: Load) -> None:
    """Not one in which nothing was measured, nor one of which only the second part was left."""
    assert not load.run_window(monotonic_ns() - 2 * WINDOW_NS, WINDOW_NS)
    assert not load.run_window(monotonic_ns() - WINDOW_NS * 7 // 10, WINDOW_NS)
    assert load.round_p50_ns == []
    while not load.run_window(monotonic_ns(), WINDOW_NS):
        assert load.round_p50_ns == []
    assert len(load.round_p50_ns) == 1
    assert load.queued_reads > 0
    assert load.mismatches == 0
