"""Types of the disk's fast paths in C. Lengths in bytes unless the name says otherwise."""

from typing import Final, final

from bus.native import Channel, GpaMap

MAX_SLOTS: Final[int]
MAX_TRANSFER_BYTES: Final[int]

@final
class DeviceLock:
    """One a device: whoever executes requests of any of its channels holds it until their answers are published."""

    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...

@final
class Relay:
    """Requests of guests on their way to another server's disk, to which `channel` is open. See block_relay.h.

    Slot n is the `slot_bytes` from guest page `first_pfn + n * slot_bytes / 4096` on, and `memory` has all of them.
    While a `Server` has it, only who holds that server's lock may use the channel.
    """

    def __new__(
        cls,
        channel: Channel,
        memory: memoryview,
        first_pfn: int,
        slot_bytes: int,
        block_bytes: int,
    ) -> Relay: ...
    def settle(self) -> None:
        """With the lock held: wait until nothing is under way for a channel that was closed."""

@final
class Server:
    """Serves plain READs and WRITEs of one channel without the GIL: from a descriptor, or through a relay."""

    def __new__(
        cls,
        channel: Channel,
        gpa_map: GpaMap,
        descriptor: int,
        size_bytes: int,
        block_bytes: int,
        max_transfer_bytes: int,
        read_only: bool,
        lock: DeviceLock,
        relay: Relay | None = None,
    ) -> Server: ...
    def serve(self, timeout_ns: int, /) -> bool:
        """Serve until a packet comes that is not plain: True, and `channel.receive_batch` returns it next.

        False: the time is over, or a signal arrived. Either way all that was served is answered and released.
        Raises RingClosed, RingCorrupt; RuntimeError where packets are held or another thread uses the channel.
        """

    @property
    def holds_device(self) -> bool:
        """After `serve`, also one that raised: the next packet was begun, and some of it may be on the disk.

        `lock` was taken for it and is the caller's, who gives it back when that packet has been answered.
        """

    def statistics(self) -> dict[str, int]:
        """reads, writes, bytes_read, bytes_written."""

@final
class Queue:
    """READs and WRITEs in flight on slots of a channel's data area. One thread.

    Slot n is the `slot_bytes` from guest page `first_pfn + n * slot_bytes / 4096` on. `sequence` numbers requests:
    their transaction ids are (sequence << 16 | slot), from sequence + 1 on, and none is used twice.
    """

    def __new__(
        cls,
        channel: Channel,
        first_pfn: int,
        slots: int,
        slot_bytes: int,
        block_bytes: int,
        disk_blocks: int,
        sequence: int,
    ) -> Queue: ...
    def submit(self, write: bool, slots: list[int], offsets: list[int], blocks: int, /) -> int:
        """Start one request of `blocks` at each byte offset; how many were: fewer where the ring is full.

        ValueError: a slot that is not free, an offset that is no block of the disk; the rest before it was started.
        """

    def reap(self, timeout_ns: int, /) -> list[int]:
        """Wait for at least one packet, take in all that are there; the slots whose transfer ended well.

        Others are in `take_failed` and `take_foreign`, and `troubled` is True.
        """

    def transfer(self, write: bool, slot: int, offset: int, blocks: int, timeout_ns: int, /) -> bool:
        """Start one request and wait until its slot is free again, or the time is over.

        True: it ended well. False: look at `troubled`, and at `in_flight`. Others that end meanwhile are for the
        next `reap`.
        """

    def take_failed(self) -> list[tuple[int, bytes]]:
        """(slot, the server's 64-byte packet) of each transfer that did not end well since the last call."""

    def take_foreign(self) -> list[tuple[int, int, int, bytes, bytes]]:
        """Packets that are no completion of a slot's request, as `Channel.receive_batch` returns them."""

    @property
    def in_flight(self) -> int: ...
    @property
    def sequence(self) -> int: ...
    @property
    def troubled(self) -> bool: ...
