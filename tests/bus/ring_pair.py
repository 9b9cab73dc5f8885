"""Two ends of one channel in one mapping, and the wire of its rings, written down a second time in Python."""

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from bus.native import PAGE_BYTES, Channel, Waiting

IN_BAND: Final = 6
TRANSFER_PAGES: Final = 7
GPA_DIRECT: Final = 9
COMPLETION: Final = 0xB

WRITE_INDEX: Final = 0  # byte offsets in a ring's header page
READ_INDEX: Final = 4
INTERRUPT_MASK: Final = 8
PENDING_SEND_SZ: Final = 12
FEATURE_BITS: Final = 64

DESCRIPTOR: Final = struct.Struct("<HHHHQ")  # type, offset8, length8, flags, transaction id
TRAILER: Final = struct.Struct("<II")  # 0, where the packet started


@dataclass(slots=True)
class RingView:
    """One ring's memory, as its peer could see and damage it."""

    memory: mmap.mmap
    header_offset: int
    size_bytes: int

    def field(self, offset: int) -> int:
        return int(struct.unpack_from("<I", self.memory, self.header_offset + offset)[0])

    def set_field(self, offset: int, value: int) -> None:
        struct.pack_into("<I", self.memory, self.header_offset + offset, value)

    def read(self, offset: int, count: int) -> bytes:
        """Bytes of the data area, over its end if need be."""
        data = self.header_offset + PAGE_BYTES
        twice = self.memory[data : data + self.size_bytes] * 2
        return twice[offset : offset + count]

    def write(self, offset: int, content: bytes) -> None:
        for i, byte in enumerate(content):
            self.memory[self.header_offset + PAGE_BYTES + (offset + i) % self.size_bytes] = byte


@dataclass(slots=True)
class RingPair:
    """A guest and a host end; each one's outgoing ring; each one's doorbell (what it is woken by)."""

    memory: mmap.mmap
    guest: Channel
    host: Channel
    to_host: RingView
    to_guest: RingView
    guest_doorbell: int
    host_doorbell: int

    def next_host(self, journal: bytearray | memoryview, seam: memoryview | None = None) -> Channel:
        """A successor of the host's end."""
        size = self.to_host.size_bytes
        return Channel(
            self.memory,
            outgoing_offset=PAGE_BYTES + size,
            outgoing_bytes=size,
            incoming_offset=0,
            incoming_bytes=size,
            signal_fd=self.guest_doorbell,
            wait_fd=self.host_doorbell,
            journal=journal,
            seam=seam,
        )


def rung(doorbell: int) -> int:
    """How often a doorbell was rung since the last look."""
    try:
        return os.eventfd_read(doorbell)
    except BlockingIOError:
        return 0


@contextmanager
def ring_pair(
    pages: int = 1, waiting: Waiting | None = None, *, host_waiting: Waiting | None = None, bells: bool = True
) -> Iterator[RingPair]:
    """A channel with `pages` data pages each way. Without `bells` both ends can only spin."""
    size_bytes = pages * PAGE_BYTES
    downstream = PAGE_BYTES + size_bytes
    doorbells = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2)]
    guest_doorbell, host_doorbell = doorbells
    memory = mmap.mmap(-1, 2 * downstream)
    guest = Channel(
        memory,
        outgoing_offset=0,
        outgoing_bytes=size_bytes,
        incoming_offset=downstream,
        incoming_bytes=size_bytes,
        signal_fd=host_doorbell if bells else -1,
        wait_fd=guest_doorbell if bells else -1,
        waiting=waiting,
        reset=True,
    )
    host = Channel(
        memory,
        outgoing_offset=downstream,
        outgoing_bytes=size_bytes,
        incoming_offset=0,
        incoming_bytes=size_bytes,
        signal_fd=guest_doorbell if bells else -1,
        wait_fd=host_doorbell if bells else -1,
        waiting=host_waiting or waiting,
    )
    pair = RingPair(
        memory,
        guest,
        host,
        RingView(memory, 0, size_bytes),
        RingView(memory, downstream, size_bytes),
        guest_doorbell,
        host_doorbell,
    )
    try:
        yield pair
    finally:
        guest.close()
        host.close()
        for doorbell in doorbells:
            os.close(doorbell)


def packet_bytes(extra: int, payload: int) -> int:
    """Ring bytes that a packet of these parts consumes."""
    return DESCRIPTOR.size + extra + (payload + 7) // 8 * 8 + TRAILER.size


def padded(payload: bytes) -> bytes:
    return payload + bytes(-len(payload) % 8)


def encoded(
    packet_type: int, flags: int, transaction_id: int, extra: bytes, payload: bytes, start: int
) -> bytes:
    """One packet as it stands in the ring when it starts at `start`."""
    offset8 = (DESCRIPTOR.size + len(extra)) // 8
    length8 = offset8 + len(padded(payload)) // 8
    head = DESCRIPTOR.pack(packet_type, offset8, length8, flags, transaction_id)
    return head + extra + padded(payload) + TRAILER.pack(0, start)
