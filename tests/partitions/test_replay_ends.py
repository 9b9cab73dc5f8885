"""A successor replays what may have been begun; a guest that asks faster than it answers cannot hold it there."""

import threading

from partitions.storage.backends import MemoryBackend
from partitions.storage.disk import Disk
from partitions.storage.vsp import REPLAYED_REQUESTS_MAX, StorageVsp
from tests.partitions.storage_pair import connected, host_end

BLOCK = 512


class _Eager(MemoryBackend):
    """Whoever it serves asks again before it has answered."""

    def __init__(self, again: "list[object]") -> None:
        super().__init__(1 << 20)
        self._again = again

    def readv(self, views: "object", offset: int) -> None:
        super().readv(views, offset)  # type: ignore[arg-type]
        for ask in self._again:
            ask()  # type: ignore[operator]


def test_replaying_ends_though_the_guest_goes_on_asking() -> None:
    again: list[object] = []
    backend = _Eager(again)
    with connected(backend, fast=False) as pair:
        disk = Disk(pair.guest, pair.data, pair.data_gpfn)
        saved = pair.vsp.snapshot()
        pair.stop.set()
        pair.end()
        channel = host_end(pair.memory, pair.ring_bytes, pair.host_wait_fd, pair.wait_fd, "block")
        vsp = StorageVsp(channel, pair.gpa_map, backend, saved=saved, fast=False)
        buffer = disk.allocate(BLOCK)

        def ask() -> None:
            disk.poll()
            disk.submit_read(0, buffer)

        again.append(ask)
        ask()
        replay = threading.Thread(target=vsp.replay, daemon=True)
        replay.start()
        replay.join(60)
        assert not replay.is_alive()
        assert vsp.statistics()["reads"] == REPLAYED_REQUESTS_MAX
        channel.close()
    backend.close()
