"""The file of a saved partition: what goes in comes out, and nothing else is ever taken for one."""

import io
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.abi import PAGE_BYTES
from runtime.config.loading import load
from runtime.machine import saved_file, saved_partition
from runtime.machine.questions import RequestRefused
from runtime.machine.saved_partition import (
    RUN_PAGES_MAX,
    SavedPartitionError,
    SavedReader,
    SavedSlot,
    SavedWriter,
)
from runtime.machine.saving_checks import saveable
from tests.runtime import saved_making

PAGES = 700  # of one slot: more than two whole runs
STATES = st.one_of(st.binary(max_size=300), st.integers(0, 20_000).map(bytes))
MEMORY = st.dictionaries(
    st.sampled_from([0, 0x1000, 0x70_0000]),
    st.dictionaries(
        st.one_of(st.integers(0, PAGES - 1), st.integers(RUN_PAGES_MAX - 2, RUN_PAGES_MAX + 2)),
        st.integers(0, 255).map(lambda byte: bytes([byte]) * PAGE_BYTES),
        max_size=6,
    ),
)


def _read(data: bytes) -> tuple[SavedReader, dict[tuple[int, int], bytes]]:
    reader = SavedReader(io.BytesIO(data))
    pages = {}
    for slot, first, run in reader.runs():
        for at in range(0, len(run), PAGE_BYTES):
            gpfn = reader.description.hypervisor.slots[slot].gpfn
            pages[gpfn, first + at // PAGE_BYTES] = run[at : at + PAGE_BYTES]
    return reader, pages


@settings(max_examples=12, deadline=None)
@given(state=STATES, memory=MEMORY)
def test_a_partition_comes_back_as_it_was_and_zeros_take_no_room(
    tmp_path_factory: pytest.TempPathFactory, state: bytes, memory: dict[int, dict[int, bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("saved")
    path = folder / "one.saved"
    size = saved_making.write(path, state, memory, PAGES)
    data = path.read_bytes()
    assert len(data) == size
    assert [one.name for one in folder.iterdir()] == ["one.saved"]  # nothing else is left
    reader, pages = _read(data)
    filled = {
        (gpfn, number): page for gpfn, slot in memory.items() for number, page in slot.items() if any(page)
    }
    assert reader.state == state
    assert pages == filled
    assert size < 20_000 + len(state) + len(filled) * (PAGE_BYTES + 20)
    described, image = saved_file.image(path)  # what the one that goes on gets
    with open(image, "rb") as file:
        file.seek(0)
        handed = file.read()
    copied, image_pages = _read(handed)
    assert (copied.state, image_pages) == (state, filled)
    assert described.disks
    assert not copied.description.disks
    assert b"/somewhere" in data
    assert b"/somewhere" not in handed  # it is not told where its disks are


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "one"
    memory = {0: {1: b"a" * PAGE_BYTES, 2: b"b" * PAGE_BYTES}, 0x1000: {5: b"c" * PAGE_BYTES}}
    saved_making.write(path, b"a state" * 900, memory)
    return path.read_bytes()


@settings(max_examples=80, deadline=None)
@given(changes=st.data())
def test_what_was_changed_is_refused(written: bytes, changes: st.DataObject) -> None:
    """Any byte, anywhere; a cut; a tail. Never another error, never memory that was not saved."""
    data = bytearray(written)
    at = changes.draw(st.integers(0, len(data) - 1))
    match changes.draw(st.sampled_from(["flip", "cut", "tail"])):
        case "flip":
            data[at] ^= changes.draw(st.integers(1, 255))
        case "cut":
            del data[at:]
        case "tail":
            data += b"\0"
    with pytest.raises(SavedPartitionError):
        _read(bytes(data))


@settings(max_examples=80, deadline=None)
@given(noise=st.binary(max_size=200), head=st.booleans())
def test_noise_is_refused(noise: bytes, head: bool) -> None:
    version = saved_partition.VERSION.to_bytes(4, "little")
    with pytest.raises(SavedPartitionError):
        _read(saved_partition.MAGIC + version + noise if head else noise)


def test_a_file_of_the_version_before_is_named_as_such(written: bytes) -> None:
    with pytest.raises(SavedPartitionError, match="of version 1; this program knows 2"):
        _read(written[:8] + (1).to_bytes(4, "little") + written[12:])


@pytest.mark.parametrize(
    "runs", [[(0, 1), (0, 0)], [(0, 0), (0, 0)], [(0, 8)], [(1, 0)], [(2, 0)], [(0, 7, 2)], [(0, 0, 0)]]
)
def test_runs_that_are_out_of_order_or_beyond_their_memory_are_refused(runs: list[tuple[int, ...]]) -> None:
    """Each with its right checksum. (slot, first page, pages)"""
    slots = SavedSlot(0, 8, True, True), SavedSlot(8, 8, True, False)
    sink = io.BytesIO()
    writer = SavedWriter(sink, saved_making.description(*slots), b"")
    for slot, first, *count in runs:
        writer.run(slot, first, b"x" * PAGE_BYTES * (count[0] if count else 1))
    writer.end()
    with pytest.raises(SavedPartitionError, match="out of order"):
        _read(sink.getvalue())


@pytest.mark.parametrize("looks", [1, 2])
def test_what_was_given_up_leaves_no_file_and_what_stood_there_before(tmp_path: Path, looks: int) -> None:
    """At the first page, or when all is written and only the name is missing."""
    path = tmp_path / "one.saved"
    path.write_bytes(b"before")
    memory, left = saved_making.memory_fd({0: b"x" * PAGE_BYTES}, 8), iter(range(1, looks))

    def look() -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    try:
        described = saved_making.description(SavedSlot(0, 8, True, True))
        with pytest.raises(KeyboardInterrupt):
            saved_file.write(path, described, b"", [memory], look=look)
    finally:
        os.close(memory)
    assert [one.name for one in tmp_path.iterdir()] == ["one.saved"]
    assert path.read_bytes() == b"before"


def test_a_disk_that_has_changed_is_named(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    disk = saved_file.identity_of("disk0", str(image))
    assert saved_file.changed_disks([disk]) == []
    image.write_bytes(b"x" * 4096)
    assert "disk0" in saved_file.changed_disks([disk])[0]
    image.unlink()
    assert "No such file" in saved_file.changed_disks([disk])[0]


def test_a_guest_of_machine_code_is_told_what_it_needs_in_one_line() -> None:
    config = load(Path(__file__).parents[2] / "configs" / "bootsector.toml")
    with pytest.raises(RequestRefused, match="give it integration = true") as refused:
        saveable(config, "pc")
    assert "\n" not in str(refused.value)
