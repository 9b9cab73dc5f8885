"""The trio client: many tasks on one disk, cancellation, and channels that go away."""

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from partitions.storage.async_disk import AsyncDisk, open_disk
from partitions.storage.backends import BlockBackend, DescriptorBackend, MemoryBackend
from partitions.storage.errors import DiskClosedError, DiskCommandError
from tests.partitions.storage_pair import Pair, connected

SIZE = 1 << 20
BOUND_S = 30


@asynccontextmanager
async def disk_on(backend: BlockBackend, **options: int) -> AsyncIterator[tuple[Pair, AsyncDisk]]:
    with connected(backend, **options) as pair, trio.fail_after(BOUND_S):  # type: ignore[arg-type]
        async with open_disk(pair.guest, pair.data, pair.data_gpfn) as disk:
            yield pair, disk


def free_pages(disk: AsyncDisk) -> int:
    return disk._disk.pool.free_pages


@pytest.mark.parametrize("ring_pages", [1, 4])
@pytest.mark.parametrize("data_pages", [2, 64])
def test_many_tasks_each_see_their_own_bytes(ring_pages: int, data_pages: int) -> None:
    """More tasks than pages, than ring space; each writes and reads its own part of the disk."""

    async def task(disk: AsyncDisk, number: int) -> None:
        rng, start, size = random.Random(number), number * 16_384, 16_384
        model = bytearray(size)
        for _ in range(8):
            offset = rng.randrange(size // 512) * 512
            length = rng.randrange(512, size - offset + 1, 512)
            match rng.randrange(4):
                case 0:
                    data = rng.randbytes(length)
                    await disk.write(start + offset, data, durable=rng.random() < 0.2)
                    model[offset : offset + length] = data
                case 1:
                    await disk.discard(start + offset, length)
                    model[offset : offset + length] = bytes(length)
                case 2:
                    await disk.flush()
                case _:
                    assert await disk.read(start + offset, length) == model[offset : offset + length]

    async def main() -> None:
        with MemoryBackend(SIZE) as backend:
            async with disk_on(backend, ring_pages=ring_pages, data_pages=data_pages) as (_, disk):
                async with trio.open_nursery() as nursery:
                    for number in range(40):
                        nursery.start_soon(task, disk, number)
                assert disk.in_flight == 0
                assert free_pages(disk) == data_pages

    trio.run(main)


def test_a_transfer_larger_than_the_data_area_goes_in_pieces() -> None:
    async def main() -> None:
        with MemoryBackend(SIZE) as backend:
            async with disk_on(backend, data_pages=3) as (_, disk):
                data = random.Random(1).randbytes(SIZE)
                await disk.write(0, data)
                assert await disk.read(0, SIZE) == data
                assert await disk.read(512, 0) == b""

    trio.run(main)


def test_a_cancelled_operation_gives_its_pages_back_when_its_answer_comes() -> None:
    async def main() -> None:
        with MemoryBackend(SIZE) as backend:
            async with disk_on(backend) as (_, disk):
                everything = free_pages(disk)
                for _ in range(50):
                    with trio.move_on_after(0) as scope:
                        await disk.read(0, 65_536)
                    assert scope.cancelled_caught
                while disk.in_flight:
                    await trio.sleep(0)
                assert free_pages(disk) == everything
                assert await disk.read(0, 512) == bytes(512)

    trio.run(main)


def test_an_error_is_raised_in_the_task_that_asked() -> None:
    async def main() -> None:
        with DescriptorBackend(os.open("/dev/full", os.O_RDWR), SIZE) as backend:
            async with disk_on(backend) as (_, disk):
                with pytest.raises(DiskCommandError) as caught:
                    await disk.write(0, bytes(200_192))
                assert caught.value.errno == 28
                assert await disk.read(0, 512) == bytes(512)
                with pytest.raises(ValueError, match="multiples"):
                    await disk.read(1, 512)
                assert free_pages(disk) == 64

    trio.run(main)


@pytest.mark.parametrize("who", ["we close the channel", "the block ends"])
def test_whoever_waits_is_told_when_the_disk_goes(who: str) -> None:
    async def main() -> None:
        ended = 0

        async def wait(disk: AsyncDisk) -> None:
            nonlocal ended
            with pytest.raises(DiskClosedError):
                await disk.read(0, 4096)
            ended += 1

        with MemoryBackend(SIZE) as backend:
            async with trio.open_nursery() as nursery, disk_on(backend, data_pages=4) as (pair, disk):
                pair.end()  # nobody answers any more
                for _ in range(10):
                    nursery.start_soon(wait, disk)
                await trio.sleep(0.05)
                if who == "we close the channel":
                    pair.guest.close()
                    while ended < 10:
                        await trio.sleep(0.01)
                    with pytest.raises(DiskClosedError):
                        await disk.flush()
        assert ended == 10

    trio.run(main)


def test_a_close_wakes_the_pump_by_itself_and_not_by_a_look_now_and_then() -> None:
    """The clock stands still unless nothing at all happens: no time passes between a close and its news."""

    async def main() -> None:
        with MemoryBackend(SIZE) as backend:
            async with disk_on(backend, data_pages=4) as (pair, disk):
                pair.end()

                async def wait() -> None:
                    with pytest.raises(DiskClosedError):
                        await disk.read(0, 4096)

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait)
                    await trio.testing.wait_all_tasks_blocked()
                    before = trio.current_time()
                    await trio.to_thread.run_sync(pair.guest.close)
                assert trio.current_time() == before

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=BOUND_S))


def test_the_callers_own_error_comes_out_as_it_is() -> None:
    async def main() -> None:
        with MemoryBackend(SIZE) as backend:
            async with disk_on(backend) as (_, disk):
                await disk.flush()
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trio.run(main)
