"""A disk written over a read-only base: what it reads, what it leaves alone, and what a crash leaves of it."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from partitions.storage.backends import BackendOpenError, DescriptorBackend, FileBackend
from partitions.storage.overlay import CLUSTER_BYTES, PAGE_BYTES, OverlayBackend, overlay_bytes

CLUSTERS = 20
SIZE = CLUSTERS * CLUSTER_BYTES - 512  # the last cluster is not whole


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


def over(base: Path, overlay: Path) -> OverlayBackend:
    descriptor = os.open(overlay, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        return OverlayBackend(FileBackend.open(base, read_only=True), descriptor, name=str(overlay))
    except BackendOpenError:
        os.close(descriptor)
        raise


def contents(disk: OverlayBackend) -> bytes:
    found = bytearray(disk.size_bytes)
    disk.readv([memoryview(found)[:1024], memoryview(found)[1024:]], 0)
    return bytes(found)


def changes(rng: random.Random, model: bytearray, count: int) -> Iterator[tuple[int, bytes | None, int]]:
    """(where, data or None to discard, length), and the model changed."""
    for _ in range(count):
        at = 512 * rng.randrange(SIZE // 512)
        length = min(512 * rng.choice((1, 3, 128, 200, 500)), SIZE - at)
        data = rng.randbytes(length) if rng.random() < 0.7 else None
        model[at : at + length] = bytes(length) if data is None else data
        yield at, data, length


def test_reads_are_those_of_a_bytearray_also_after_opening_it_again(base: Path, tmp_path: Path) -> None:
    original = base.read_bytes()
    model, rng, overlay = bytearray(original), random.Random(2), tmp_path / "overlay"
    for _ in range(4):  # never flushed: the process ends, the file's pages stay
        disk = over(base, overlay)
        assert contents(disk) == model
        for at, data, length in changes(rng, model, 12):
            if data is None:
                disk.discard(at, length)
            else:
                half = length // 1024 * 512
                disk.writev([memoryview(data)[:half], memoryview(data)[half:]], at)
        assert contents(disk) == model
        disk.close()
    assert base.read_bytes() == original
    assert overlay.stat().st_blocks * 512 < overlay_bytes(SIZE) + PAGE_BYTES


def test_what_is_written_is_on_the_medium_before_it_is_marked(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of a medium that loses all that was not synchronized, in any order: every cluster is whole afterwards."""
    overlay = tmp_path / "overlay"
    disk = over(base, overlay)
    rng, original = random.Random(3), base.read_bytes()
    pending: list[tuple[int, bytes]] = []
    durable = bytearray(overlay.read_bytes())
    real_write, real_flush = DescriptorBackend.writev, DescriptorBackend.flush

    def writev(self: DescriptorBackend, views: list[memoryview], offset: int) -> None:
        pending.append((offset, b"".join(views)))
        real_write(self, views, offset)

    def flush(self: DescriptorBackend) -> None:
        for at, data in pending:
            durable[at : at + len(data)] = data
        pending.clear()
        real_flush(self)

    monkeypatch.setattr(DescriptorBackend, "writev", writev)
    monkeypatch.setattr(DescriptorBackend, "flush", flush)
    for number in range(CLUSTERS - 1):
        before = contents(disk)
        disk.writev([memoryview(b"n" * 1024)], number * CLUSTER_BYTES + 512)
        after = contents(disk)
        crashed = bytearray(durable)
        for at, data in rng.sample(pending, rng.randrange(len(pending) + 1)):  # some of it got there
            crashed[at : at + len(data)] = data
        copy = tmp_path / f"crashed{number}"
        copy.write_bytes(crashed)
        survivor = over(base, copy)
        found = contents(survivor)
        survivor.close()
        for start in range(0, SIZE, CLUSTER_BYTES):
            piece = slice(start, start + CLUSTER_BYTES)
            assert found[piece] in (original[piece], before[piece], after[piece])
    disk.close()


def test_a_file_that_is_no_overlay_of_this_base_is_left_as_it_was(base: Path, tmp_path: Path) -> None:
    other, image = tmp_path / "other", tmp_path / "image"
    other.write_bytes(bytes(SIZE - CLUSTER_BYTES))
    over(other, tmp_path / "overlay").close()
    image.write_bytes(bytes(8192) + b"somebody's")
    for path in (tmp_path / "overlay", image):
        content = path.read_bytes()
        with pytest.raises(BackendOpenError, match="choose another path"):
            over(base, path)
        assert path.read_bytes() == content


def test_one_in_memory_needs_no_file(base: Path) -> None:
    memory = os.memfd_create("overlay", os.MFD_CLOEXEC)
    os.ftruncate(memory, overlay_bytes(SIZE) + PAGE_BYTES)  # as the hypervisor makes it
    disk = OverlayBackend(FileBackend.open(base, read_only=True), os.dup(memory), volatile=True)
    disk.writev([memoryview(b"m" * 512)], 0)
    disk.close()
    again = OverlayBackend(FileBackend.open(base, read_only=True), memory, volatile=True)
    assert contents(again) == b"m" * 512 + base.read_bytes()[512:]
    assert again.clusters_written == 1
    again.close()
