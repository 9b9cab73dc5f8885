"""A peer that writes anything anywhere in the shared pages: RingCorrupt and nothing else, and nothing was released."""

import random
import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.native import PAGE_BYTES, Channel, RingCorrupt, RingError, RingFull
from tests.bus.ring_pair import (
    COMPLETION,
    DESCRIPTOR,
    GPA_DIRECT,
    IN_BAND,
    PENDING_SEND_SZ,
    READ_INDEX,
    TRANSFER_PAGES,
    WRITE_INDEX,
    RingPair,
    RingView,
    ring_pair,
)

BAD_INDEXES = [4, 1, 7, PAGE_BYTES, PAGE_BYTES + 8, 2**31, 2**32 - 8, 2**32 - 1]

# Every way to take one packet out of a ring.
RECEIVERS: dict[str, Callable[[Channel], object]] = {
    "receive": lambda channel: channel.receive(0),
    "receive_batch": lambda channel: channel.receive_batch(8, 0),
    "receive_payloads": lambda channel: channel.receive_payloads(8, 0),
    "receive_into": lambda channel: channel.receive_into(bytearray(4096), 0),
    "peek_views": lambda channel: channel.peek_views(),
    "reply_and_receive": lambda channel: channel.reply_and_receive(None, 0, 0),
    "wait_then_receive": lambda channel: channel.wait_readable(1_000_000) and channel.receive(0),
}

OTHER_CALLS: list[Callable[[Channel], object]] = [
    lambda channel: channel.send(b"x"),
    lambda channel: channel.send_many([b"x"]),
    lambda channel: channel.arm(),
    lambda channel: channel.release(),
    lambda channel: channel.exchange(b"x", 1),
]


def descriptor(kind: int, offset8: int, length8: int, flags: int) -> bytes:
    return DESCRIPTOR.pack(kind, offset8, length8, flags, 0x77)


def plant(ring: RingView, packet: bytes, used: int) -> None:
    """Write a packet as the peer would, and publish `used` bytes."""
    start = ring.field(READ_INDEX)
    ring.write(start, packet)
    ring.set_field(WRITE_INDEX, (start + used) % ring.size_bytes)


def refuses(pair: RingPair, receive: Callable[[Channel], object]) -> None:
    before = pair.to_host.field(READ_INDEX)
    with pytest.raises(RingCorrupt):
        receive(pair.host)
    assert pair.to_host.field(READ_INDEX) == before
    assert pair.host.held == 0
    for again in (*RECEIVERS.values(), *OTHER_CALLS):
        with pytest.raises(RingCorrupt):  # the channel is finished, in both directions
            again(pair.host)
    assert pair.to_host.field(READ_INDEX) == before
    assert pair.to_guest.field(WRITE_INDEX) == 0


@pytest.mark.parametrize("name", RECEIVERS)
@pytest.mark.parametrize(
    ("packet", "used"),
    [
        (descriptor(0, 2, 3, 0), 32),  # types that nobody sends
        (descriptor(1, 2, 3, 0), 32),
        (descriptor(5, 2, 3, 0), 32),
        (descriptor(8, 2, 3, 0), 32),
        (descriptor(0xA, 2, 3, 0), 32),
        (descriptor(0xC, 2, 3, 0), 32),
        (descriptor(0xFFFF, 2, 3, 0), 32),
        (descriptor(IN_BAND, 0, 3, 0), 32),  # the payload would start inside the descriptor
        (descriptor(IN_BAND, 1, 3, 0), 32),
        (descriptor(IN_BAND, 4, 3, 0), 32),  # ... or behind the packet
        (descriptor(IN_BAND, 0xFFFF, 3, 0), 32),
        (descriptor(IN_BAND, 2, 1, 0), 32),  # shorter than its descriptor
        (descriptor(IN_BAND, 2, 0, 0), 32),
        (descriptor(IN_BAND, 2, 4, 0), 32),  # longer than what was published
        (descriptor(IN_BAND, 2, 0xFFFF, 0), 32),
        (descriptor(IN_BAND, 2, 3, 2), 32),  # unknown flags
        (descriptor(IN_BAND, 2, 3, 0x8001), 32),
        (descriptor(COMPLETION, 1, 3, 0), 32),
        (descriptor(IN_BAND, 2, 2, 0), 8),  # less than a descriptor was published
        (descriptor(IN_BAND, 2, 2, 0), 16),  # ... or no trailer
        (descriptor(GPA_DIRECT, 2, 3, 0), 32),  # no room for a range count
        (descriptor(TRANSFER_PAGES, 2, 3, 0), 32),
    ],
)
def test_impossible_descriptor_ends_the_channel(name: str, packet: bytes, used: int) -> None:
    with ring_pair() as pair:
        plant(pair.to_host, packet, used)
        refuses(pair, RECEIVERS[name])


@pytest.mark.parametrize("name", RECEIVERS)
@pytest.mark.parametrize("index", BAD_INDEXES)
def test_impossible_write_index_ends_the_channel(name: str, index: int) -> None:
    with ring_pair() as pair:
        pair.to_host.set_field(WRITE_INDEX, index)
        refuses(pair, RECEIVERS[name])


@pytest.mark.parametrize("index", BAD_INDEXES)
def test_impossible_read_index_ends_the_writers_channel(index: int) -> None:
    with ring_pair() as pair:
        while pair.guest.send_many([bytes(500)]):
            pass
        pair.to_host.set_field(READ_INDEX, index)
        with pytest.raises(RingCorrupt):
            pair.guest.send(bytes(500))
        with pytest.raises(RingCorrupt):
            pair.guest.receive(0)


@pytest.mark.parametrize("index", BAD_INDEXES)
def test_impossible_read_index_ends_a_wait_for_space(index: int) -> None:
    with ring_pair() as pair:
        while pair.guest.send_many([bytes(500)]):
            pass
        pair.to_host.set_field(READ_INDEX, index)
        with pytest.raises(RingCorrupt):
            pair.guest.wait_writable(524)


@pytest.mark.parametrize("index", BAD_INDEXES)
def test_a_header_with_impossible_indexes_is_not_attached_to(index: int) -> None:
    for field in (WRITE_INDEX, READ_INDEX):
        for ring_offset in (0, 2 * PAGE_BYTES):
            with ring_pair() as pair:
                struct.pack_into("<I", pair.memory, ring_offset + field, index)
                with pytest.raises(RingCorrupt):  # the incoming write index: at the first look
                    attach_again(pair).receive(0)


def attach_again(pair: RingPair) -> Channel:
    return Channel(
        pair.memory,
        outgoing_offset=0,
        outgoing_bytes=PAGE_BYTES,
        incoming_offset=2 * PAGE_BYTES,
        incoming_bytes=PAGE_BYTES,
        signal_fd=-1,
        wait_fd=-1,
    )


def gpa_packet(ranges: bytes, count: int, payload: bytes = bytes(8)) -> tuple[bytes, int]:
    """A type 9 packet whose extra header holds `ranges` and claims `count` of them."""
    extra = struct.pack("<II", 0xDEAD, count) + ranges
    offset8 = (16 + len(extra)) // 8
    length8 = offset8 + len(payload) // 8
    return descriptor(GPA_DIRECT, offset8, length8, 1) + extra + payload, length8 * 8 + 8


def one_range(byte_count: int, byte_offset: int, pages: int) -> bytes:
    return struct.pack("<II", byte_count, byte_offset) + struct.pack(f"<{pages}Q", *range(pages))


@pytest.mark.parametrize("name", ["receive", "receive_batch", "reply_and_receive"])
@pytest.mark.parametrize(
    ("ranges", "count"),
    [
        (b"", 0),  # no range
        (one_range(4096, 0, 1), 0),
        (b"", 1),  # a range that is not there
        (one_range(4096, 0, 1), 2),
        (one_range(4096, 0, 1), 0xFFFFFFFF),
        (one_range(0, 0, 1), 1),  # an empty range
        (one_range(16, 0x1000, 2), 1),  # starts behind its first page
        (one_range(16, 0xFFFFFFFF, 1), 1),
        (one_range(4096, 1, 1), 1),  # needs two pages
        (one_range(0xFFFFFFFF, 0xFFF, 1), 1),  # the sum does not fit into 32 bits
        (one_range(8192, 0, 1), 1),
        (one_range(4096, 0, 1) + one_range(4097, 0, 1), 2),
    ],
)
def test_impossible_gpa_range_list_ends_the_channel(name: str, ranges: bytes, count: int) -> None:
    with ring_pair() as pair:
        plant(pair.to_host, *gpa_packet(ranges, count))
        refuses(pair, RECEIVERS[name])


def test_well_formed_gpa_lists_are_let_through() -> None:
    ranges = one_range(6000, 0xF00, 3) + one_range(1, 0xFFF, 1)
    with ring_pair() as pair:
        plant(pair.to_host, *gpa_packet(ranges, 2))
        [(kind, flags, transaction_id, extra, payload)] = pair.host.receive_batch(4, 0)
        assert (kind, flags, transaction_id, payload) == (GPA_DIRECT, 1, 0x77, bytes(8))
        assert extra == struct.pack("<II", 0xDEAD, 2) + ranges


@pytest.mark.parametrize("count", [2, 0x20000000, 0xFFFFFFFF])
def test_transfer_page_count_beyond_its_header_ends_the_channel(count: int) -> None:
    with ring_pair() as pair:
        extra = struct.pack("<HHI", 1, 0, count) + struct.pack("<II", 64, 0)
        packet = descriptor(TRANSFER_PAGES, 4, 5, 1) + extra + bytes(8)
        plant(pair.to_host, packet, 48)
        refuses(pair, RECEIVERS["receive_batch"])


def test_good_packets_before_a_corrupt_one_are_delivered_first() -> None:
    with ring_pair() as pair:
        pair.guest.send(b"good", 1)
        pair.guest.send_raw(IN_BAND, 2, b"", b"bad flag", 2)
        assert [packet[2] for packet in pair.host.receive_batch(8, 0)] == [1]
        with pytest.raises(RingCorrupt):
            pair.host.receive_batch(8, 0)
        assert pair.to_host.field(READ_INDEX) == 0


def test_scribbling_on_the_victims_own_indexes_changes_nothing() -> None:
    """Each side keeps its own index privately; what stands in the header is for the other."""
    with ring_pair() as pair:
        pair.guest.send(b"first", 1)
        assert pair.host.receive(0) is not None
        pair.host.release()
        pair.to_host.set_field(READ_INDEX, 0xFFFFFFFF)  # the host owns it
        pair.to_host.set_field(WRITE_INDEX, 0xFFFFFFFF)  # the guest owns it
        pair.guest.send(b"second", 2)
        packet = pair.host.receive(0)
        assert packet is not None
        assert packet[2] == 2


def test_an_impossible_write_index_met_while_releasing_does_not_disturb_the_release() -> None:
    with ring_pair() as pair:
        pair.guest.send(b"x" * 64, 1)
        assert pair.host.receive(0) is not None
        pair.to_host.set_field(WRITE_INDEX, 3)
        pair.to_host.set_field(PENDING_SEND_SZ, 2048)
        pair.host.release()
        assert pair.to_host.field(READ_INDEX) == 88
        with pytest.raises(RingCorrupt):
            pair.host.receive(0)


@given(st.randoms(use_true_random=False), st.data())
@settings(deadline=None, max_examples=300)
def test_random_damage_gives_packets_or_ring_corrupt_and_nothing_else(
    rng: random.Random, data: st.DataObject
) -> None:
    with ring_pair() as pair:
        for i in range(rng.randrange(1, 8)):
            kind = rng.choice([IN_BAND, COMPLETION, TRANSFER_PAGES, GPA_DIRECT])
            pair.guest.send_raw(
                kind, rng.randrange(2), rng.randbytes(8 * rng.randrange(6)), rng.randbytes(30), i
            )
        for _ in range(rng.randrange(12)):
            at = rng.randrange(64) if rng.random() < 0.3 else PAGE_BYTES + rng.randrange(400)
            pair.memory[at] = rng.choice([0, 1, 6, 7, 8, 9, 0xB, 0xFF, rng.randrange(256)])
        for _ in range(20):
            receive = RECEIVERS[data.draw(st.sampled_from(sorted(RECEIVERS)))]
            try:
                receive(pair.host)
            except RingCorrupt:
                break
            except RingFull:
                raise
            except RingError:  # receive_payloads in front of another kind of packet
                continue
