"""Guest physical ranges -> views: exactly the bytes that the page numbers name, or LookupError."""

import mmap
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.native import PAGE_BYTES, GpaMap


def pages(count: int, first: int = 0) -> mmap.mmap:
    """Page i is filled with the byte first + i."""
    memory = mmap.mmap(-1, count * PAGE_BYTES)
    for i in range(count):
        memory[i * PAGE_BYTES : (i + 1) * PAGE_BYTES] = bytes([first + i]) * PAGE_BYTES
    return memory


def numbers(*pfns: int) -> bytes:
    return struct.pack(f"<{len(pfns)}Q", *pfns)


@given(st.lists(st.integers(0, 11), min_size=1, max_size=40), st.integers(0, 4095), st.data())
def test_views_are_the_bytes_that_the_page_numbers_name(
    indexes: list[int], offset: int, data: st.DataObject
) -> None:
    gpa = GpaMap()
    gpa.add(100, pages(5))
    gpa.add(105, pages(4, first=5))  # next to the other on the guest's side only
    gpa.add(2**40, pages(3, first=9))
    pfns = [100 + i if i < 9 else 2**40 + i - 9 for i in indexes]
    least = (len(pfns) - 1) * PAGE_BYTES + 1 - offset
    count = data.draw(st.integers(max(least, 1), len(pfns) * PAGE_BYTES - offset))
    everything = b"".join(bytes([i]) * PAGE_BYTES for i in indexes)
    views = gpa.views(offset, count, numbers(*pfns), False)
    assert b"".join(views) == everything[offset : offset + count]
    assert all(view.readonly for view in views)
    for view in gpa.views(offset, count, numbers(*pfns), True):
        view[:] = bytes(len(view))
    assert b"".join(gpa.views(offset, count, numbers(*pfns), False)) == bytes(count)


def test_neighbouring_pages_come_as_one_view() -> None:
    gpa = GpaMap()
    gpa.add(16, pages(8))
    assert [len(view) for view in gpa.views(8, 3 * PAGE_BYTES, numbers(16, 17, 18, 19), False)] == [
        3 * PAGE_BYTES
    ]
    assert [len(view) for view in gpa.views(0, 2 * PAGE_BYTES, numbers(19, 16), False)] == [
        PAGE_BYTES,
        PAGE_BYTES,
    ]


@pytest.mark.parametrize("pfn", [0, 99, 105, 2**64 - 1, 2**52])
def test_a_page_outside_every_range_is_refused(pfn: int) -> None:
    gpa = GpaMap()
    gpa.add(100, pages(5))
    for pfns in (numbers(pfn, 100), numbers(100, pfn)):
        with pytest.raises(LookupError):
            gpa.views(0, 2 * PAGE_BYTES, pfns, False)


def test_a_read_only_range_is_never_given_out_for_writing() -> None:
    gpa = GpaMap()
    gpa.add(0, pages(1))
    gpa.add(1, bytes(PAGE_BYTES), False)
    with pytest.raises(LookupError):
        gpa.views(0, 2 * PAGE_BYTES, numbers(0, 1), True)
    assert b"".join(gpa.views(0, 2 * PAGE_BYTES, numbers(0, 1), False)) == bytes(2 * PAGE_BYTES)
    with pytest.raises(BufferError):
        gpa.add(2, bytes(PAGE_BYTES))


@pytest.mark.parametrize(
    ("offset", "count", "pfns"),
    [
        (0, 0, numbers()),
        (0, 0, numbers(0)),
        (4096, 1, numbers(0, 1)),
        (0, 1, numbers(0, 1)),
        (0, 4097, numbers(0)),
        (4095, 2, numbers(0)),
        (0, 1, b"\0" * 7),
        (0, 1, b"\0" * 9),
        (0xFFF, 0xFFFFFFFF, numbers(0)),
    ],
)
def test_a_list_that_does_not_fit_its_range_is_refused(offset: int, count: int, pfns: bytes) -> None:
    gpa = GpaMap()
    gpa.add(0, pages(2))
    with pytest.raises(ValueError, match="page numbers"):
        gpa.views(offset, count, pfns, False)


def test_overlap_misalignment_and_a_full_table_are_refused() -> None:
    gpa = GpaMap(3)
    gpa.add(10, pages(4))
    for first, count in ((10, 1), (13, 1), (9, 2), (8, 10), (7, 4), (12, 20)):
        with pytest.raises(ValueError, match="overlaps"):
            gpa.add(first, pages(count))
    with pytest.raises(ValueError, match="whole pages"):
        gpa.add(20, bytearray(4095))
    with pytest.raises(ValueError, match="whole pages"):
        gpa.add(2**64 - 1, pages(1))
    gpa.add(14, pages(1))
    gpa.add(9, pages(1))
    with pytest.raises(ValueError, match="full"):
        gpa.add(50, pages(1))
    for bad in (0, 10**9):
        with pytest.raises(ValueError, match="max_ranges"):
            GpaMap(bad)


def test_ranges_come_and_go_and_views_outlive_them() -> None:
    rng = random.Random(5)
    gpa = GpaMap(64)
    model: dict[int, mmap.mmap] = {}
    for _ in range(2000):
        slot = rng.randrange(30)
        if slot in model:
            gpa.remove(slot * 4)
            del model[slot]
        else:
            model[slot] = pages(4, first=slot)
            gpa.add(slot * 4, model[slot])
        probe = rng.randrange(30)
        if probe in model:
            assert gpa.views(0, 1, numbers(probe * 4), False)[0][0] == probe
        else:
            with pytest.raises(LookupError):
                gpa.views(0, 1, numbers(probe * 4 + 3), False)
            with pytest.raises(LookupError):
                gpa.remove(probe * 4)
    [slot, *_] = model
    [view] = gpa.views(0, 1, numbers(slot * 4), False)
    memory = model[slot]
    gpa.clear()
    assert view[0] == slot
    with pytest.raises(BufferError):
        memory.close()
    view.release()
    memory.close()
