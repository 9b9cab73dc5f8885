"""The blocking client over a server in the same thread, which may answer late, twice, wrongly or never."""

import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.memory import PAGE_BYTES
from bus.native import Channel, RingClosed, RingCorrupt, RingFull
from partitions.storage.backends import MemoryBackend
from partitions.storage.buffers import Buffer, BufferPool, BufferSpaceError
from partitions.storage.disk import Disk
from partitions.storage.errors import (
    DiskClosedError,
    DiskCommandError,
    DiskError,
    DiskNotSentError,
    DiskProtocolError,
    DiskShortTransferError,
    DiskTimeoutError,
)
from partitions.storage.executor import Executor
from partitions.storage.identity import UNMAP_BYTES_MAX
from partitions.storage.protocol import NtStatus, Operation, Packet, ScsiRequest, SrbStatus
from partitions.storage.sense import WRITE_ERROR
from tests.partitions.storage_guest import FIRST_GPFN, GUEST_PAGES, SIZE, Guest, gpa_range

Completion = tuple[int, int, int, bytes, bytes]
COMPLETION = 0xB


class Loopback:
    """A channel whose other end answers at once; `mangle` decides what becomes of each answer."""

    def __init__(self, guest: Guest, ring_packets: int = 1000) -> None:
        self.guest = guest
        self.ring_packets = ring_packets  # how many unanswered requests fit
        self.waiting: deque[Completion] = deque()
        self.mangle: Callable[[Completion], list[Completion]] = lambda completion: [completion]
        self.failure: Exception | None = None
        self.reversed = False  # completions of one batch arrive in the opposite order

    def _serve(self, extra: bytes, payload: bytes, transaction_id: int) -> None:
        if self.failure is not None:
            raise self.failure
        if len(self.waiting) >= self.ring_packets:
            raise RingFull
        answer = self.guest.executor.execute(extra, payload)
        self.waiting.extend(self.mangle((COMPLETION, 0, transaction_id, b"", answer)))

    def send(self, payload: bytes, transaction_id: int = 0, completion: bool = False) -> None:
        assert completion
        self._serve(b"", payload, transaction_id)

    def send_gpa_direct(
        self, payload: bytes, byte_offset: int, byte_count: int, pfns: bytes, transaction_id: int
    ) -> None:
        numbers = [int.from_bytes(pfns[at : at + 8], "little") for at in range(0, len(pfns), 8)]
        self._serve(gpa_range(byte_offset, byte_count, numbers), payload, transaction_id)

    def receive_batch(self, max_packets: int, timeout_ns: int = -1) -> list[Completion]:
        if self.failure is not None:
            raise self.failure
        assert self.waiting or timeout_ns >= 0, "the client would hang here"
        batch = [self.waiting.popleft() for _ in range(min(max_packets, len(self.waiting)))]
        return batch[::-1] if self.reversed else batch

    def release(self) -> None:
        pass

    def wait_writable(self, packet_bytes: int, timeout_ns: int = -1) -> bool:
        if self.failure is not None:
            raise self.failure
        assert len(self.waiting) < self.ring_packets or timeout_ns >= 0, "the client would hang here"
        return len(self.waiting) < self.ring_packets


def fresh(guest: Guest) -> Guest:
    """The same memory and disk behind a session that nobody has set up."""
    guest.executor = Executor(guest.backend, guest.views, serial="test", max_transfer_bytes=32768)
    return guest


def make(**options: int) -> tuple[Loopback, Disk]:
    guest = fresh(Guest())
    loopback = Loopback(guest, **options)
    disk = Disk(cast(Channel, loopback), memoryview(guest.memory), FIRST_GPFN)
    return loopback, disk


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("ring_packets", [1, 3, 1000])
def test_any_mix_of_operations_agrees_with_a_bytearray(seed: int, ring_packets: int) -> None:
    """Transfers of any size, several in flight, through a ring that gets full."""
    rng, model = random.Random(seed), bytearray(SIZE)
    loopback, disk = make(ring_packets=ring_packets)
    loopback.reversed = seed % 2 == 1
    for _ in range(60):
        offset = rng.randrange(SIZE // 512) * 512
        length = rng.randrange(0, SIZE - offset + 1, 512)
        match rng.randrange(5):
            case 0 | 1:
                assert disk.read(offset, length) == model[offset : offset + length]
            case 2:
                data = rng.randbytes(length)
                disk.write(offset, data, durable=rng.random() < 0.2)
                model[offset : offset + length] = data
            case 3:
                disk.discard(offset, length)
                model[offset : offset + length] = bytes(length)
            case _:
                disk.flush()
    assert disk.in_flight == 0
    assert disk.pool.free_pages == GUEST_PAGES, "every page came back"


def test_many_requests_in_flight_without_a_copy() -> None:
    loopback, disk = make()
    loopback.reversed = True
    buffer = disk.allocate(8 * PAGE_BYTES)
    buffer.view[:] = random.Random(1).randbytes(len(buffer))
    want = bytes(buffer.view)
    writes = [disk.submit_write(at, buffer, 1536, at) for at in range(0, 8 * 1536, 1536)]
    with pytest.raises(ValueError, match="in flight"):
        buffer.release()
    disk.wait_all(writes)
    buffer.view[:] = bytes(len(buffer))
    reads = [disk.submit_read(at, buffer, 1536, at) for at in range(0, 8 * 1536, 1536)]
    assert disk.poll() == len(reads)
    assert all(ticket.done for ticket in reads)
    assert buffer.view[: 8 * 1536] == want[: 8 * 1536]
    buffer.release()


@pytest.mark.parametrize(
    ("offset", "length"), [(1, 512), (0, 511), (SIZE, 512), (SIZE - 512, 1024), (-512, 512), (0, SIZE + 512)]
)
def test_a_range_that_is_no_whole_blocks_of_the_disk_is_the_callers_mistake(offset: int, length: int) -> None:
    _, disk = make()
    before = disk.statistics()
    for attempt in (
        lambda: disk.read(offset, length),
        lambda: disk.write(offset, bytes(length)),
        lambda: disk.discard(offset, length),
    ):
        with pytest.raises(ValueError, match=r"want multiples|the disk has"):
            attempt()
    assert disk.statistics() == before
    assert disk.pool.free_pages == GUEST_PAGES


def test_a_medium_error_is_typed_and_the_disk_goes_on() -> None:
    loopback, disk = make()
    backend = loopback.guest.backend
    assert isinstance(backend, MemoryBackend)
    backend.number = 5  # type: ignore[attr-defined]
    with pytest.raises(DiskCommandError) as caught:
        disk.write(0, bytes(SIZE))
    assert caught.value.sense is not None
    assert (caught.value.sense.key, caught.value.sense.asc) == (WRITE_ERROR.key, WRITE_ERROR.asc)
    assert caught.value.errno == 5
    backend.number = 28  # type: ignore[attr-defined]
    with pytest.raises(DiskCommandError) as caught:
        disk.write(0, bytes(512))
    assert caught.value.errno == 28
    backend.number = 0  # type: ignore[attr-defined]
    disk.write(0, b"y" * 512)
    assert disk.read(0, 512) == b"y" * 512
    assert disk.pool.free_pages == GUEST_PAGES


def test_a_completion_that_comes_twice_or_for_nobody_is_dropped_and_counted() -> None:
    loopback, disk = make()
    strangers = 0

    def mangle(completion: Completion) -> list[Completion]:
        kind, flags, transaction_id, extra, payload = completion
        other = (kind, flags, transaction_id + 2**40, extra, payload)
        return [other, completion, completion, (kind, flags, 0, extra, payload)]

    loopback.mangle = mangle
    for at in range(0, 4096, 512):
        disk.write(at, bytes([at // 512]) * 512)
        strangers += 3
    loopback.mangle = lambda completion: [completion]
    assert disk.read(0, 4096) == b"".join(bytes([n]) * 512 for n in range(8))
    assert disk.statistics()["unknown_ids"] == strangers
    assert disk.in_flight == 0


_answers = st.one_of(
    st.binary(max_size=72),
    st.builds(
        lambda operation, status, srb: Packet(operation, 0, status, srb.build()).build(),
        st.sampled_from([1, 1, 1, 3, 11]),
        st.sampled_from([0, 0, 0xC0000001, 0x80000011]),
        st.builds(
            lambda **fields: ScsiRequest(**fields),  # the others as they usually are
            srb_status=st.integers(0, 255),
            scsi_status=st.sampled_from([0, 2, 8]),
            sense_length=st.integers(0, 255),
            transfer_bytes=st.integers(0, 2**32 - 1),
            cdb_or_sense=st.binary(min_size=20, max_size=20),
        ),
    ),
)


@settings(max_examples=200)
@given(_answers, st.sampled_from([COMPLETION, COMPLETION, 6, 9]), st.booleans())
def test_no_answer_of_a_hostile_server_does_more_than_fail_its_request(
    answer: bytes, kind: int, known: bool
) -> None:
    loopback, disk = make()
    loopback.mangle = lambda completion: [
        (kind, 0, completion[2] if known else completion[2] ^ 1 << 63, b"", answer),
        completion,
    ]
    with suppress(DiskError):
        assert len(disk.read(0, 1024)) == 1024
    loopback.mangle = lambda completion: [completion]
    disk.write(0, b"z" * 512)
    assert disk.read(0, 512) == b"z" * 512
    assert disk.in_flight == 0
    assert disk.pool.free_pages == GUEST_PAGES


def test_success_with_too_few_bytes_is_no_success() -> None:
    loopback, disk = make()
    short = ScsiRequest(srb_status=SrbStatus.SUCCESS, transfer_bytes=512).build()
    answer = Packet(Operation.COMPLETE_IO, 0, NtStatus.SUCCESS, short).build()
    loopback.mangle = lambda completion: [(COMPLETION, 0, completion[2], b"", answer)]
    with pytest.raises(DiskShortTransferError):
        disk.read(0, 1024)


@pytest.mark.parametrize("failure", [RingClosed("gone"), RingCorrupt("broken")])
def test_when_the_channel_goes_everything_in_flight_fails_typed(failure: Exception) -> None:
    loopback, disk = make()
    buffer = disk.allocate(PAGE_BYTES)
    loopback.mangle = lambda completion: []
    tickets = [disk.submit_read(0, buffer, 512) for _ in range(5)]
    loopback.failure = failure
    for ticket in tickets:
        with pytest.raises(DiskClosedError):
            disk.wait(ticket)
    for attempt in (lambda: disk.read(0, 512), disk.flush, lambda: disk.write(0, bytes(512))):
        with pytest.raises(DiskClosedError):
            attempt()
    assert disk.in_flight == 0
    buffer.release()
    assert disk.pool.free_pages == GUEST_PAGES


def test_no_answer_is_a_timeout_and_the_pages_stay_taken_until_it_comes() -> None:
    loopback, disk = make()
    disk.timeout_s = 0.01
    late: list[Completion] = []
    loopback.mangle = lambda completion: late.append(completion) or []  # type: ignore[func-returns-value]
    with pytest.raises(DiskTimeoutError):
        disk.read(0, 512)
    assert disk.in_flight == 1
    assert disk.pool.free_pages == GUEST_PAGES - 1
    loopback.waiting.extend(late)
    assert disk.poll() == 1
    assert disk.pool.free_pages == GUEST_PAGES


@pytest.mark.parametrize("in_flight", [0, 2])
def test_no_room_in_the_ring_is_a_timeout_and_nothing_was_sent(in_flight: int) -> None:
    """A ring whose server does not release what it has answered, or does not answer: the submitter does not hang."""
    loopback, disk = make()
    disk.timeout_s = 0.01
    answers: list[Completion] = []
    loopback.mangle = lambda completion: answers.append(completion) or []  # type: ignore[func-returns-value]
    buffer = disk.allocate(PAGE_BYTES)
    tickets = [disk.submit_read(0, buffer, 512) for _ in range(in_flight)]
    loopback.ring_packets = 0
    for attempt in (
        lambda: disk.submit_read(0, buffer, 512),
        lambda: disk.submit_write(0, buffer, 512),
        lambda: disk.submit_discard(0, buffer, 512),
        disk.submit_flush,
        lambda: disk.discard(0, 512),
        lambda: disk.read(0, 512),
    ):
        with pytest.raises(DiskNotSentError):
            attempt()
    assert disk.in_flight == in_flight == buffer.in_flight
    assert disk.pool.free_pages == GUEST_PAGES - 1
    loopback.ring_packets = 1000
    loopback.waiting.extend(answers)
    disk.wait_all(tickets)
    loopback.mangle = lambda completion: [completion]
    assert disk.read(0, 512) == bytes(512)


def test_too_much_in_flight_is_a_timeout_too() -> None:
    loopback, disk = make()
    disk.timeout_s, disk._max_in_flight = 0.01, 1
    loopback.mangle = lambda completion: []
    disk.submit_flush()
    with pytest.raises(DiskNotSentError):
        disk.submit_flush()


def test_a_channel_that_goes_while_the_client_waits_for_room_is_told_as_ever() -> None:
    loopback, disk = make()
    loopback.ring_packets = 0
    failure = RingClosed("gone")

    def goes(packet_bytes: int, timeout_ns: int = -1) -> bool:
        raise failure

    loopback.wait_writable = goes  # type: ignore[method-assign]
    with pytest.raises(DiskClosedError):
        disk.submit_flush()


def test_discards_fly_beside_all_else_and_keep_their_pages_until_they_end() -> None:
    _, disk = make()
    disk.write(0, b"x" * 8192)
    buffer = disk.allocate(PAGE_BYTES)
    tickets = [disk.submit_discard(block * 1024, buffer, 512, 24 * block) for block in range(8)]
    assert disk.in_flight == 8
    with pytest.raises(ValueError, match="in flight"):
        buffer.release()
    disk.wait_all(tickets)
    buffer.release()
    assert disk.read(0, 8192) == (bytes(512) + b"x" * 512) * 8
    with disk.allocate(PAGE_BYTES) as other:
        for wrong in ((0, 511, 0), (0, 0, 0), (0, UNMAP_BYTES_MAX + 512, 0), (0, 512, 4073), (0, 512, -1)):
            offset, length, start = wrong
            with pytest.raises(ValueError, match=r"want|multiples|outside|of a buffer|disk"):
                disk.submit_discard(offset, other, length, start)
    assert disk.in_flight == 0


def test_a_discard_that_is_not_answered_in_time_keeps_its_page_until_it_is() -> None:
    loopback, disk = make()
    disk.timeout_s = 0.01
    answers: list[Completion] = []
    loopback.mangle = lambda completion: answers.append(completion) or []  # type: ignore[func-returns-value]
    with pytest.raises(DiskTimeoutError):
        disk.discard(0, 512)
    assert disk.pool.free_pages == GUEST_PAGES - 1
    loopback.waiting.extend(answers)
    assert disk.poll() == 1
    assert disk.pool.free_pages == GUEST_PAGES


def test_a_server_that_does_not_answer_the_set_up_is_a_timeout() -> None:
    loopback = Loopback(fresh(Guest()))
    loopback.mangle = lambda completion: []
    with pytest.raises(DiskTimeoutError):
        Disk(cast(Channel, loopback), memoryview(loopback.guest.memory), FIRST_GPFN, set_up_timeout_s=0.01)


def test_a_server_that_never_agrees_is_no_disk() -> None:
    guest = Guest()
    loopback = Loopback(guest)
    with pytest.raises(DiskProtocolError, match="BEGIN_INITIALIZATION"):  # this session is long set up
        Disk(cast(Channel, loopback), memoryview(guest.memory), FIRST_GPFN)


@pytest.mark.parametrize("seed", range(30))
def test_pages_are_never_handed_out_twice(seed: int) -> None:
    rng = random.Random(seed)
    pool = BufferPool(memoryview(bytearray(32 * PAGE_BYTES)), 0x500)
    held: list[Buffer] = []
    for _ in range(200):
        if held and rng.random() < 0.5:
            buffer = held.pop(rng.randrange(len(held)))
            buffer.release()
            buffer.release()
        else:
            try:
                held.append(pool.allocate(rng.randrange(1, 8 * PAGE_BYTES)))
            except BufferSpaceError:
                assert pool.longest_run_bytes < 8 * PAGE_BYTES
        pages = [page for b in held for page in range(b.gpfn, b.gpfn + len(b) // PAGE_BYTES)]
        assert len(pages) == len(set(pages)) == 32 - pool.free_pages
        assert all(0x500 <= page < 0x520 for page in pages)
    for buffer in held:
        buffer.release()
    assert pool.longest_run_bytes == 32 * PAGE_BYTES, "neighbours merge again"
