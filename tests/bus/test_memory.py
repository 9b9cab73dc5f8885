"""Memory slots: what may be mapped, and that a GPA space never maps a page twice."""

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.memory import (
    MAX_GPFN,
    MAX_SLOT_PAGES,
    PAGE_BYTES,
    REQUIRED_SEALS,
    GpaSpace,
    MemorySlot,
    SlotOverlap,
    UntrustedMemory,
)


@pytest.fixture
def memfd() -> Iterator[int]:
    """Two unsealed pages, as a careless or hostile peer would send them."""
    fd = os.memfd_create("peer", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 2 * PAGE_BYTES)
    yield fd
    os.close(fd)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_both_holders_of_a_slot_see_the_same_bytes() -> None:
    with (
        MemorySlot.create(2, gpfn=0x100, name="shared") as ours,
        MemorySlot.from_fd(os.dup(ours.fd), gpfn=0x900, pages=2) as theirs,
    ):
        ours.memory[PAGE_BYTES - 2 : PAGE_BYTES + 2] = b"abcd"
        assert bytes(theirs.memory[PAGE_BYTES - 2 : PAGE_BYTES + 2]) == b"abcd"
        theirs.memory[0] = 7
        assert ours.memory[0] == 7


def test_nobody_can_change_the_size_or_the_seals_of_a_created_slot() -> None:
    with MemorySlot.create(2, gpfn=0, name="sealed") as slot:
        for size in (0, PAGE_BYTES, 3 * PAGE_BYTES):
            with pytest.raises(PermissionError):
                os.ftruncate(slot.fd, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(slot.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_a_slot_made_for_readers_maps_writable_for_its_maker_alone() -> None:
    with MemorySlot.create(1, gpfn=0, name="statistics", peers_may_write=False) as slot:
        with pytest.raises(UntrustedMemory):
            MemorySlot.from_fd(slot.fd, 0, 1)
        with MemorySlot.from_fd(os.dup(slot.fd), 0, 1, writable=False) as reader:
            slot.memory[5] = 9
            assert reader.memory[5] == 9
            assert reader.memory.readonly
            assert not reader.writable


@pytest.mark.parametrize("missing", [fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_SEAL])
def test_memory_without_every_seal_is_refused(memfd: int, missing: int) -> None:
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, REQUIRED_SEALS & ~missing)
    with pytest.raises(UntrustedMemory):
        MemorySlot.from_fd(memfd, 0, 2)
    os.fstat(memfd)  # still the caller's


@pytest.mark.parametrize("pages", [1, 3, MAX_SLOT_PAGES])
def test_memory_of_another_size_is_refused(memfd: int, pages: int) -> None:
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, REQUIRED_SEALS)
    with pytest.raises(UntrustedMemory):
        MemorySlot.from_fd(memfd, 0, pages)


def test_things_that_are_not_memory_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(PAGE_BYTES))
    reader, writer = os.pipe()
    plain = os.open(file, os.O_RDWR)
    try:
        for fd in (reader, writer, plain, 1_000_000):
            with pytest.raises(UntrustedMemory):
                MemorySlot.from_fd(fd, 0, 1)
    finally:
        for fd in (reader, writer, plain):
            os.close(fd)


def test_huge_page_memory_is_refused() -> None:
    """Such a file can lose pages under a mapping, which is a SIGBUS, whatever its seals say."""
    try:
        fd = os.memfd_create("huge", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
    except OSError:
        pytest.skip("no huge pages in this kernel")
    try:
        pages = (2 << 20) // PAGE_BYTES
        os.ftruncate(fd, pages * PAGE_BYTES)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, REQUIRED_SEALS)
        with pytest.raises(UntrustedMemory):
            MemorySlot.from_fd(fd, 0, pages)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("gpfn", "pages"), [(0, 0), (0, -1), (-1, 1), (MAX_GPFN, 1), (MAX_GPFN - 1, 2), (0, MAX_SLOT_PAGES + 1)]
)
def test_impossible_extents_are_refused_and_leak_nothing(gpfn: int, pages: int) -> None:
    before = open_descriptors()
    with pytest.raises(ValueError, match="page"):
        MemorySlot.create(pages, gpfn, "impossible")
    assert open_descriptors() == before


def test_closing_gives_back_every_descriptor_even_while_a_view_lives() -> None:
    before = open_descriptors()
    slot = MemorySlot.create(1, 0, "viewed")
    view = slot.memory[10:20]
    consumer = memoryview(slot.memory)  # as a channel in C would hold it
    slot.close()
    slot.close()
    with pytest.raises(ValueError, match="closed"):
        _ = slot.memory
    view[0] = 1  # still mapped for whoever held it
    assert consumer[10] == 1
    del view, consumer, slot
    assert open_descriptors() == before


@given(
    gpfn=st.integers(0, 1 << 30),
    pages=st.integers(1, 8),
    data=st.data(),
)
def test_pfns_name_exactly_the_pages_that_a_byte_range_touches(
    gpfn: int, pages: int, data: st.DataObject
) -> None:
    offset = data.draw(st.integers(0, pages * PAGE_BYTES - 1))
    count = data.draw(st.integers(1, pages * PAGE_BYTES - offset))
    with MemorySlot.create(pages, gpfn, "pfns") as slot:
        pfns = slot.pfns(offset, count)
        numbers = struct.unpack(f"<{len(pfns) // 8}Q", pfns)
    touched = sorted({gpfn + byte // PAGE_BYTES for byte in range(offset, offset + count)})
    assert list(numbers) == touched


@pytest.mark.parametrize(
    ("offset", "count"), [(0, 0), (-1, 2), (0, PAGE_BYTES + 1), (PAGE_BYTES, 1), (5, -1)]
)
def test_byte_ranges_outside_the_slot_have_no_pfns(offset: int, count: int) -> None:
    with MemorySlot.create(1, 0, "pfns") as slot, pytest.raises(ValueError, match="slot"):
        slot.pfns(offset, count)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6), st.booleans()), max_size=30))
def test_a_gpa_space_agrees_with_a_page_by_page_model(operations: list[tuple[int, int, bool]]) -> None:
    """Adds and removes at random; the model is a dict from page to slot."""
    space, model = GpaSpace(), dict[int, MemorySlot]()
    mapping = mmap.mmap(-1, 1)  # slots without descriptors: the table looks at numbers alone
    for gpfn, pages, adding in operations:
        slot = MemorySlot(-1, gpfn, pages, mapping, writable=True)
        extent = range(gpfn, gpfn + pages)
        if adding:
            if any(page in model for page in extent):
                with pytest.raises(SlotOverlap):
                    space.add(slot)
            else:
                space.add(slot)
                model |= dict.fromkeys(extent, slot)
        elif gpfn in model and model[gpfn].gpfn == gpfn:
            assert space.remove(gpfn) is model[gpfn]
            model = {page: slot for page, slot in model.items() if slot.gpfn != gpfn}
        else:
            with pytest.raises(LookupError):
                space.remove(gpfn)
        for page in range(50):
            assert (page in space) == (page in model)
            if page in model:
                assert space.lookup(page) is model[page]
        free = space.find_free(pages, gpfn)
        assert free >= gpfn
        assert not any(page in model for page in range(free, free + pages))
        assert free == gpfn or any(page in model for page in range(free - 1, free - 1 + pages))
        if all(page in model for page in extent):
            assert {id(model[page]) for page in extent} == {
                id(found) for found in space.covering(gpfn, pages)
            }
        else:
            with pytest.raises(LookupError):
                space.covering(gpfn, pages)
    assert len(space) == len({id(slot) for slot in model.values()})
    assert [slot.gpfn for slot in space] == sorted(slot.gpfn for slot in space)
