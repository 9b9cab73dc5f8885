"""Ring packets: byte vectors, round trips, and that no length or offset of a peer's is believed."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.memory import MAX_GPFN, PAGE_BYTES, MemorySlot
from bus.packets import (
    DESCRIPTOR_BYTES,
    MAX_PIPE_BYTES,
    TRAILER_BYTES,
    GpaRange,
    PacketDescriptor,
    PacketError,
    PacketFlags,
    PacketType,
    PipeType,
    TransferPageHeader,
    decode_gpa_direct_header,
    decode_gpa_ranges,
    decode_packet,
    decode_pipe,
    encode_gpa_direct_header,
    encode_gpa_ranges,
    encode_packet,
    encode_pipe,
    page_count,
)

U32 = st.integers(0, 0xFFFF_FFFF)


@st.composite
def gpa_ranges(draw: st.DrawFn) -> GpaRange:
    pages = draw(st.integers(1, 5))
    offset = draw(st.integers(0, PAGE_BYTES - 1))
    count = draw(st.integers(max(1, (pages - 1) * PAGE_BYTES + 1 - offset), pages * PAGE_BYTES - offset))
    numbers = draw(st.lists(st.integers(0, (1 << 64) - 1), min_size=pages, max_size=pages))
    return GpaRange(offset, count, struct.pack(f"<{pages}Q", *numbers))


def test_the_in_band_vector() -> None:
    packet = encode_packet(
        PacketType.INBAND,
        b"ABCD",
        0x1122334455667788,
        flags=PacketFlags.COMPLETION_REQUESTED,
        ring_offset=0x40,
    )
    assert packet == bytes.fromhex(
        "06 00 02 00 03 00 01 00 88 77 66 55 44 33 22 11 41 42 43 44 00 00 00 00 00 00 00 00 40 00 00 00"
    )
    assert decode_packet(packet).payload == b"ABCD\0\0\0\0"


def test_the_completion_vector() -> None:
    packet = encode_packet(PacketType.COMPLETION, bytes(8), 0x1122334455667788)
    assert packet[:16] == bytes.fromhex("0b 00 02 00 03 00 00 00 88 77 66 55 44 33 22 11")


def test_the_gpa_direct_vector() -> None:
    gpa_range = GpaRange.contiguous(0x100, 6000, 0xF00)
    assert gpa_range.pages == 3
    extra = encode_gpa_direct_header((gpa_range,))
    packet = encode_packet(PacketType.GPA_DIRECT, bytes(64), 1, extra_header=extra)
    descriptor = PacketDescriptor.decode(packet)
    assert (descriptor.data_offset8, descriptor.length8, descriptor.ring_bytes) == (7, 15, 128)
    assert len(packet) == 128
    assert decode_gpa_direct_header(decode_packet(packet).extra_header) == (gpa_range,)


@given(
    packet_type=st.sampled_from([PacketType.INBAND, PacketType.COMPLETION]),
    payload=st.binary(max_size=100),
    transaction_id=st.integers(0, (1 << 64) - 1),
    flags=st.sampled_from(PacketFlags),
    tail=st.binary(max_size=20),
)
def test_packets_survive_the_ring_up_to_their_padding(
    packet_type: PacketType, payload: bytes, transaction_id: int, flags: PacketFlags, tail: bytes
) -> None:
    encoded = encode_packet(packet_type, payload, transaction_id, flags=flags)
    packet = decode_packet(encoded + tail)
    assert packet.descriptor.ring_bytes == len(encoded)
    assert packet.descriptor.transaction_id == transaction_id
    assert packet.descriptor.flags == flags
    assert packet.payload == payload + bytes(-len(payload) % 8)


@given(st.binary(max_size=64))
def test_arbitrary_bytes_are_a_packet_within_bounds_or_a_typed_error(data: bytes) -> None:
    try:
        packet = decode_packet(data)
    except PacketError:
        return
    used = DESCRIPTOR_BYTES + len(packet.extra_header) + len(packet.payload)
    assert used == packet.descriptor.length8 * 8
    assert used + TRAILER_BYTES <= len(data)


@given(
    number=st.integers(0, 20), offset8=st.integers(0, 6), length8=st.integers(0, 6), flags=st.integers(0, 3)
)
def test_a_descriptor_is_accepted_exactly_by_the_rules(
    number: int, offset8: int, length8: int, flags: int
) -> None:
    data = struct.pack("<HHHHQ", number, offset8, length8, flags, 1)
    least = {6: 2, 7: 3, 9: 3, 11: 2}
    legal = number in least and least[number] <= offset8 <= length8 and flags in (0, 1)
    if legal:
        assert PacketDescriptor.decode(data).encode() == data
    else:
        with pytest.raises(PacketError):
            PacketDescriptor.decode(data)


@given(st.lists(gpa_ranges(), min_size=1, max_size=5), st.binary(max_size=16))
def test_gpa_ranges_survive_the_wire(ranges: list[GpaRange], tail: bytes) -> None:
    encoded = encode_gpa_ranges(tuple(ranges))
    assert decode_gpa_ranges(encoded + tail, len(ranges)) == tuple(ranges)
    with pytest.raises(PacketError):
        decode_gpa_ranges(encoded[:-1], len(ranges))


@given(data=st.binary(max_size=100), count=U32)
def test_arbitrary_bytes_are_gpa_ranges_within_bounds_or_a_typed_error(data: bytes, count: int) -> None:
    try:
        ranges = decode_gpa_ranges(data, count)
    except PacketError:
        return
    assert len(ranges) == count > 0
    assert len(encode_gpa_ranges(ranges)) <= len(data)
    assert all(part.byte_count > 0 and part.byte_offset < PAGE_BYTES for part in ranges)


@given(byte_count=U32, byte_offset=U32)
def test_lengths_that_overflow_32_bits_are_not_taken_for_short_ones(
    byte_count: int, byte_offset: int
) -> None:
    """One PFN follows; a 32-bit sum of a huge length and offset could make that look right."""
    data = struct.pack("<IIQ", byte_count, byte_offset, 7)
    if byte_count > 0 and byte_offset < PAGE_BYTES and byte_offset + byte_count <= PAGE_BYTES:
        assert decode_gpa_ranges(data, 1)[0].page_numbers == (7,)
    else:
        with pytest.raises(PacketError):
            decode_gpa_ranges(data, 1)


def test_a_range_of_a_slot_names_the_slots_pages() -> None:
    with MemorySlot.create(4, 0x80, "range") as slot:
        part = GpaRange.of_slot(slot, PAGE_BYTES + 10, PAGE_BYTES)
        assert (part.byte_offset, part.byte_count, part.page_numbers) == (10, PAGE_BYTES, (0x81, 0x82))
        assert GpaRange.of_slot(slot) == GpaRange.contiguous(0x80, 4 * PAGE_BYTES)


@pytest.mark.parametrize(
    ("offset", "count", "pages"),
    [(0, 0, 0), (PAGE_BYTES, 1, 2), (-1, 8, 1), (0, PAGE_BYTES, 2), (1, PAGE_BYTES, 1)],
)
def test_an_impossible_range_cannot_be_made(offset: int, count: int, pages: int) -> None:
    with pytest.raises(PacketError):
        GpaRange(offset, count, bytes(8 * pages))
    with pytest.raises(PacketError):
        GpaRange.contiguous(MAX_GPFN, 1)


@given(
    set_id=st.integers(0, 0xFFFF),
    pieces=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), max_size=5),
    owns=st.booleans(),
)
def test_transfer_pages_survive_the_wire_within_their_buffer(
    set_id: int, pieces: list[tuple[int, int]], owns: bool
) -> None:
    header = TransferPageHeader(set_id, tuple(pieces), owns)
    furthest = max((count + offset for count, offset in pieces), default=0)
    assert TransferPageHeader.decode(header.encode(), furthest) == header
    if furthest:
        with pytest.raises(PacketError):
            TransferPageHeader.decode(header.encode(), furthest - 1)


@given(data=st.binary(max_size=64), buffer_bytes=st.integers(0, 1 << 33))
def test_arbitrary_bytes_are_transfer_pages_within_bounds_or_a_typed_error(
    data: bytes, buffer_bytes: int
) -> None:
    try:
        header = TransferPageHeader.decode(data, buffer_bytes)
    except PacketError:
        return
    assert all(offset + count <= buffer_bytes for count, offset in header.ranges)


@given(payload=st.binary(max_size=40), pipe_type=st.sampled_from(PipeType), padding=st.binary(max_size=7))
def test_pipe_messages_keep_their_exact_length(payload: bytes, pipe_type: PipeType, padding: bytes) -> None:
    assert decode_pipe(encode_pipe(payload, pipe_type) + padding) == (pipe_type, payload)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(7),
        struct.pack("<II", 2, 0),  # partly consumed: never on the wire
        struct.pack("<II", 1, 1),
        struct.pack("<II", 1, MAX_PIPE_BYTES + 1) + bytes(MAX_PIPE_BYTES + 1),
        struct.pack("<II", 1, 0xFFFF_FFFF),
    ],
)
def test_bad_pipe_headers_are_refused(data: bytes) -> None:
    with pytest.raises(PacketError):
        decode_pipe(data)


def test_what_no_packet_can_hold_is_not_encoded() -> None:
    with pytest.raises(PacketError):
        encode_packet(PacketType.INBAND, bytes(0xFFFF * 8))
    with pytest.raises(PacketError):
        encode_packet(PacketType.GPA_DIRECT, b"", extra_header=bytes(7))
    with pytest.raises(PacketError):
        encode_pipe(bytes(MAX_PIPE_BYTES + 1))


@given(offset=st.integers(0, PAGE_BYTES - 1), count=st.integers(1, 1 << 20))
def test_page_count_is_that_of_the_pages_touched(offset: int, count: int) -> None:
    assert page_count(offset, count) == (offset + count - 1) // PAGE_BYTES + 1
