"""A disk behind a VMBus channel, as a blocking object.

Every range is whole blocks: an unaligned one is a ValueError. `read` and `write` copy once between the
caller's memory and the channel's pages; `allocate` with `submit_read` and `submit_write` copies nothing. A
transfer that is larger than the server takes at once goes out in pieces, so it is not atomic: when it
fails, any part of it may have been carried out. One thread at a time.
"""

import time
from collections.abc import Iterable
from types import TracebackType
from typing import Final, Self

from bus.native import RingClosed, RingCorrupt, RingFull
from partitions.storage.buffers import Buffer, BufferPool, BufferSpaceError
from partitions.storage.errors import DiskClosedError, DiskNotSentError, DiskProtocolError, DiskTimeoutError
from partitions.storage.handshake import ANSWER_BYTES, Answer, Ask, DiskDescription, set_up
from partitions.storage.identity import UNMAP_BYTES_MAX
from partitions.storage.io_queue import IoQueue, check_shape, slot_bytes_for
from partitions.storage.pieces import move_in_pieces
from partitions.storage.protocol import (
    COMPLETION_REQUESTED,
    Direction,
    NtStatus,
    Operation,
    Packet,
    build_sub_channel_count,
)
from partitions.storage.requests import (
    Requests,
    Segment,
    Ticket,
    gpa_direct_ring_bytes,
    release_when_done,
)
from partitions.storage.scsi import Command, ReadBlocks, SynchronizeCache, Unmap, WriteBlocks
from partitions.storage.target import UNMAP_PARAMETER_BYTES, build_unmap_parameters
from partitions.storage.transport import Transport

REAP_PACKETS: Final = 64
MAX_IN_FLIGHT: Final = 256
SET_UP_TIMEOUT_S: Final = 30.0
_NS_PER_S: Final = 1_000_000_000

BytesLike = bytes | bytearray | memoryview


class Disk:
    """One storage channel, set up and ready. See the module for what it promises.

    Raises, from every method that talks to the server:
        DiskCommandError: the server or the medium refused this request; the disk goes on.
        DiskClosedError: the channel is gone, and each request in flight with it.
        DiskTimeoutError: `timeout_s` passed; DiskNotSentError where it passed before there was room to ask. None
            waits for as long as it takes: a storage server that is being restarted answers late, but answers.
    """

    def __init__(
        self,
        channel: Transport,
        data: memoryview,
        data_gpfn: int,
        *,
        timeout_s: float | None = None,
        max_in_flight: int = MAX_IN_FLIGHT,
        set_up_timeout_s: float = SET_UP_TIMEOUT_S,
        description: DiskDescription | None = None,
    ) -> None:
        """Negotiates with the server and reads the disk's description.

        Args:
            data: the data area of the channel's slot, whole pages, at guest page `data_gpfn`.
            description: what a set-up found out that was done before; None: it is done here.

        Raises:
            DiskProtocolError: whatever answers is no disk that we can use.
        """
        self.channel: Final[Transport] = channel
        self.pool: Final = BufferPool(data, data_gpfn)
        self.requests: Final = Requests(channel)
        self._max_in_flight = max_in_flight
        self._queue_open = False
        self.timeout_s: float | None = set_up_timeout_s
        self.description: Final = self._set_up() if description is None else description
        self.timeout_s = timeout_s
        self.further_queues: tuple[Disk, ...] = ()  # beside this one, where the disk was opened with several

    @property
    def queues(self) -> "tuple[Disk, ...]":
        """The same disk by each of its channels, this one first: one thread each, and no order between them.

        Made anew each time: a disk that held itself would stay until the collector came by.
        """
        return (self, *self.further_queues)

    @property
    def size_bytes(self) -> int:
        return self.description.capacity.size_bytes

    @property
    def block_bytes(self) -> int:
        return self.description.capacity.block_bytes

    @property
    def max_transfer_bytes(self) -> int:
        return self.description.max_transfer_bytes

    @property
    def in_flight(self) -> int:
        return len(self.requests)

    # -- whole operations

    def read(self, offset: int, length: int) -> bytes:
        target = bytearray(length)
        self.read_into(offset, target)
        return bytes(target)

    def read_into(self, offset: int, target: BytesLike) -> None:
        """Fill `target`, whose length says how much; on an error its content is undefined."""
        view = memoryview(target).cast("B")

        def take(buffer: Buffer, start: int, length: int) -> None:
            view[start : start + length] = buffer.view[:length]

        move_in_pieces(self, Direction.READ, offset, view.nbytes, after=take)

    def write(self, offset: int, data: BytesLike, *, durable: bool = False) -> None:
        """In the server's cache when it returns; with `durable`, on the medium."""
        view = memoryview(data).cast("B")

        def put(buffer: Buffer, start: int, length: int) -> None:
            buffer.view[:length] = view[start : start + length]

        move_in_pieces(self, Direction.WRITE, offset, view.nbytes, before=put, durable=durable)

    def flush(self) -> None:
        """All that was written before is on the medium."""
        self.wait(self.submit_flush())

    def discard(self, offset: int, length: int) -> None:
        """The range's content is no longer wanted; where the disk can do that, it then reads as zeros."""
        self.description.check_range(offset, length)
        buffer = self.allocate(UNMAP_PARAMETER_BYTES)
        ticket = None
        try:
            for start in range(offset, offset + length, UNMAP_BYTES_MAX):
                ticket = self.submit_discard(start, buffer, min(UNMAP_BYTES_MAX, offset + length - start))
                self.wait(ticket)
        finally:
            release_when_done(ticket, buffer)

    # -- many in flight

    def allocate(self, size_bytes: int) -> Buffer:
        """Pages of the channel's data area. BufferSpaceError: none free now."""
        return self.pool.allocate(size_bytes)

    def allocate_piece(self, wanted: int, *, must: bool) -> Buffer | None:
        """A buffer for the next piece, perhaps smaller than wished for; None: wait for an earlier one."""
        deadline = self._deadline_ns()
        while True:
            largest = min(self.pool.longest_run_bytes, self.max_transfer_bytes)
            if largest:
                return self.pool.allocate(min(wanted, largest))
            if not must:
                return None
            if not self.in_flight:
                raise BufferSpaceError("each page of the data area is held by the caller")
            self._reap(self._left_ns(deadline))

    def submit_read(self, offset: int, buffer: Buffer, length: int | None = None, start: int = 0) -> Ticket:
        """Read into `buffer` at `start`; by default all of it. Waits only where too much is in flight."""
        length = len(buffer) - start if length is None else length
        self._check_transfer(offset, length, buffer, start)
        command = ReadBlocks(offset // self.block_bytes, length // self.block_bytes)
        return self._start(command, Direction.READ, Segment(buffer, start, length), whole=True)

    def submit_write(
        self, offset: int, buffer: Buffer, length: int | None = None, start: int = 0, *, durable: bool = False
    ) -> Ticket:
        length = len(buffer) - start if length is None else length
        self._check_transfer(offset, length, buffer, start)
        command = WriteBlocks(offset // self.block_bytes, length // self.block_bytes, durable)
        return self._start(command, Direction.WRITE, Segment(buffer, start, length), whole=True)

    def submit_discard(self, offset: int, buffer: Buffer, length: int, start: int = 0) -> Ticket:
        """Discard `length` bytes of the disk, at most UNMAP_BYTES_MAX of them; waits as `submit_read`.

        `buffer` is not for data: the request's UNMAP_PARAMETER_BYTES stand there, at `start`, until it has ended.
        """
        self.description.check_range(offset, length)
        if not 0 < length <= UNMAP_BYTES_MAX:
            raise ValueError(
                f"length {length}: want 1 to {UNMAP_BYTES_MAX}, the most that one request discards"
            )
        if start < 0 or start + UNMAP_PARAMETER_BYTES > len(buffer):
            raise ValueError(f"{UNMAP_PARAMETER_BYTES} bytes at {start} of a buffer of {len(buffer)} bytes")
        block = self.block_bytes
        parameters = build_unmap_parameters([(offset // block, length // block)])
        buffer.view[start : start + UNMAP_PARAMETER_BYTES] = parameters
        segment = Segment(buffer, start, UNMAP_PARAMETER_BYTES)
        return self._start(Unmap(UNMAP_PARAMETER_BYTES), Direction.WRITE, segment, whole=False)

    def open_queue(self, depth: int, transfer_bytes: int) -> IoQueue:
        """For many transfers of one size; see `IoQueue`. Until it is closed the disk starts nothing else.

        BufferSpaceError: the data area has no `depth` runs of so many bytes in a row.
        """
        check_shape(depth, transfer_bytes, self.block_bytes, self.max_transfer_bytes)
        self._refuse_beside_queue()
        buffer = self.pool.allocate(depth * slot_bytes_for(transfer_bytes))
        self._queue_open = True
        return IoQueue(
            self.channel, self.description, self.requests, buffer, depth, transfer_bytes, self._queue_closed
        )

    def submit_flush(self) -> Ticket:
        return self._start(SynchronizeCache(), Direction.NONE, None, whole=False)

    def wait(self, ticket: Ticket) -> None:
        """Until this request has ended; raises its error."""
        self._wait_all((ticket,))
        ticket.result()

    def wait_all(self, tickets: Iterable[Ticket]) -> None:
        """Until each has ended; then raises the first error among them."""
        every = tuple(tickets)
        self._wait_all(every)
        for ticket in every:
            ticket.result()

    def poll(self) -> int:
        """Take in completions that are there, without waiting; how many requests ended."""
        return self._reap(0)

    def close(self) -> None:
        """Ends whatever is in flight with DiskClosedError. The channel itself is its owner's to close."""
        self.requests.fail_all("the disk was closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def statistics(self) -> dict[str, int]:
        counters = self.requests.counters
        return {name: getattr(counters, name) for name in counters.__slots__} | {"in_flight": self.in_flight}

    def ask_for_sub_channels(self, count: int) -> None:
        """Have so many offered, in all. DiskProtocolError: there are not as many; nothing was offered."""
        body = build_sub_channel_count(count)
        reply = self._send(Packet(Operation.CREATE_SUB_CHANNELS, COMPLETION_REQUESTED, 0, body), None)
        if reply.status != NtStatus.SUCCESS:
            most = self.description.max_sub_channels
            raise DiskProtocolError(f"{count} sub-channels: NTSTATUS {reply.status:#010x}; there are {most}")

    # -- inside

    def _queue_closed(self) -> None:
        self._queue_open = False

    def _refuse_beside_queue(self) -> None:
        """Two tables of requests can't take completions from one ring."""
        if self._queue_open:
            raise RuntimeError("a queue is open on this disk")

    def _check_transfer(self, offset: int, length: int, buffer: Buffer, start: int) -> None:
        self.description.check_range(offset, length)
        if not 0 < length <= self.max_transfer_bytes:
            raise ValueError(f"length {length}: want 1 to {self.max_transfer_bytes}, the server's maximum")
        if start < 0 or start + length > len(buffer):
            raise ValueError(f"[{start}, {start + length}) of a buffer of {len(buffer)} bytes")

    def _start(
        self, command: Command, direction: Direction, segment: Segment | None, *, whole: bool
    ) -> Ticket:
        deadline = self._deadline_ns()
        while True:
            try:
                if self.in_flight < self._max_in_flight:
                    try:
                        return self.requests.start(command, direction, segment, whole=whole)
                    except RingFull:
                        if not self.in_flight:  # the server has yet to release what it answered
                            length = segment.length if segment is not None else 0
                            self.channel.wait_writable(gpa_direct_ring_bytes(length), self._left_ns(deadline))
                            continue
            except (RingClosed, RingCorrupt) as error:
                raise self._gone(error) from error
            self._reap(self._left_ns(deadline))

    def _deadline_ns(self) -> int | None:
        return None if self.timeout_s is None else time.monotonic_ns() + int(self.timeout_s * _NS_PER_S)

    def _left_ns(self, deadline: int | None) -> int:
        """To wait for room: -1 for ever. DiskNotSentError: the time is over."""
        if deadline is None:
            return -1
        if (left := deadline - time.monotonic_ns()) <= 0:
            raise DiskNotSentError(f"no room for a request within {self.timeout_s} s")
        return left

    def _gone(self, error: Exception) -> DiskClosedError:
        return self.requests.fail_all(f"{type(error).__name__}: {error}")

    def _reap(self, timeout_ns: int) -> int:
        self._refuse_beside_queue()
        try:
            packets = self.channel.receive_batch(REAP_PACKETS, timeout_ns)
            ended = self.requests.finish(packets)
            self.channel.release()
        except (RingClosed, RingCorrupt) as error:
            ended = self.in_flight
            self._gone(error)
        return ended

    def _wait_all(self, tickets: Iterable[Ticket]) -> None:
        deadline = self._deadline_ns()
        for ticket in tickets:
            while not ticket.done:
                remaining = -1 if deadline is None else deadline - time.monotonic_ns()
                if deadline is not None and remaining <= 0:
                    raise DiskTimeoutError(f"no answer within {self.timeout_s} s")
                self._reap(remaining)

    def _set_up(self) -> DiskDescription:
        steps = set_up()
        buffer = self.allocate(ANSWER_BYTES)
        try:
            ask = next(steps)
            while True:
                answer = self._ask(ask, buffer)
                try:
                    ask = steps.send(answer)
                except StopIteration as stop:
                    description: DiskDescription = stop.value
                    return description
        finally:
            if not buffer.in_flight:  # else it was not answered in time
                buffer.release()

    def _ask(self, ask: Ask, buffer: Buffer) -> Answer:
        reply = self._send(ask.packet, Segment(buffer, 0, ask.data_bytes) if ask.data_bytes else None)
        return Answer(reply, bytes(buffer.view[: ask.data_bytes]))

    def _send(self, packet: Packet, segment: Segment | None) -> Packet:
        try:
            ticket = self.requests.start_packet(packet, segment)
        except (RingClosed, RingCorrupt) as error:
            raise self._gone(error) from error
        self._wait_all((ticket,))
        if ticket.reply is None:
            ticket.result()
            raise AssertionError("a request ended without reply and without error")
        return ticket.reply
