"""GPA ranges and pipe headers: round trips, and that no length or offset of a peer's is believed."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.memory import MAX_GPFN, PAGE_BYTES, MemorySlot
from bus.packets import (
    MAX_PIPE_BYTES,
    GpaRange,
    PacketError,
    PipeType,
    decode_gpa_direct_header,
    decode_gpa_ranges,
    decode_pipe,
    encode_gpa_direct_header,
    encode_gpa_ranges,
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


def test_the_gpa_direct_vector() -> None:
    gpa_range = GpaRange.contiguous(0x100, 6000, 0xF00)
    assert gpa_range.pages == 3
    header = encode_gpa_direct_header((gpa_range,))
    assert header == struct.pack("<IIIIQQQ", 0, 1, 6000, 0xF00, 0x100, 0x101, 0x102)
    assert decode_gpa_direct_header(header) == (gpa_range,)


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


def test_what_no_pipe_message_can_hold_is_not_encoded() -> None:
    with pytest.raises(PacketError):
        encode_pipe(bytes(MAX_PIPE_BYTES + 1))


@given(offset=st.integers(0, PAGE_BYTES - 1), count=st.integers(1, 1 << 20))
def test_page_count_is_that_of_the_pages_touched(offset: int, count: int) -> None:
    assert page_count(offset, count) == (offset + count - 1) // PAGE_BYTES + 1
