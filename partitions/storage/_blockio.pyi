"""Types of the disk's fast paths in C. Lengths in bytes unless the name says otherwise."""

from collections.abc import Callable
from typing import Final, final

from bus.native import Channel, GpaMap

MAX_SLOTS: Final[int]
MAX_TRANSFER_BYTES: Final[int]
MAX_CALLS: Final[int]
NOTHING: Final[int]
GONE: Final[int]
BROKEN: Final[int]
NBD_CONNECTIONS_MAX: Final[int]
NBD_REQUESTS_MAX: Final[int]  # of one connection
NBD_PAYLOAD_BYTES_MAX: Final[int]  # of one READ or WRITE
NBD_DROPPED_PAYLOAD_BYTES_MAX: Final[int]  # of a refused WRITE; beyond it the connection ends
NBD_ENDED_IN_ORDER: Final[int]
NBD_ENDED_LOST: Final[int]
NBD_ENDED_BROKEN: Final[int]

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
class MessageCalls:
    """Requests of a message client: those that wait, and the one that is with the server. See message_calls.h.

    One thread at a time adds and receives (RuntimeError: another one does); any may `close`.
    """

    def __new__(cls, data: memoryview) -> MessageCalls:
        """`data`: the area that requests name parts of."""

    def add(self, payload: bytes, transaction_id: int, start: int, count: int, /) -> bool:
        """Append a request with `count` bytes of the area at `start`, either way. False: MAX_CALLS wait.

        ValueError: they are not of the area, or more than one message has.
        """

    def connect(self, socket: int, /) -> None:
        """By this one, which stays the caller's; -1: by none. What was not replied to is to be sent again."""

    def send(self) -> bool:
        """The first one, unless it is with the server. False: this socket is of no use."""

    def receive(self, wait: bool, /) -> tuple[int, bytes] | int:
        """(transaction id, payload) of a reply, after which the next request is sent; or

        NOTHING yet; GONE: the server is; BROKEN: it does not keep to the protocol. For the last two: `connect`.
        """

    def close(self) -> None: ...
    def release(self) -> None:
        """The area is its owner's again, and nothing of this is to be used any more."""

    @property
    def waiting(self) -> int:
        """With the one that is with the server."""

    @property
    def lost(self) -> bool:
        """What should have been sent could not be."""

    @property
    def packets_sent(self) -> int: ...
    @property
    def packets_received(self) -> int: ...

@final
class Forward:
    """Requests of guests on their way to a message server's disk. See block_forward.h.

    While a `Server` has it, only who holds that server's lock may use the calls. `recover` gets another socket, and is
    told whether the last one's server broke the protocol; if it raises there will be none any more.
    """

    def __new__(cls, calls: MessageCalls, recover: Callable[[bool], None]) -> Forward: ...

@final
class MessageServer:
    """Serves plain READs and WRITEs of one message client without the GIL. See message_server.h."""

    def __new__(
        cls,
        descriptor: int,
        size_bytes: int,
        block_bytes: int,
        max_transfer_bytes: int,
        read_only: bool,
        lock: DeviceLock,
        record: memoryview,
        head: bytearray,
        packet: bytearray,
        area: memoryview,
        seam: memoryview,
        armed: memoryview,
    ) -> MessageServer: ...
    def serve(self, socket: int, /) -> tuple[int, bool] | None:
        """Serve until a message comes that is not plain: (its bytes, was it longer than head, packet and area?).

        (0, False): the client is gone, or our side of the socket is shut down; None: a signal arrived, or a turn is
        over: MESSAGE_TURN_REQUESTS were served, or MESSAGE_TURN_BYTES.
        """

    @property
    def holds_device(self) -> bool:
        """After `serve`: that request was begun, some of it may be on the disk, and `lock` is the caller's."""

    @property
    def busy(self) -> bool:
        """A request is being executed, or waits for the device. From any thread, as the rest."""

    @property
    def served(self) -> int: ...
    def statistics(self) -> dict[str, int]:
        """reads, writes, bytes_read, bytes_written."""

@final
class MessageQueue:
    """What `Queue` is for a ring, over the calls of a message client. One thread.

    Slot n is the `slot_bytes` from `area`, a part of the calls' data, at n * slot_bytes on. `recover` as for `Forward`;
    what it raises comes out of every call.
    """

    def __new__(
        cls,
        calls: MessageCalls,
        recover: Callable[[bool], None],
        area: memoryview,
        slots: int,
        slot_bytes: int,
        block_bytes: int,
        disk_blocks: int,
        sequence: int,
    ) -> MessageQueue: ...
    def submit(self, write: bool, slots: list[int], offsets: list[int], blocks: int, /) -> int: ...
    def reap(self, timeout_ns: int, /) -> list[int]: ...
    def transfer(self, write: bool, slot: int, offset: int, blocks: int, timeout_ns: int, /) -> bool: ...
    def take_failed(self) -> list[tuple[int, bytes]]: ...
    def take_foreign(self) -> list[tuple[int, int, int, bytes, bytes]]: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def sequence(self) -> int: ...
    @property
    def troubled(self) -> bool: ...

@final
class Server:
    """Serves plain READs and WRITEs of one channel without the GIL: from a descriptor, or passed on."""

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
        relay: Relay | Forward | None = None,
        turns: memoryview | None = None,
    ) -> Server:
        """`turns`: 16 bytes of the channel's record, for a Forward: struct block_turns. RingClosed: it is closed."""

    def serve(self, timeout_ns: int, /) -> bool:
        """Serve until a packet comes that is not plain: True, and `channel.receive_batch` returns it next.

        False: the time is over, or a signal arrived. Either way all that was served is answered and released.
        Raises RingClosed, RingCorrupt; RuntimeError where packets are held or another thread uses the channel.
        """

    def turn(self, begins: bool, /) -> None:
        """With the device's lock: the first request that is not released is executed next, here; or it is done.

        What is sent through the Forward in between has numbers that a successor will use again for the same request.
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

@final
class NbdEngine:
    """NBD's transmission phase on a disk's channel: see nbd_engine.h. One thread, but for `wake`."""

    def __new__(
        cls,
        channel: Channel,
        data: memoryview,
        first_pfn: int,
        block_bytes: int,
        disk_blocks: int,
        max_fragment_bytes: int,
        unmap_bytes_max: int,
        read_only: bool,
        can_discard: bool,
        sequence: int,
    ) -> NbdEngine:
        """`data`: the pages that requests use, the first of them guest page `first_pfn`. It stays zero.

        max_fragment_bytes: of one SCSI READ or WRITE, whole pages. sequence: as of `Queue`.
        """

    def attach(self, socket: int, /) -> int:
        """Serve a connected stream socket whose negotiation is done, by a duplicate. Its number; -1: no room."""

    def run(self, timeout_ns: int, /) -> bool:
        """Serve without the GIL until something is left to the caller (`take_ended`, `take_failed`, a `wake`): True.

        False: the time is over, or a signal arrived. Raises RingClosed, RingCorrupt.
        """

    def leave(self) -> None:
        """No client is read from any more; each goes once what it asked for is answered."""

    def wake(self) -> None:
        """Make `run` return. Any thread."""

    def settle(self, fragment: int, error: int, /) -> None:
        """What a failed request of the ring means to its client: one of NBD's errors."""

    def take_ended(self) -> list[tuple[int, int]]:
        """(number, NBD_ENDED_...) of each connection that is closed."""

    def take_failed(self) -> list[tuple[int, bytes]]:
        """(fragment, the server's 64-byte packet) of each request of the ring that did not end well."""

    def statistics(self) -> dict[str, int]: ...
    @property
    def sequence(self) -> int: ...
    @property
    def max_payload_bytes(self) -> int: ...
