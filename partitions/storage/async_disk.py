"""A disk behind a VMBus channel, for trio programs.

    async with AsyncDisk(disk) as fast:
        block = await fast.read(0, 4096)

One pump task takes completions in, a whole batch for each doorbell and no checkpoint for each packet. A
cancelled operation stops waiting; its request goes on, and its pages come back when the server answers.
Ranges are whole blocks, and large transfers go out in pieces, as for `Disk`.
"""

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Final, Self

import trio

from bus.memory import PAGE_BYTES
from bus.native import Channel, RingClosed, RingCorrupt, RingFull
from partitions.storage.buffers import Buffer, BufferSpaceError
from partitions.storage.disk import MAX_IN_FLIGHT, REAP_PACKETS, SET_UP_TIMEOUT_S, BytesLike, Disk
from partitions.storage.errors import DiskClosedError
from partitions.storage.handshake import DiskDescription
from partitions.storage.identity import UNMAP_BYTES_MAX
from partitions.storage.pieces import STREAM_DEPTH
from partitions.storage.protocol import Direction
from partitions.storage.requests import Segment, Ticket
from partitions.storage.scsi import Command, ReadBlocks, SynchronizeCache, Unmap, WriteBlocks
from partitions.storage.target import build_unmap_parameters

RETRY_S: Final = 0.001  # between looks at a full ring while nothing of ours is in flight
FAIR_BATCHES: Final = 16  # batches taken in before other tasks get a turn


class AsyncDisk:
    """Any number of tasks at once, inside its `async with`. Errors are those of `Disk`, without the timeout."""

    def __init__(self, disk: Disk) -> None:
        """Takes `disk` over: its blocking methods must not be used any more. Closing closes it too."""
        self._disk = disk
        self._channel, self._pool, self._requests = disk.channel, disk.pool, disk.requests
        self._room = trio.lowlevel.ParkingLot()  # for pages, for ring space, for a place in flight
        self._running: AbstractAsyncContextManager[None] | None = None

    async def __aenter__(self) -> Self:
        self._running = self._run()
        await self._running.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._running is not None
        await self._running.__aexit__(kind, error, trace)

    @asynccontextmanager
    async def _run(self) -> AsyncIterator[None]:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump)
                yield
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            if len(group.exceptions) != 1:
                raise
            raise group.exceptions[0] from None  # the pump raises nothing: a lone error is the caller's own
        finally:
            self._disk.close()

    @property
    def description(self) -> DiskDescription:
        return self._disk.description

    @property
    def in_flight(self) -> int:
        return len(self._requests)

    @property
    def size_bytes(self) -> int:
        return self.description.capacity.size_bytes

    @property
    def block_bytes(self) -> int:
        return self.description.capacity.block_bytes

    async def read(self, offset: int, length: int) -> bytes:
        target = bytearray(length)

        def take(buffer: Buffer, start: int, size: int) -> None:
            target[start : start + size] = buffer.view[:size]

        await self._stream(Direction.READ, offset, length, after=take)
        return bytes(target)

    async def write(self, offset: int, data: BytesLike, *, durable: bool = False) -> None:
        """In the server's cache when it returns; with `durable`, on the medium."""
        view = memoryview(data).cast("B")

        def put(buffer: Buffer, start: int, size: int) -> None:
            buffer.view[:size] = view[start : start + size]

        await self._stream(Direction.WRITE, offset, view.nbytes, before=put, durable=durable)

    async def flush(self) -> None:
        """All that was written before is on the medium."""
        await self._finish(await self._launch(SynchronizeCache(), Direction.NONE, None, 0))  # no pages

    async def discard(self, offset: int, length: int) -> None:
        """The range's content is no longer wanted; where the disk can do that, it then reads as zeros."""
        self.description.check_range(offset, length)
        block = self.block_bytes
        for start in range(offset, offset + length, UNMAP_BYTES_MAX):
            blocks = min(UNMAP_BYTES_MAX, offset + length - start) // block
            parameters = build_unmap_parameters([(start // block, blocks)])
            buffer = await self._pages(len(parameters))
            buffer.view[: len(parameters)] = parameters
            command = Unmap(len(parameters))
            launched = await self._launch(command, Direction.WRITE, buffer, len(parameters))
            await self._finish(launched)
            self._abandon(launched)

    def statistics(self) -> dict[str, int]:
        counters = self._requests.counters
        return {name: getattr(counters, name) for name in counters.__slots__} | {"in_flight": self.in_flight}

    # -- inside

    async def _stream(
        self,
        direction: Direction,
        offset: int,
        length: int,
        *,
        before: Callable[[Buffer, int, int], None] | None = None,
        after: Callable[[Buffer, int, int], None] | None = None,
        durable: bool = False,
    ) -> None:
        """Pieces of one transfer, several in flight, ended in order."""
        self.description.check_range(offset, length)
        block = self.block_bytes
        largest = min(self.description.max_transfer_bytes, self._pool.pages * PAGE_BYTES)
        pending: deque[tuple[_Launched, int, int]] = deque()
        start = 0
        try:
            while start < length or pending:
                if start < length and len(pending) < STREAM_DEPTH:
                    size = min(largest, length - start)
                    buffer = await self._pages(size) if not pending else self._pages_now(size)
                    if buffer is not None:
                        if before is not None:
                            self._fill(buffer, before, start, size)
                        lba, blocks = (offset + start) // block, size // block
                        command: Command = ReadBlocks(lba, blocks)
                        if direction == Direction.WRITE:
                            command = WriteBlocks(lba, blocks, durable)
                        launched = await self._launch(command, direction, buffer, size, whole=True)
                        pending.append((launched, start, size))
                        start += size
                        continue
                launched, at, size = pending.popleft()
                await self._finish(launched)
                if after is not None and launched.buffer is not None:
                    after(launched.buffer, at, size)
                self._abandon(launched)
        finally:
            for launched, _, _ in pending:
                self._abandon(launched)
        await trio.lowlevel.checkpoint_if_cancelled()

    def _fill(
        self, buffer: Buffer, before: Callable[[Buffer, int, int], None], start: int, size: int
    ) -> None:
        try:
            before(buffer, start, size)
        except BaseException:
            self._give_back(buffer)
            raise

    def _pages_now(self, size: int) -> Buffer | None:
        try:
            return self._pool.allocate(size)
        except BufferSpaceError:
            return None

    async def _pages(self, size: int) -> Buffer:
        while (buffer := self._pages_now(size)) is None:
            await self._room.park()
        return buffer

    async def _launch(
        self,
        command: Command,
        direction: Direction,
        buffer: Buffer | None,
        size: int,
        *,
        whole: bool = False,
    ) -> "_Launched":
        """Send, once there is room. The buffer is ours from here on, also where this raises."""
        segment = Segment(buffer, 0, size) if buffer is not None else None
        try:
            while True:
                try:
                    if self.in_flight < MAX_IN_FLIGHT:
                        ticket = self._requests.start(command, direction, segment, whole=whole)
                        break
                except RingFull:
                    pass
                if self.in_flight:
                    await self._room.park()
                else:  # the server has yet to release what it answered, and won't say when it does
                    await trio.sleep(RETRY_S)
        except (RingClosed, RingCorrupt) as error:
            self._give_back(buffer)
            raise self._gone(error) from error
        except BaseException:
            self._give_back(buffer)
            raise
        launched = _Launched(ticket, buffer, trio.Event())
        ticket.on_done = partial(self._ended, launched)
        return launched

    async def _finish(self, launched: "_Launched") -> None:
        """Wait for the end. An error gives the pages back; after success they are the caller's to abandon."""
        try:
            await launched.ended.wait()
            launched.ticket.result()
        except BaseException:
            self._abandon(launched)
            raise

    def _abandon(self, launched: "_Launched") -> None:
        launched.abandoned = True
        if launched.ticket.done:
            self._give_back(launched.buffer)

    def _ended(self, launched: "_Launched") -> None:
        launched.ended.set()
        if launched.abandoned:
            self._give_back(launched.buffer)
        self._room.unpark_all()

    def _give_back(self, buffer: Buffer | None) -> None:
        if buffer is not None:
            buffer.release()
            self._room.unpark_all()

    def _gone(self, error: Exception) -> DiskClosedError:
        return self._requests.fail_all(f"{type(error).__name__}: {error}")

    async def _pump(self) -> None:
        """Takes completions in until cancelled or the channel is gone; then nothing is left in flight."""
        batches = 0
        try:
            wait_fd = self._channel.fileno()  # readable, too, once our own side has closed it
            while True:
                packets = self._channel.receive_batch(REAP_PACKETS, 0)
                if packets:
                    self._requests.finish(packets)
                    self._channel.release()
                    batches += 1
                    if batches % FAIR_BATCHES == 0:
                        await trio.lowlevel.checkpoint()
                elif self._channel.arm():
                    await trio.lowlevel.wait_readable(wait_fd)
                    self._channel.disarm()
        except (RingClosed, RingCorrupt) as error:
            self._gone(error)
        finally:
            self._requests.fail_all("the disk was closed")


@dataclass(slots=True)
class _Launched:
    """A request and its pages. Abandoned: whoever waited is gone; the pages go back when the request ends."""

    ticket: Ticket
    buffer: Buffer | None
    ended: trio.Event
    abandoned: bool = False


@asynccontextmanager
async def open_disk(
    channel: Channel,
    data: memoryview,
    data_gpfn: int,
    *,
    set_up_timeout_s: float = SET_UP_TIMEOUT_S,
) -> AsyncIterator[AsyncDisk]:
    """Set a disk up, without holding the event loop up, and close it with the block.

    Args:
        data: the data area of the channel's slot, whole pages, at guest page `data_gpfn`.

    Raises: as `Disk` when it is made.
    """
    make = partial(Disk, channel, data, data_gpfn, set_up_timeout_s=set_up_timeout_s)
    async with AsyncDisk(await trio.to_thread.run_sync(make)) as disk:
        yield disk
