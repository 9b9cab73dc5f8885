"""The checksum, the histogram and the clock: against definitions written down a second time."""

import math
import struct
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.native import Histogram, crc32c, monotonic_ns

U64 = st.integers(0, 2**64 - 1) | st.integers(0, 5000) | st.integers(0, 63).map(lambda bit: 1 << bit)


def crc_by_definition(data: bytes, value: int) -> int:
    """One bit at a time. Source: RFC 3720, appendix B.4."""
    crc = ~value & 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return ~crc & 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_checksum_gives_the_vectors_of_rfc_3720(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected


@given(st.binary(max_size=200), st.integers(0, 2**32 - 1))
def test_checksum_is_its_definition(data: bytes, value: int) -> None:
    assert crc32c(data, value) == crc_by_definition(data, value)


@given(st.integers(0, 20_000), st.integers(0, 20_000), st.integers(0, 7))
def test_checksum_of_parts_goes_on_from_the_first(first: int, second: int, shift: int) -> None:
    """Lengths around the interleaved block and back, at every alignment."""
    data = bytes((i * 131 + 7) & 0xFF for i in range(first + second + shift))
    view = memoryview(data)[shift:]
    assert crc32c(view[first:], crc32c(view[:first])) == crc32c(view)


def test_checksum_of_long_data_is_that_of_short_pieces() -> None:
    data = bytes(i * i & 0xFF for i in range(300_000))
    value = 0
    for at in range(0, len(data), 17):
        value = crc32c(data[at : at + 17], value)
    assert crc32c(data) == value


def filled(values: Sequence[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@given(st.lists(U64, min_size=1, max_size=200), st.floats(0, 100))
def test_percentiles_are_at_most_one_bucket_too_high(values: list[int], percent: float) -> None:
    histogram = filled(values)
    rank = max(math.ceil(percent / 100 * len(values)), 1)
    exact = sorted(values)[rank - 1]
    assert exact <= histogram.percentile(percent) <= exact + exact // 128
    assert (histogram.count, histogram.minimum, histogram.maximum) == (len(values), min(values), max(values))
    assert histogram.percentile(100) == max(values)
    assert histogram.percentile(0) == min(values)


@given(st.lists(U64, max_size=50), st.lists(U64, max_size=50))
def test_merging_is_recording_both(first: list[int], second: list[int]) -> None:
    merged, whole = filled(first), Histogram()
    merged.merge(filled(second))
    whole.record_many(struct.pack(f"<{len(first + second)}Q", *first, *second))
    for histogram in (merged, whole):
        assert histogram.count == len(first + second)
        assert histogram.minimum == min(first + second, default=0)
        assert histogram.maximum == max(first + second, default=0)
    assert [merged.percentile(p) for p in range(101)] == [whole.percentile(p) for p in range(101)]


def test_impossible_values_are_refused() -> None:
    histogram = Histogram()
    for value in (-1, 2**64):
        with pytest.raises(OverflowError):
            histogram.record(value)
    for percent in (-0.1, 100.1, math.nan):
        with pytest.raises(ValueError, match="percent"):
            histogram.percentile(percent)
    with pytest.raises(ValueError, match="u64"):
        histogram.record_many(bytes(9))
    with pytest.raises(TypeError):
        histogram.merge(5)  # type: ignore[arg-type]
    assert histogram.count == 0
    assert histogram.percentile(50) == 0


def test_the_clock_is_pythons() -> None:
    before, here, after = time.monotonic_ns(), monotonic_ns(), time.monotonic_ns()
    assert before <= here <= after


@given(st.lists(U64, max_size=200))
def test_a_packed_histogram_comes_back_the_same(values: list[int]) -> None:
    histogram = filled(values)
    packed = histogram.pack()
    back = Histogram.unpack(packed)
    assert back == histogram
    assert back.pack() == packed
    assert (back.count, back.minimum, back.maximum) == (histogram.count, histogram.minimum, histogram.maximum)


@given(st.lists(U64, max_size=30), st.data())
def test_other_bytes_are_refused_or_are_the_packing_of_what_they_say(
    values: list[int], data: st.DataObject
) -> None:
    """Whatever happens to the bytes: a ValueError, or a histogram that packs to these very bytes."""
    packed = bytearray(filled(values).pack())
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    packed = packed[: data.draw(st.integers(0, len(packed)))]
    try:
        back = Histogram.unpack(packed)
    except ValueError:
        return
    assert back.pack() == packed
    assert sum(count for _, count in back.buckets) == back.count
    assert back.minimum <= back.maximum


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (b"", "version"),
        (b"\x02\x00\x00", "version"),
        (b"\x01\x00", "number"),
        (b"\x01\x00\x80\x00", "number"),  # a longer form than need be
        (b"\x01\x00" + b"\xff" * 9 + b"\x02", "number"),  # 65 bits
        (b"\x01\x05\x05\x05\x00", "count"),
        (b"\x01\x05\x05\x05" + b"\xff" * 9 + b"\x01" + b"\x00" + b"\x01", "sum"),
        (b"\x01\x05\x05\x80\x3a\x01", "bucket"),  # 7424, one beyond the last
        (b"\x01\x05\x06\x05\x01", "minimum"),
        (b"\x01\x01\x00", "minimum"),
    ],
)
def test_bad_packings_are_refused(packed: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Histogram.unpack(packed)


@given(st.lists(U64, max_size=100))
def test_buckets_hold_every_value_once(values: list[int]) -> None:
    histogram = filled(values)
    buckets = histogram.buckets
    assert [top for top, _ in buckets] == sorted({top for top, _ in buckets})
    for limit in values:
        at_or_below = sum(count for top, count in buckets if top <= limit + limit // 128)
        assert at_or_below >= sum(value <= limit for value in values)
    assert sum(count for _, count in buckets) == len(values)


def test_histograms_are_equal_by_value_and_not_hashable() -> None:
    assert filled([1, 2]) == filled([2, 1])
    assert filled([1, 2]) != filled([1, 3])
    assert filled([]) != object()
    with pytest.raises(TypeError):
        hash(filled([]))
