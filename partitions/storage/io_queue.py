"""Many equal transfers in flight: the disk's fast path for programs that know what they will ask for.

    with disk.open_queue(depth=32, transfer_bytes=4096) as queue:
        queue.submit_reads(list(range(32)), offsets)
        while ...:
            for slot in queue.reap():
                use(queue.views[slot])

A slot is a run of the channel's pages; a slot's bytes are the server's while its transfer is in flight. One
Python call carries a whole batch, and nothing is allocated for a transfer.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from bus.memory import PAGE_BYTES
from bus.native import Channel, RingClosed, RingCorrupt
from partitions.storage._blockio import MAX_SLOTS, MAX_TRANSFER_BYTES, MessageQueue, Queue
from partitions.storage.buffers import Buffer
from partitions.storage.errors import DiskClosedError, DiskError, DiskShortTransferError, command_error
from partitions.storage.handshake import DiskDescription
from partitions.storage.message_channel import MessageChannel
from partitions.storage.protocol import Packet, ScsiRequest
from partitions.storage.requests import Requests
from partitions.storage.transport import Transport

DRAIN_TIMEOUT_NS: Final = 5_000_000_000  # for what is still in flight when a queue is closed


class IoQueue:
    """Made by `Disk.open_queue`. While one is open the disk starts nothing else. One thread.

    Raises DiskClosedError from every call once the channel is gone, which ends whatever was in flight.
    """

    def __init__(
        self,
        channel: Transport,
        description: DiskDescription,
        requests: Requests,
        buffer: Buffer,
        depth: int,
        transfer_bytes: int,
        closed: Callable[[], None],
    ) -> None:
        block = description.capacity.block_bytes
        self.depth: Final = depth
        self.transfer_bytes: Final = transfer_bytes
        self.failed: list[tuple[int, DiskError]] = []
        """(slot, what went wrong) of transfers that did not end well; the caller empties it."""
        slot_bytes = slot_bytes_for(transfer_bytes)
        self.views: Final = [
            buffer.view[at : at + transfer_bytes] for at in range(0, len(buffer), slot_bytes)
        ]
        self._requests, self._buffer, self._closed = requests, buffer, closed
        self._blocks = transfer_bytes // block
        self._native: Final = _make_queue(
            channel, buffer, depth, slot_bytes, block, description.capacity.blocks, requests.sequence
        )

    @property
    def in_flight(self) -> int:
        return self._native.in_flight

    def submit_reads(self, slots: list[int], offsets: list[int]) -> int:
        """Start reading at each offset into each slot. How many were started: fewer where the ring is full.

        ValueError: an offset outside the disk or no multiple of a block: nothing was started; a slot that
        is in flight: those before it were.
        """
        return self._submit(False, slots, offsets)

    def submit_writes(self, slots: list[int], offsets: list[int]) -> int:
        """Start writing each slot's bytes to each offset; as `submit_reads`."""
        return self._submit(True, slots, offsets)

    def reap(self, timeout_ns: int = -1) -> list[int]:
        """Wait for something to end, then take in all that did; the slots that ended well, in that order.

        Empty at the timeout, or where nothing ended well: see `failed`.
        """
        try:
            done = self._native.reap(timeout_ns)
        except (RingClosed, RingCorrupt) as error:
            raise self._gone(error) from error
        if self._native.troubled:
            self._sort_troubles()
        return done

    def read(self, offset: int, slot: int = 0) -> None:
        """Read one transfer into a slot, and wait for it: the shortest path there is. Raises its error.

        Others may be in flight: `reap` tells of them, as ever.
        """
        try:
            if not self._native.transfer(False, slot, offset, self._blocks, -1):
                self._raise_for(slot)
        except (RingClosed, RingCorrupt) as error:
            raise self._gone(error) from error

    def write(self, offset: int, slot: int = 0) -> None:
        """Write one slot, and wait for it; as `read`."""
        try:
            if not self._native.transfer(True, slot, offset, self._blocks, -1):
                self._raise_for(slot)
        except (RingClosed, RingCorrupt) as error:
            raise self._gone(error) from error

    def close(self) -> None:
        """Waits, for a bounded time, until nothing is in flight. Pages that the server still holds stay taken."""
        over = False  # the channel is gone: nothing is in flight any more, whatever the slots say
        try:
            while self.in_flight:
                before = self.in_flight
                self.reap(DRAIN_TIMEOUT_NS)
                if self.in_flight == before:
                    break
        except DiskClosedError:
            over = True
        self._requests.sequence = max(self._requests.sequence, self._native.sequence)
        if over or not self.in_flight:
            self._buffer.release()
        self._closed()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- inside

    def _submit(self, write: bool, slots: list[int], offsets: list[int]) -> int:
        try:
            return self._native.submit(write, slots, offsets, self._blocks)
        except (RingClosed, RingCorrupt) as error:
            raise self._gone(error) from error

    def _raise_for(self, slot: int) -> None:
        self._sort_troubles()
        for index, (failed, reason) in enumerate(self.failed):
            if failed == slot:
                del self.failed[index]
                raise reason

    def _sort_troubles(self) -> None:
        for slot, payload in self._native.take_failed():
            reply = Packet.parse(payload)
            srb = ScsiRequest.parse(reply.body)
            error: DiskError | None = command_error(reply.status, srb)
            if error is None:
                error = DiskShortTransferError(f"{srb.transfer_bytes} of {self.transfer_bytes} bytes")
            self.failed.append((slot, error))
        self._requests.finish(self._native.take_foreign())

    def _gone(self, error: Exception) -> DiskClosedError:
        return self._requests.fail_all(f"{type(error).__name__}: {error}")


def _make_queue(
    channel: Transport,
    buffer: Buffer,
    depth: int,
    slot_bytes: int,
    block_bytes: int,
    disk_blocks: int,
    sequence: int,
) -> Queue | MessageQueue:
    if isinstance(channel, Channel):
        return Queue(channel, buffer.gpfn, depth, slot_bytes, block_bytes, disk_blocks, sequence)
    if isinstance(channel, MessageChannel):
        return MessageQueue(
            channel.calls,
            channel.recover,
            buffer.view,
            depth,
            slot_bytes,
            block_bytes,
            disk_blocks,
            sequence,
        )
    raise TypeError(f"no queue over a {type(channel).__name__}")


def slot_bytes_for(transfer_bytes: int) -> int:
    """Whole pages."""
    return -(-transfer_bytes // PAGE_BYTES) * PAGE_BYTES


def check_shape(depth: int, transfer_bytes: int, block_bytes: int, max_transfer_bytes: int) -> None:
    """ValueError where no such queue can be."""
    largest = min(max_transfer_bytes, MAX_TRANSFER_BYTES)
    if not 0 < depth <= MAX_SLOTS:
        raise ValueError(f"depth {depth}: want 1 to {MAX_SLOTS}")
    if transfer_bytes % block_bytes or not 0 < transfer_bytes <= largest:
        raise ValueError(f"transfer_bytes {transfer_bytes}: want multiples of {block_bytes}, up to {largest}")
