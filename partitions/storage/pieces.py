"""A read or write of any size, as pieces that the server takes at once: several in flight, ended in order."""

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from partitions.storage.buffers import Buffer
from partitions.storage.handshake import DiskDescription
from partitions.storage.protocol import Direction
from partitions.storage.requests import Ticket, release_when_done

STREAM_DEPTH: Final = 8  # pieces of one large read or write that are in flight together

Copy = Callable[[Buffer, int, int], None]  # (buffer, where in the transfer, how many bytes)


class PieceDisk(Protocol):
    """What a `Disk` has of this."""

    @property
    def description(self) -> DiskDescription: ...
    def allocate_piece(self, wanted: int, *, must: bool) -> Buffer | None:
        """A buffer for the next piece, perhaps smaller than wished for; None: wait for an earlier one."""

    def submit_read(
        self, offset: int, buffer: Buffer, length: int | None = None, start: int = 0
    ) -> Ticket: ...
    def submit_write(
        self, offset: int, buffer: Buffer, length: int | None = None, start: int = 0, *, durable: bool = False
    ) -> Ticket: ...
    def wait(self, ticket: Ticket) -> None: ...


def move_in_pieces(
    disk: PieceDisk,
    direction: Direction,
    offset: int,
    length: int,
    *,
    before: Copy | None = None,
    after: Copy | None = None,
    durable: bool = False,
) -> None:
    """`before` fills a piece's buffer, `after` takes what was read into it."""
    disk.description.check_range(offset, length)
    pending: deque[tuple[Ticket, Buffer, int, int]] = deque()
    start = 0
    try:
        while start < length or pending:
            if start < length and len(pending) < STREAM_DEPTH:
                buffer = disk.allocate_piece(length - start, must=not pending)
                if buffer is not None:
                    piece = min(len(buffer), length - start)
                    try:
                        if before is not None:
                            before(buffer, start, piece)
                        if direction == Direction.READ:
                            ticket = disk.submit_read(offset + start, buffer, piece)
                        else:
                            ticket = disk.submit_write(offset + start, buffer, piece, durable=durable)
                    except BaseException:
                        buffer.release()
                        raise
                    pending.append((ticket, buffer, start, piece))
                    start += piece
                    continue
            ticket, buffer, at, piece = pending[0]
            disk.wait(ticket)
            if after is not None:
                after(buffer, at, piece)
            pending.popleft()
            buffer.release()
    finally:
        for ticket, buffer, _, _ in pending:  # after an error: the rest gives its pages back when it ends
            release_when_done(ticket, buffer)
