"""Types of the native core. Offsets and lengths in bytes unless the name says otherwise.

A buffer argument named `memory` is a writable mapping that stays alive as long as the object made from it. Any timeout
is in nanoseconds: -1 waits for ever, 0 only looks. Every wait runs signal handlers, so Ctrl-C ends it.
"""

from typing import ClassVar, Final, final

from _typeshed import ReadableBuffer, WriteableBuffer

PAGE_BYTES: Final = 4096

class RingError(Exception):
    """Base of what a ring can refuse."""

class RingFull(RingError):
    """Not enough free bytes now; nothing was written. The caller waits for space or gives up."""

class RingCorrupt(RingError):
    """The peer broke the ring's rules; the channel is finished. Nothing was released."""

class RingClosed(RingError):
    """`close()` was called here, by another thread of this process; no data was lost."""

@final
class GpaMap:
    """Sorted table of guest physical ranges -> host addresses; bounded; what a VSP may touch."""

    def __init__(self, max_ranges: int = ...) -> None: ...
    def add(self, gpfn: int, memory: WriteableBuffer, writable: bool = ...) -> None:
        """Map len(memory)/4096 pages at `gpfn`. ValueError on overlap, misalignment or a full table.

        With writable=False, `memory` may be read-only, and views() refuses to write there.
        """
    def remove(self, gpfn: int) -> None:
        """Unmap the range that starts at `gpfn`; LookupError if none does. Views handed out stay valid."""
    def clear(self) -> None: ...
    def views(self, byte_offset: int, byte_count: int, pfns: ReadableBuffer, write: bool) -> list[memoryview]:
        """Zero-copy views of one GPA range (PFNs as little-endian u64s); neighbouring pages come as one view.

        LookupError if any page is not mapped, or not writable for `write`; ValueError if the list does not have exactly
        the pages that the range needs. Views are writable if `write` says so.
        """

@final
class Waiting:
    """How a side waits: spin at most `spin_ns`, then sched_yield at most `yield_ns`, then block.

    The default tunes itself: it spins longer while spinning pays and shorter while it does not. "spin" never sleeps,
    "block" sleeps at once.
    """

    def __init__(self, mode: str = "adaptive", spin_ns: int = ..., yield_ns: int = ...) -> None: ...
    @property
    def mode(self) -> str: ...  # "spin", "adaptive" or "block"

@final
class Channel:
    """One end of a VMBus channel: an outgoing and an incoming ring, the peer's doorbell, our own.

    One thread sends and one thread receives at a time; RuntimeError for a second one. The GIL is dropped only to wait.
    Payloads come padded to a multiple of 8, as the wire has them: exact lengths are the protocol's business.
    A new channel is masked: the peer signals only someone who waits here, or has called arm().
    """

    def __init__(
        self,
        memory: WriteableBuffer,
        *,
        outgoing_offset: int,  # of its header page within memory
        outgoing_bytes: int,  # data area, whole pages
        incoming_offset: int,
        incoming_bytes: int,
        signal_fd: int,  # written when the peer must be woken; -1: never. Duplicated. Make it O_NONBLOCK
        wait_fd: int,  # watched when we sleep, never read; -1: spin only. Duplicated
        waiting: Waiting | None = None,
        flags: WriteableBuffer | None = None,  # our VP's SIEF page, if interrupts set a flag in it
        flag: int = -1,  # bit number in that page (sint * 2048 + relid), cleared before each last look at the ring
        journal: WriteableBuffer
        | None = None,  # at least 16 bytes that outlive us; a successor attaches with them too
        seam: WriteableBuffer | None = None,  # see bus.seam: where this process may be made to die
        trace: Trace | None = None,  # where the hops of requests are stamped
        trace_channel: int = 0,  # this end's number there: see bus.trace
        reset: bool = False,  # zero both header pages (the side that allocated the rings), set feature bits
    ) -> None:
        """ValueError for rings that are not inside `memory`; RingCorrupt for impossible indexes in a header."""
    # -- sending: each writes whole packets, publishes once, signals at most once
    # RingFull: nothing was written. ValueError: larger than the ring can ever take.
    def send(self, payload: ReadableBuffer, transaction_id: int = 0, completion: bool = False) -> None: ...
    def send_completion(self, payload: ReadableBuffer, transaction_id: int, ring: bool = True) -> None:
        """`ring` False: release() wakes the peer, where it must be woken: for who holds what others wait for."""
    def send_gpa_direct(
        self,
        payload: ReadableBuffer,
        byte_offset: int,
        byte_count: int,
        pfns: ReadableBuffer,  # u64s
        transaction_id: int,
        completion: bool = True,
    ) -> None:
        """One GPA range. (Several ranges: `send_raw`.)"""
    def send_transfer_pages(
        self, payload: ReadableBuffer, set_id: int, ranges: ReadableBuffer, transaction_id: int
    ) -> None:
        """Packet type 7, completion requested; ranges are {u32 byte_count, u32 byte_offset} pairs."""
    def send_raw(
        self,
        packet_type: int,
        flags: int,
        extra_header: ReadableBuffer,  # a multiple of 8 bytes; not checked otherwise
        payload: ReadableBuffer,
        transaction_id: int,
    ) -> None: ...
    def send_many(
        self, payloads: list[bytes], first_transaction_id: int = 0, completion: bool = False
    ) -> int:
        """In-band; ids count up. Returns how many were written (stops at a full ring)."""
    # -- receiving: a packet is held (read_index not advanced) until release()
    def receive(self, timeout_ns: int = -1) -> tuple[int, int, int, bytes] | None:
        """(packet type, flags, transaction id, extra header followed by payload), or None at the timeout.

        Releases what was held before, waits, peeks one. In-band data and completions have no extra header.
        """
    def receive_batch(
        self, max_packets: int, timeout_ns: int = -1
    ) -> list[tuple[int, int, int, bytes, bytes]]:
        """Peek up to max_packets: (type, flags, transaction id, extra header, payload). Held until `release`.

        Empty at the timeout. Packets already held are not returned again. Extra headers are checked: every range of a
        GPA-direct packet is complete, not empty, and starts in its first page. Good packets in front of a corrupt one
        are returned; the next call raises RingCorrupt.
        """
    def receive_payloads(self, max_packets: int, timeout_ns: int = -1) -> list[bytes]:
        """As receive_batch for in-band data whose sender wants no answer: payloads only, released at once.

        Stops in front of any other packet; RingError, and nothing is consumed, if that is the first.
        """
    def receive_into(self, buffer: WriteableBuffer, timeout_ns: int = -1) -> int:
        """Copy one payload out once, release it, return its length; -1 at the timeout.

        ValueError, and nothing is consumed, if it does not fit.
        """
    def peek_views(self) -> list[memoryview]:
        """Zero-copy: the payload of the oldest unheld packet as one view, or two where it wraps; [] if there is none.

        Read-only; valid until release(): afterwards the peer writes there. (It can also do so before.)
        """
    def release(self) -> None:
        """Advance read_index past everything held, and signal a blocked writer by the rule for readers."""
    @property
    def held(self) -> int: ...  # packets peeked and not released
    @property
    def packets_received(self) -> int: ...
    @property
    def has_work(self) -> bool: ...  # the incoming ring holds what was not released; any thread may ask
    @property
    def is_closed(self) -> bool: ...  # close() was called here; any thread may ask
    # -- both at once, the shortest path for request and reply
    def exchange(self, payload: ReadableBuffer, transaction_id: int) -> bytes:
        """Send in-band with completion requested, wait for that id's completion, release, return its payload.

        Completions for other ids met on the way are dropped and counted (`unknown_ids`). RingError if something other
        than a completion comes: it stays for receive(), and the completion is still to come.
        """
    def reply_and_receive(
        self, payload: ReadableBuffer | None, transaction_id: int, timeout_ns: int = -1
    ) -> tuple[int, int, int, bytes] | None:
        """Publish a completion (unless payload is None), release, then wait for and peek the next packet."""
    def answer(self, payload: ReadableBuffer | None, transaction_id: int, mark: int = 0) -> None:
        """Publish the completion of the oldest held packet (None: it wants none), and release that packet alone.

        The others stay held: who takes over finds them in the ring. RingFull: nothing was done. ValueError: none is
        held, or more than 256, or the ring can never take the answer. `mark`: see `exact_lengths`.
        """
    def exact_lengths(self) -> None:
        """From now on payloads have the lengths that they were sent with; both ends have to call this, or none.

        For a protocol of one's own: transaction ids have 56 bits, and the highest byte on the wire says how much of a
        packet is padding. A completion may have a `mark`, 1 to 31, which comes in bits 11 to 15 of its flags here; to
        `exchange` that is no plain one: it stays for receive().
        """
    # -- waiting and ending
    def wait_readable(self, timeout_ns: int = -1) -> bool: ...
    def wait_writable(self, packet_bytes: int, timeout_ns: int = -1) -> bool:
        """Set pending_send_sz, re-check, wait for room for one packet of this total; clear it again."""
    def arm(self) -> bool:
        """Unmask interrupts; True: nothing to read, the caller may sleep on fileno() (event loops).

        Empties wait_fd first, so the loop need not read it; do not share that wait_fd with another channel.
        """
    def fileno(self) -> int:
        """For event loops: readable when our doorbell has rung since arm(), and for good once this end is closed.

        Ours: never read or close it. ValueError for a channel without wait_fd.
        """
    def disarm(self) -> None: ...
    def aim(self, flags: WriteableBuffer) -> None:
        """Interrupts go to another VP from now on: the same flag, in its page. Wakes who waits here, to look there.

        ValueError for a channel without flags.
        """
    def stamp(self, hop: int, transaction_id: int = 0) -> None:
        """Stamp a hop of a request into the channel's trace; nothing where it has none. ValueError: no such hop."""
    @property
    def is_traced(self) -> bool: ...  # whether stamp() does anything
    def charge_to(self, budget: ServiceBudget) -> None:
        """From here on the receiving thread pays with it for what it does between two receives, and rests when it is in
        debt: then what the peer sent waits. The last one counts."""
    @property
    def is_resting(self) -> bool: ...  # whether it does so now
    def kick(self) -> None:
        """Signal the peer unconditionally (a successor does so once)."""
    def close(self) -> None:
        """Wake every thread of ours that waits here; from now on all calls raise RingClosed.

        Lets go of `memory` and `flags` as soon as no call is inside any more.
        """
    def statistics(self) -> dict[str, int]:
        """packets_sent, packets_received, bytes_sent, bytes_received, signals_sent, signals_suppressed, waits_spun,
        waits_yielded, waits_blocked, ring_full, unknown_ids, spin_ns (current)."""

# -- SynIC pages: atomics that Python lacks
def synic_post(
    sim_page: WriteableBuffer, sint: int, message_type: int, sender: int, payload: ReadableBuffer
) -> bool:
    """Write one message into an empty slot, type last. False: occupied; its pending flag is now set (re-checked)."""

def synic_take(sim_page: WriteableBuffer, sint: int) -> tuple[int, int, bytes, bool] | None:
    """Copy a message out and empty the slot: (type, sender, payload, whether EOM is owed). None: empty."""

def flag_set(sief_page: WriteableBuffer, flag: int) -> bool:
    """Atomic OR; True: it was clear, so the interrupt line must be raised."""

def flag_take(sief_page: WriteableBuffer, flag: int) -> bool:
    """Atomic clear; True: it was set."""

def flags_take_all(sief_page: WriteableBuffer, sint: int) -> list[int]:
    """Clear all flags of one SINT; the numbers (0..2047) of those that were set, ascending."""

@final
class Trace:
    """One process's trace memory: where its threads stamp the hops of requests. See bus.trace for the layout."""

    def __init__(self, memory: WriteableBuffer) -> None:
        """ValueError: it is not the memory of a trace."""
    def stamp(self, hop: int, channel: int, transaction_id: int = 0) -> None:
        """ValueError: no such hop."""
    def name(self, channel: int, port: int, text: str) -> bool:
        """Say what a channel is, and the port (owner << 32 | port) of its interrupts. False: all names are in use."""
    def time_stamps(self, count: int) -> float:
        """Stamp so often; what one took, in ns. They push others out."""
    @property
    def enabled(self) -> bool: ...

@final
class FastIntercepts:
    """The broker's wait for events. VPs that are lent to it make port accesses meanwhile, and are answered, as
    runtime/hypervisor/intercepts.py would do it; a call that needs more than that is left in its socket.

    One thread.
    """

    def __init__(
        self,
        records: WriteableBuffer,
        kept: int,
        kind: int,
        access_code: int,
        result_code: int,
        pending: int,
        raised: int,
        completed: int,
    ) -> None:
        """`records`: the flight recorder's, `kept` of them; then its kind of event, the two calls' codes, the status of
        one that waits, the effects of telling and of answering."""
    def lend(
        self,
        child: int,
        parent: int,
        vp: int,
        child_fd: int,
        parent_fd: int,
        line_fd: int,
        sim_page: WriteableBuffer,
        registers: bytes,
        ranges: bytes,
        access: tuple[int, int, bool] | tuple[()],
        allowance_ns: int,
        /,
    ) -> bool:
        """A VP, and where it stands: at an access (port, size, whether it writes) that its parent knows of, or nowhere.
        The page is held, the descriptors must stay, until it is taken back. When it has been served for `allowance_ns`,
        its next access is left. False: there is no place for more."""
    def wait(self, epoll_fd: int, timeout_ms: int, recorded: int, /) -> list[tuple[int, int]]:
        """(descriptor, events) of what is not for us. -1: for ever. `recorded`: number of the last event."""
    def take_back(
        self,
    ) -> tuple[
        list[tuple[int, int, int, bytes, tuple[int, int, bool] | tuple[()], int, int, int, int]],
        list[int],
        tuple[int, int, int, int, int],
    ]:
        """All that was lent: (child, parent, VP, registers, where it stands or (), accesses made, of these told,
        answers, ns that serving it took); partitions that do not read their replies; number of the last event, ns that
        deciding took of accesses and of answers, waits for the kernel, looks at calls."""

@final
class Router:
    """The broker's interrupt router: one native thread, no GIL. kick eventfd -> flag in a SIEF page -> doorbell.

    A kick is never read and a doorbell never blocks it, whatever the processes that hold them do.
    """

    def __init__(self) -> None: ...
    def add(
        self, route_id: int, kick_fd: int, sief_page: WriteableBuffer, flag: int, doorbell_fd: int
    ) -> None:
        """`flag` is a bit number in the page. The descriptors are duplicated. ValueError if the route exists."""
    def trace(self, trace: Trace) -> None:
        """Stamp every kick from now on. ValueError: it is traced already."""
    def remove(self, route_id: int) -> None:
        """Returns once the thread can no longer touch the route. LookupError if there is none."""
    def move(self, route_id: int, sief_page: WriteableBuffer, flag: int) -> None:
        """Kicks set this flag from now on; nothing sets the one before any more. LookupError."""
    def ring_at(self, route_id: int, doorbell_fd: int) -> None:
        """Kicks ring this doorbell from now on. The descriptor is duplicated. LookupError."""
    def quiet(self, route_id: int, quiet: bool) -> None:
        """A quiet route sets its flag and rings nothing. LookupError."""
    def statistics(self, route_id: int) -> dict[str, int]:
        """sent (kicks seen), merged (flag was set already), suppressed (quiet), delivered (doorbells rung), blocked
        (counter full): sent is the sum of the others."""
    def close(self) -> None: ...

# -- reference time: 100 ns units, from a page that the hypervisor writes
def reference_time(page: ReadableBuffer) -> int | None:
    """The time now, by the TSC; never less than what it was before. None: the page is not valid, ask the register."""

def reference_page_write(page: WriteableBuffer, scale: int, offset: int) -> None:
    """The hypervisor's side: time = ((tsc * scale) >> 64) + offset. With scale 0 the page is not valid."""

def tsc_is_invariant() -> bool:
    """Whether the processor says that its TSC counts at one rate, whatever it does."""

def tsc_sample() -> tuple[int, int]:
    """The TSC, and CLOCK_MONOTONIC in ns, of one moment, as near as a few tries get. (0, now) without a TSC."""

@final
class ServiceBudget:
    """What a server may spend on a client that has a cap: processor time of the threads that serve it.

    Time that was served costs time / share, and what is not used can be had 25 ms later at most. Any thread.
    """

    def __init__(self, share: int = 0) -> None: ...
    def charge(self, served_ns: int, now_ns: int = ...) -> int:
        """Pay. How long to rest now, in ns; 0: go on. `now_ns`: of CLOCK_MONOTONIC; the present, if it is left out."""
    def debt_ns(self, now_ns: int = ...) -> int: ...
    def limit(self, share: int, now_ns: int = ...) -> None:
        """From now on. A debt becomes as long as it would have been; 0: as much as it likes, and no debt."""
    @property
    def share(self) -> int: ...  # of 65536, which is a whole processor; 0: as much as it likes
    def statistics(self) -> dict[str, int]:
        """served_ns, rested_ns, rests; of channels and charge() together, rests of channels alone."""

@final
class Timer:
    """A timerfd on CLOCK_MONOTONIC, for event loops that need better than epoll's milliseconds.

    Readable from the moment that it was armed for, never before it, until take(). One thread uses it.
    """

    def __init__(self) -> None: ...
    def arm(self, at_ns: int) -> None:
        """In place of any earlier moment. One that is past goes off at once."""
    def disarm(self) -> None:
        """It goes off no more, and is not readable."""
    def take(self) -> bool:
        """Whether it went off since it was armed; it is then not readable any more. Never blocks."""
    def fileno(self) -> int: ...
    def close(self) -> None: ...

def eventfd_signal(fd: int) -> bool:
    """Add 1; False when the counter's reader has made it block (never blocks us)."""

@final
class Histogram:
    """Log-linear, 128 sub-buckets an octave, u64 values; mergeable. Equal by value, so not hashable."""

    __hash__: ClassVar[None]  # type: ignore[assignment]

    def __init__(self) -> None: ...
    def record(self, value: int) -> None: ...
    def record_many(self, values: ReadableBuffer) -> None: ...  # u64s
    def percentile(self, percent: float) -> int:
        """The value that `percent` of all values do not exceed, at most 0.8 % too high; 0 when there are none."""
    def merge(self, other: Histogram) -> None: ...
    def pack(self) -> bytes:
        """For files: a few bytes for each occupied bucket. Layout: histogram.h."""
    @classmethod
    def unpack(cls, packed: ReadableBuffer) -> Histogram:
        """ValueError: no histogram was packed into these bytes; says what is wrong with them."""
    @property
    def buckets(self) -> list[tuple[int, int]]:
        """(the largest value of the bucket, its count) of each that is occupied, upwards."""
    @property
    def count(self) -> int: ...
    @property
    def minimum(self) -> int: ...
    @property
    def maximum(self) -> int: ...

def crc32c(data: ReadableBuffer, value: int = 0) -> int: ...
def monotonic_ns() -> int: ...
