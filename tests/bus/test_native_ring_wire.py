"""What the rings put into memory, byte by byte, and what they signal, rule by rule, against a model in Python.

Sources: Linux include/linux/hyperv.h and drivers/hv/ring_buffer.c; openvmm vm/devices/vmbus/vmbus_ring.
"""

import mmap
import random
import struct
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.native import PAGE_BYTES, Channel, RingFull
from tests.bus.ring_pair import (
    COMPLETION,
    FEATURE_BITS,
    GPA_DIRECT,
    IN_BAND,
    INTERRUPT_MASK,
    PENDING_SEND_SZ,
    READ_INDEX,
    TRANSFER_PAGES,
    WRITE_INDEX,
    RingPair,
    encoded,
    packet_bytes,
    padded,
    ring_pair,
    rung,
)


def skip_to(pair: RingPair, offset: int) -> None:
    """Move both indexes of an empty guest-to-host ring to a ring offset, through packets only."""
    while (here := pair.to_host.field(WRITE_INDEX)) != offset:
        left = (offset - here) % pair.to_host.size_bytes
        step = left if left <= 1024 else 512
        if step < 24:  # too short for a packet: go round once more
            step = 512
        pair.guest.send(bytes(step - 24))
        pair.host.receive(0)
        pair.host.release()


def test_in_band_packet_with_completion_requested_is_the_published_vector() -> None:
    with ring_pair() as pair:
        skip_to(pair, 0x40)
        pair.guest.send(b"ABCD", 0x1122334455667788, True)
        assert pair.to_host.read(0x40, 32) == bytes.fromhex(
            "06 00 02 00 03 00 01 00 88 77 66 55 44 33 22 11 41 42 43 44 00 00 00 00 00 00 00 00 40 00 00 00"
        )
        assert pair.to_host.field(WRITE_INDEX) == 0x60


def test_completion_descriptor_is_the_published_vector() -> None:
    with ring_pair() as pair:
        pair.host.send_completion(b"12345678", 0x1122334455667788)
        assert pair.to_guest.read(0, 16) == bytes.fromhex("0b 00 02 00 03 00 00 00 88 77 66 55 44 33 22 11")


def test_gpa_direct_packet_has_the_published_size() -> None:
    """One range, 6000 bytes at 0xF00: 3 PFNs, payload at 7 x 8, length 15 x 8, 128 bytes consumed."""
    with ring_pair() as pair:
        pfns = struct.pack("<3Q", 0x100, 0x7, 0x101)
        pair.guest.send_gpa_direct(b"p" * 64, 0xF00, 6000, pfns, 9)
        assert struct.unpack("<HHHHQ", pair.to_host.read(0, 16)) == (GPA_DIRECT, 7, 15, 1, 9)
        assert pair.to_host.read(16, 16) == struct.pack("<IIII", 0, 1, 6000, 0xF00)
        assert pair.to_host.read(32, 24) == pfns
        assert pair.to_host.field(WRITE_INDEX) == 128
        extra = struct.pack("<IIII", 0, 1, 6000, 0xF00) + pfns
        assert pair.host.receive_batch(1, 0) == [(GPA_DIRECT, 1, 9, extra, b"p" * 64)]


def test_transfer_page_packet_lists_its_ranges() -> None:
    with ring_pair() as pair:
        ranges = struct.pack("<4I", 100, 0, 60, 512)
        pair.host.send_transfer_pages(b"rndis", 0xCAFE, ranges, 3)
        extra = struct.pack("<HBBI", 0xCAFE, 0, 0, 2) + ranges
        assert pair.guest.receive_batch(1, 0) == [(TRANSFER_PAGES, 1, 3, extra, padded(b"rndis"))]


def test_reset_zeroes_both_headers_and_each_side_names_its_feature() -> None:
    memory = mmap.mmap(-1, 4 * PAGE_BYTES)
    memory[: 4 * PAGE_BYTES] = b"\xff" * (4 * PAGE_BYTES)
    Channel(
        memory,
        outgoing_offset=0,
        outgoing_bytes=PAGE_BYTES,
        incoming_offset=2 * PAGE_BYTES,
        incoming_bytes=PAGE_BYTES,
        signal_fd=-1,
        wait_fd=-1,
        reset=True,
    )
    for header, masked in ((0, 0), (2 * PAGE_BYTES, 1)):
        expected = bytearray(PAGE_BYTES)
        expected[INTERRUPT_MASK] = masked  # its reader is awake until it waits
        expected[FEATURE_BITS] = 1
        assert memory[header : header + PAGE_BYTES] == expected
    assert memory[PAGE_BYTES : 2 * PAGE_BYTES] == b"\xff" * PAGE_BYTES  # data is nobody's business


PACKETS = st.tuples(
    st.sampled_from([IN_BAND, COMPLETION]),
    st.integers(0, 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 12).map(lambda n: bytes(range(8 * n))),
    st.binary(max_size=700),
)


@given(st.lists(PACKETS, max_size=30), st.integers(0, PAGE_BYTES // 8 - 1))
@settings(deadline=None)
def test_every_packet_stands_in_the_ring_as_the_wire_format_says(
    packets: list[tuple[int, int, int, bytes, bytes]], start8: int
) -> None:
    """From any starting offset, so the end of the ring cuts packets everywhere, descriptors included."""
    with ring_pair() as pair:
        skip_to(pair, start8 * 8)
        at = start8 * 8
        for kind, flags, transaction_id, extra, payload in packets:
            pair.guest.send_raw(kind, flags, extra, payload, transaction_id)
            wire = encoded(kind, flags, transaction_id, extra, payload, at)
            assert pair.to_host.read(at, len(wire)) == wire
            at = (at + len(wire)) % pair.to_host.size_bytes
            assert pair.to_host.field(WRITE_INDEX) == at
            assert pair.host.receive_batch(1, 0) == [(kind, flags, transaction_id, extra, padded(payload))]
            pair.host.release()
            assert pair.to_host.field(READ_INDEX) == at


@pytest.mark.parametrize("seed", range(60))
def test_packets_leave_in_the_order_they_entered_and_no_byte_leaks(seed: int) -> None:
    """Any schedule of writes and reads of every kind, over many wraps, against a deque. The seed replays it."""
    rng = random.Random(seed)
    with ring_pair(pages=rng.choice([1, 2, 3])) as pair:
        size_bytes = pair.to_host.size_bytes
        model: deque[tuple[int, bytes]] = deque()
        held = used = next_id = 0
        pending_release = 0
        buffer = bytearray(2048)
        for _ in range(1500):
            action = rng.randrange(7)
            if action <= 2:
                payload = rng.randbytes(rng.randrange(1200) if rng.random() < 0.3 else rng.randrange(100))
                total = packet_bytes(0, len(payload))
                if used + total <= size_bytes - 8:  # one unit stays free: full must not look empty
                    pair.guest.send(payload, next_id)
                    model.append((next_id, padded(payload)))
                    used += total
                    next_id += 1
                else:
                    with pytest.raises(RingFull):
                        pair.guest.send(payload, next_id)
            elif action == 3:
                sizes = [rng.randrange(100) for _ in range(rng.randrange(1, 12))]
                payloads = [rng.randbytes(n) for n in sizes]
                sent = pair.guest.send_many(payloads, next_id)
                for payload in payloads[:sent]:
                    assert used + packet_bytes(0, len(payload)) <= size_bytes - 8
                    model.append((next_id, padded(payload)))
                    used += packet_bytes(0, len(payload))
                    next_id += 1
                if sent < len(payloads):
                    assert used + packet_bytes(0, len(payloads[sent])) > size_bytes - 8
            elif action == 4:
                for kind, flags, transaction_id, extra, payload in pair.host.receive_batch(
                    rng.randrange(1, 9), 0
                ):
                    assert (kind, flags, extra) == (IN_BAND, 0, b"")
                    assert (transaction_id, payload) == model.popleft()
                    held += 1
                    pending_release += packet_bytes(0, len(payload))
            elif action == 5 and not held and model:
                length = pair.host.receive_into(buffer, 0)
                assert buffer[:length] == model.popleft()[1]
                used -= packet_bytes(0, length)
            else:
                views = pair.host.peek_views()
                assert bool(views) == bool(model)
                if views:
                    payload = b"".join(views)
                    assert payload == model.popleft()[1]
                    held += 1
                    pending_release += packet_bytes(0, len(payload))
                assert pair.host.held == held
                pair.host.release()
                used -= pending_release
                held = pending_release = 0
            assert (pair.to_host.field(WRITE_INDEX) - pair.to_host.field(READ_INDEX)) % size_bytes == used


@pytest.mark.parametrize("seed", range(100))
def test_signals_are_exactly_those_that_the_rules_ask_for(seed: int) -> None:
    """Random masks, wishes for space and feature bits; writes in batches, releases in batches; count the doorbells."""
    rng = random.Random(seed)
    with ring_pair() as pair:
        ring, size_bytes = pair.to_host, pair.to_host.size_bytes
        for _ in range(300):
            ring.set_field(INTERRUPT_MASK, rng.choice([0, 0, 1, 7]))
            ring.set_field(FEATURE_BITS, rng.choice([1, 1, 0, 3]))
            write, read = ring.field(WRITE_INDEX), ring.field(READ_INDEX)
            if rng.random() < 0.5:
                sent = pair.guest.send_many([bytes(rng.randrange(300)) for _ in range(rng.randrange(1, 5))])
                expected = sent > 0 and ring.field(INTERRUPT_MASK) == 0 and write == read
                assert rung(pair.host_doorbell) == expected
            else:
                ring.set_field(PENDING_SEND_SZ, rng.choice([0, 5, 24, 512, 1024, 4088, size_bytes - 1]))
                pair.host.receive_batch(rng.randrange(1, 4), 0)
                pair.host.release()
                wanted = ring.field(PENDING_SEND_SZ) & ~7
                before = size_bytes - (write - read) % size_bytes - 8
                now = size_bytes - (write - ring.field(READ_INDEX)) % size_bytes - 8
                expected = bool(ring.field(FEATURE_BITS) & 1) and wanted != 0 and before < wanted <= now
                assert rung(pair.guest_doorbell) == expected


def test_one_reply_and_one_release_ring_the_doorbell_once() -> None:
    with ring_pair() as pair:
        pair.guest.send(bytes(64), 5, True)
        assert pair.host.receive(0) is not None
        pair.to_guest.set_field(INTERRUPT_MASK, 0)
        pair.to_host.set_field(PENDING_SEND_SZ, pair.to_host.size_bytes - 8)
        assert pair.host.reply_and_receive(b"done", 5, 0) is None
        assert rung(pair.guest_doorbell) == 1
        assert pair.to_host.field(READ_INDEX) == pair.to_host.field(WRITE_INDEX)


def test_a_reply_that_finds_no_room_leaves_its_request_unreleased() -> None:
    with ring_pair() as pair:
        pair.guest.send(b"request", 5, True)
        assert pair.host.receive(0) is not None
        while pair.host.send_many([bytes(100)]):
            pass
        with pytest.raises(RingFull):
            pair.host.reply_and_receive(bytes(100), 5, 0)
        assert pair.host.held == 1
        assert pair.to_host.field(READ_INDEX) == 0


def test_largest_packet_leaves_two_units_free_and_a_larger_one_is_the_callers_mistake() -> None:
    with ring_pair() as pair:
        most = PAGE_BYTES - 16 - 24
        pair.guest.send(bytes(most))
        assert pair.to_host.field(WRITE_INDEX) == PAGE_BYTES - 16
        pair.host.receive(0)
        pair.host.release()
        with pytest.raises(ValueError, match="cannot fit"):
            pair.guest.send(bytes(most + 1))
        with pytest.raises(ValueError, match="nothing was sent"):
            pair.guest.send_many([b"small", bytes(most + 1)])
        assert pair.guest.send_many([]) == 0
        assert pair.host.receive(0) is None


def test_exchange_drops_and_counts_completions_of_other_ids() -> None:
    with ring_pair() as pair:
        pair.host.send_completion(b"stale", 1)
        pair.host.send_completion(b"fresh", 2)
        assert pair.guest.exchange(b"?", 2) == padded(b"fresh")
        assert pair.guest.statistics()["unknown_ids"] == 1
        assert pair.guest.held == 0
