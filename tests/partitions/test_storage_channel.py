"""Client and server over a real ring, the server in C and in Python, with a model, with liars, with sudden ends."""

import errno
import itertools
import os
import random
import threading
import time
from collections.abc import Callable

import pytest

from bus.memory import PAGE_BYTES
from bus.native import RingCorrupt
from partitions.storage.backends import DescriptorBackend, MemoryBackend
from partitions.storage.disk import Disk
from partitions.storage.errors import DiskClosedError, DiskCommandError
from tests.partitions.storage_pair import Pair, connected

SIZE = 1 << 20
SECOND_NS = 1_000_000_000


def open_disk(pair: Pair) -> Disk:
    return Disk(pair.guest, pair.data, pair.data_gpfn, timeout_s=20)


@pytest.mark.parametrize("waiting", ["adaptive", "block"])
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_any_mix_of_operations_agrees_with_a_bytearray(seed: int, fast: bool, waiting: str) -> None:
    """Small rings, so that they wrap and fill; several requests in flight, executed in ring order."""
    rng, model = random.Random(seed), bytearray(SIZE)
    with MemoryBackend(SIZE) as backend, connected(backend, ring_pages=1, fast=fast, waiting=waiting) as pair:
        disk = open_disk(pair)
        buffers = [disk.allocate(PAGE_BYTES) for _ in range(8)]
        for _ in range(300):
            offset = rng.randrange(SIZE // 512) * 512
            length = min(rng.choice((512, 4096, 70_144, 300_032)), SIZE - offset)
            match rng.randrange(6):
                case 0:
                    assert disk.read(offset, length) == model[offset : offset + length]
                case 1:
                    data = rng.randbytes(length)
                    disk.write(offset, data, durable=rng.random() < 0.1)
                    model[offset : offset + length] = data
                case 2:
                    disk.discard(offset, length)
                    model[offset : offset + length] = bytes(length)
                case 3:
                    disk.flush()
                case _:  # all to one block, in flight together: the last one sent must be the one that stays
                    tickets = []
                    for number, buffer in enumerate(buffers):
                        buffer.view[:512] = bytes([number + 1]) * 512
                        tickets.append(disk.submit_write(offset, buffer, 512))
                        if number % 3 == 0:
                            tickets.append(disk.submit_flush())
                    disk.wait_all(tickets)
                    model[offset : offset + 512] = bytes([len(buffers)]) * 512
        assert disk.read(0, SIZE) == model
        assert disk.statistics()["unknown_ids"] == 0
        assert pair.vsp.statistics()["bytes_read"] >= SIZE


# -- many in flight


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("ring_pages", [1, 4])
def test_a_queue_moves_every_byte_to_its_place(fast: bool, ring_pages: int) -> None:
    """Deeper than the rings: requests wait for room on both sides."""
    rng, depth, size = random.Random(5), 60, 1024
    model = bytearray(rng.randbytes(SIZE))
    with MemoryBackend(SIZE) as backend, connected(backend, ring_pages=ring_pages, fast=fast) as pair:
        disk = open_disk(pair)
        disk.write(0, bytes(model))
        with disk.open_queue(depth, size) as queue:
            for writing in (False, True, False):
                waiting = [at * size for at in rng.sample(range(SIZE // size), 500)]
                place, free, ended = [0] * depth, list(range(depth)), 0
                while ended < 500:
                    offsets = waiting[: len(free)]
                    for slot, offset in zip(free, offsets, strict=False):
                        place[slot] = offset
                        if writing:
                            data = rng.randbytes(size)
                            queue.views[slot][:] = data
                            model[offset : offset + size] = data
                    submit = queue.submit_writes if writing else queue.submit_reads
                    count = submit(free[: len(offsets)], offsets)
                    for offset in offsets[count:]:  # did not fit into the ring: not on its way yet
                        model[offset : offset + size] = disk_now(backend, offset, size)
                    del waiting[:count], free[:count]
                    for slot in queue.reap():
                        if not writing:
                            want = model[place[slot] : place[slot] + size]
                            assert queue.views[slot] == want
                        free.append(slot)
                        ended += 1
            queue.write(512, 3)
            model[512 : 512 + size] = queue.views[3]
            queue.read(0, 9)
            assert queue.views[9] == model[:size]
        assert disk.read(0, SIZE) == model


def disk_now(backend: MemoryBackend, offset: int, size: int) -> bytes:
    content = bytearray(size)
    backend.readv([memoryview(content)], offset)
    return bytes(content)


def test_what_a_queue_refuses_was_never_started() -> None:
    with MemoryBackend(SIZE) as backend, connected(backend) as pair:
        disk = open_disk(pair)
        for depth, transfer in ((0, 512), (5000, 512), (1, 0), (1, 1000), (1, 1 << 30)):
            with pytest.raises(ValueError, match="want"):
                disk.open_queue(depth, transfer)
        with disk.open_queue(4, 4096) as queue:
            for slots, offsets in (
                ([4], [0]),
                ([-1], [0]),
                ([0], [1]),
                ([0], [-512]),
                ([0], [SIZE]),
                ([0], [SIZE - 512]),
                ([0, 1], [0]),
            ):
                with pytest.raises((ValueError, OverflowError)):
                    queue.submit_reads(slots, offsets)
                assert queue.in_flight == 0
            with pytest.raises(ValueError, match="free"):
                queue.submit_reads([2, 2], [0, 0])
            assert queue.reap() == [2], "the first of the two was"
            with pytest.raises(RuntimeError, match="queue is open"):
                disk.read(0, 512)
        assert disk.read(0, 512) == bytes(512)


def test_one_transfer_more_than_the_ring_holds_waits_for_its_turn() -> None:
    """`read` and `write` beside many in flight: their own slot's result, and nobody else's is lost."""
    with MemoryBackend(SIZE) as backend, connected(backend, ring_pages=1, data_pages=256) as pair:
        disk = open_disk(pair)
        disk.write(0, b"".join(bytes([number]) * 4096 for number in range(64)))
        with disk.open_queue(200, 4096) as queue:
            for _ in range(50):
                started = queue.submit_reads(list(range(199)), [4096 * (n % 64) for n in range(199)])
                assert started < 199, "the ring is full"
                queue.read(4096 * 63, 199)
                assert queue.views[199] == bytes([63]) * 4096
                ended: list[int] = []
                while len(ended) < started:
                    ended += queue.reap()
                assert ended == list(range(started)), "in ring order, each once, the other one not"
                assert all(queue.views[slot][0] == slot % 64 for slot in ended)


def test_a_full_disk_fails_the_transfer_with_enospc_in_a_queue_and_outside() -> None:
    with DescriptorBackend(os.open("/dev/full", os.O_RDWR), SIZE) as backend, connected(backend) as pair:
        disk = open_disk(pair)
        with pytest.raises(DiskCommandError) as caught:
            disk.write(0, bytes(8192))
        assert caught.value.errno == errno.ENOSPC
        assert disk.read(0, 8192) == bytes(8192)
        with disk.open_queue(4, 4096) as queue:
            queue.submit_writes([0, 1], [0, 4096])
            queue.submit_reads([2], [0])
            done: list[int] = []
            while len(done) + len(queue.failed) < 3:
                done += queue.reap()
            assert done == [2]
            assert [(slot, error.errno) for slot, error in queue.failed] == [(0, 28), (1, 28)]
            queue.failed.clear()
            with pytest.raises(DiskCommandError) as caught:
                queue.write(0)
            assert caught.value.errno == errno.ENOSPC
            queue.read(0)


# -- ends


@pytest.mark.parametrize("through_queue", [True, False])
def test_closing_the_channel_ends_what_waits_for_a_server_that_is_gone(through_queue: bool) -> None:
    with MemoryBackend(SIZE) as backend, connected(backend) as pair:
        disk = open_disk(pair)
        disk.timeout_s = None
        pair.end()
        closer = threading.Timer(0.05, pair.guest.close)
        if through_queue:
            queue = disk.open_queue(2, 4096)
            queue.submit_reads([0, 1], [0, 0])
            closer.start()
            with pytest.raises(DiskClosedError):
                queue.reap()
            with pytest.raises(DiskClosedError):
                queue.read(0)
            queue.close()
        else:
            closer.start()
            with pytest.raises(DiskClosedError):
                disk.read(0, SIZE)
        closer.join()
        with pytest.raises(DiskClosedError):
            disk.flush()
        assert disk.in_flight == 0
        assert disk.pool.free_pages == disk.pool.pages


def test_a_guest_that_breaks_its_ring_ends_its_own_server_only() -> None:
    with (
        MemoryBackend(SIZE) as backend,
        connected(backend) as broken,
        connected(backend) as other,
    ):
        disk, bystander = open_disk(broken), open_disk(other)
        disk.write(0, b"x" * 512)
        broken.memory[0:4] = (12).to_bytes(4, "little")  # write_index: not a multiple of 8
        os.eventfd_write(broken.host_wait_fd, 1)
        broken.thread.join(20)
        assert not broken.thread.is_alive()
        assert [type(error) for error in broken.failure] == [RingCorrupt]
        assert bystander.read(0, 512) == b"x" * 512


@pytest.mark.parametrize("fast", [True, False])
def test_a_server_stops_when_told_even_if_nobody_closes_the_channel(fast: bool) -> None:
    with MemoryBackend(SIZE) as backend, connected(backend, fast=fast) as pair:
        disk = open_disk(pair)
        disk.flush()
        pair.stop.set()
        pair.thread.join(20)
        assert not pair.thread.is_alive()
        assert pair.failure == []
        pair.host.release()  # not closed


def test_nobody_changes_the_pages_or_takes_the_channel_of_a_running_server() -> None:
    with MemoryBackend(SIZE) as backend, connected(backend) as pair:
        disk, page, fresh = open_disk(pair), bytes(PAGE_BYTES), itertools.count(0x9000)
        assert disk.read(0, 512) == bytes(512)  # now it is in C
        assert until_refused(lambda: pair.gpa_map.add(next(fresh), page, writable=False))
        assert until_refused(lambda: pair.host.receive_batch(1, 0))
        assert disk.read(0, 512) == bytes(512)
        assert until_refused(pair.gpa_map.clear)


def until_refused(change: Callable[[], object], seconds: float = 20) -> bool:
    """The server looks at `stop` now and then: a call may slip in between, so it must be one that does no harm then."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            change()
        except RuntimeError:
            return True
    return False


def test_a_successor_finishes_what_its_predecessor_left_in_the_ring() -> None:
    """The first server is gone before it released anything; the second starts from its snapshot."""
    with MemoryBackend(SIZE) as backend, connected(backend) as pair:
        disk = open_disk(pair)
        disk.write(0, b"a" * 4096)
        pair.stop.set()
        pair.thread.join(20)
        saved = pair.vsp.snapshot()
        buffer = disk.allocate(3 * PAGE_BYTES)
        buffer.view[:PAGE_BYTES] = b"b" * PAGE_BYTES
        tickets = [
            disk.submit_write(8192, buffer, PAGE_BYTES),
            disk.submit_flush(),
            disk.submit_read(0, buffer, PAGE_BYTES, PAGE_BYTES),
            disk.submit_read(8192, buffer, PAGE_BYTES, 2 * PAGE_BYTES),
        ]
        assert len(pair.host.receive_batch(2, 20 * SECOND_NS)) == 2  # read, not executed, not released
        with pair.succeeded_by(backend, saved):
            disk.wait_all(tickets)
            assert buffer.view[PAGE_BYTES:] == b"a" * PAGE_BYTES + b"b" * PAGE_BYTES
            assert disk.read(8192, 512) == b"b" * 512
