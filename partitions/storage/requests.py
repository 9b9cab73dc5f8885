"""Requests in flight on a client's channel: built, matched with their completions, ended exactly once.

Never waits. The server is not trusted: a completion whose id is unknown, already used or of the wrong shape
is dropped and counted, and no number in it is used as an index.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from bus.memory import PAGE_BYTES, PFN_BYTES
from bus.packets import DESCRIPTOR_BYTES, RANGE_BYTES, TRAILER_BYTES, PacketType, page_count
from partitions.storage.buffers import Buffer
from partitions.storage.errors import (
    DiskClosedError,
    DiskError,
    DiskProtocolError,
    DiskShortTransferError,
    command_error,
)
from partitions.storage.handshake import build_srb_packet
from partitions.storage.protocol import (
    PACKET_BYTES,
    Direction,
    MalformedPacket,
    NtStatus,
    Operation,
    Packet,
    ScsiRequest,
    bytes_moved,
)
from partitions.storage.scsi import Command
from partitions.storage.transport import Transport

SLOT_BITS: Final = 16  # low bits of a transaction id; above them: the sequence number
NO_SLOT: Final = 0xFFFF  # in those bits: a request of this table, not of an IoQueue's slot
_IN_BAND_BYTES: Final = DESCRIPTOR_BYTES + PACKET_BYTES + TRAILER_BYTES
_GPA_HEADER_BYTES: Final = 8 + RANGE_BYTES  # reserved, count, then one range


@dataclass(slots=True)  # not frozen: one is made for each request, and that takes a third of the time
class Segment:
    """Bytes [start, start + length) of a buffer."""

    buffer: Buffer
    start: int
    length: int


class Ticket:
    """One request. Ends once: `done`, then `error` says how (None: well)."""

    __slots__ = ("_segment", "_whole", "done", "error", "on_done", "reply", "transaction_id")

    def __init__(self, transaction_id: int, segment: Segment | None, whole: bool) -> None:
        self.transaction_id: Final = transaction_id
        self._segment = segment
        self._whole = whole  # fewer bytes than the segment holds are an error
        self.done = False
        self.error: DiskError | None = None
        self.reply: Packet | None = None
        self.on_done: Callable[[], None] | None = None  # called once, after the buffer is free again

    def result(self) -> None:
        """Raises `error`, if there is one."""
        if self.error is not None:
            raise self.error


def release_when_done(ticket: Ticket | None, buffer: Buffer) -> None:
    """Give the pages back when the request has ended that may still use them; None: there is none."""
    if ticket is None or ticket.done:
        buffer.release()
    else:
        ticket.on_done = buffer.release


@dataclass(slots=True)
class RequestCounters:
    requests: int = 0
    completions: int = 0
    unknown_ids: int = 0  # completions for nothing that is in flight
    malformed: int = 0  # completions too short to be one, or of another operation
    unasked: int = 0  # packets that complete nothing, such as ENUMERATE_BUS


class Requests:
    """The table of requests in flight. One thread, or one event loop."""

    def __init__(self, channel: Transport) -> None:
        self._channel = channel
        self._in_flight: dict[int, Ticket] = {}
        self.sequence = 0  # of the last request; none is used twice: a late duplicate matches nothing
        self._closed: str | None = None  # why, once the channel is gone
        self.counters: Final = RequestCounters()

    def __len__(self) -> int:
        return len(self._in_flight)

    def start(
        self, command: Command, direction: Direction, segment: Segment | None, *, whole: bool
    ) -> Ticket:
        """Send one SCSI command. RingFull: nothing was sent; RingClosed, RingCorrupt: and never will be."""
        packet = build_srb_packet(command, direction, segment.length if segment is not None else 0)
        return self.start_packet(packet, segment, whole=whole)

    def start_packet(self, packet: Packet, segment: Segment | None, *, whole: bool = False) -> Ticket:
        if self._closed is not None:
            raise DiskClosedError(self._closed)
        ticket = Ticket((self.sequence + 1) << SLOT_BITS | NO_SLOT, segment, whole)
        payload = packet.build()
        if segment is None:
            self._channel.send(payload, ticket.transaction_id, completion=True)
        else:
            if segment.buffer.released:
                raise ValueError("the buffer was released")
            pfns = segment.buffer.pfns(segment.start, segment.length)
            self._channel.send_gpa_direct(
                payload, segment.start % PAGE_BYTES, segment.length, pfns, ticket.transaction_id
            )
            segment.buffer.in_flight += 1
        self.sequence += 1
        self._in_flight[ticket.transaction_id] = ticket
        self.counters.requests += 1
        return ticket

    def finish(self, packets: Iterable[tuple[int, int, int, bytes, bytes]]) -> int:
        """Take in what `receive_batch` returned; how many requests ended by it."""
        ended = 0
        for packet_type, _flags, transaction_id, _extra, payload in packets:
            if packet_type != PacketType.COMPLETION:
                self.counters.unasked += 1
                continue
            try:
                reply = Packet.parse(payload)
            except MalformedPacket:
                self.counters.malformed += 1
                continue
            if reply.operation != Operation.COMPLETE_IO:
                self.counters.malformed += 1
                continue
            ticket = self._in_flight.pop(transaction_id, None)
            if ticket is None:
                self.counters.unknown_ids += 1
                continue
            self.counters.completions += 1
            ended += 1
            ticket.reply = reply
            self._end(ticket, _error_of(reply, ticket._segment if ticket._whole else None))
        return ended

    def fail_all(self, reason: str) -> DiskClosedError:
        """The channel is gone: all in flight ends with DiskClosedError, and so does what comes later."""
        if self._closed is None:
            self._closed = reason
        tickets, self._in_flight = list(self._in_flight.values()), {}
        for ticket in tickets:
            self._end(ticket, DiskClosedError(self._closed))
        return DiskClosedError(self._closed)

    @staticmethod
    def _end(ticket: Ticket, error: DiskError | None) -> None:
        if ticket._segment is not None:
            ticket._segment.buffer.in_flight -= 1
        ticket.error, ticket.done = error, True
        if ticket.on_done is not None:
            ticket.on_done()


def _error_of(reply: Packet, expected: Segment | None) -> DiskError | None:
    if reply.status == NtStatus.SUCCESS and (moved := bytes_moved(reply.body)) is not None:
        if expected is None or moved == expected.length:
            return None
        return DiskShortTransferError(f"{moved} of {expected.length} bytes")
    try:
        answer = ScsiRequest.parse(reply.body)
    except MalformedPacket as error:
        return DiskProtocolError(str(error))
    return command_error(reply.status, answer)


def gpa_direct_ring_bytes(length: int) -> int:
    """Ring bytes of a request for `length` bytes of data, at worst."""
    return _IN_BAND_BYTES + _GPA_HEADER_BYTES + page_count(PAGE_BYTES - 1, length) * PFN_BYTES
