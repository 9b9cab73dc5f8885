"""Backends: bytes stay where they were put, and each failure comes from a real kernel refusal."""

import errno
import os
import random
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from partitions.storage.backends import (
    BackendError,
    BackendOpenError,
    BlockBackend,
    DescriptorBackend,
    FileBackend,
    MemoryBackend,
)

SIZE = 256 * 1024


@pytest.fixture(params=["file", "memory"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DescriptorBackend]:
    made = (
        MemoryBackend(SIZE)
        if request.param == "memory"
        else FileBackend.open(tmp_path / "disk.img", SIZE, create=True)
    )
    with made:
        yield made


@pytest.mark.parametrize("seed", range(20))
def test_scattered_reads_and_writes_agree_with_a_bytearray(backend: BlockBackend, seed: int) -> None:
    rng, model = random.Random(seed), bytearray(SIZE)
    for _ in range(60):
        offset = rng.randrange(SIZE // 512) * 512
        length = rng.randrange(512, min(SIZE - offset, 32768) + 1, 512)
        cuts = sorted(rng.randrange(length + 1) for _ in range(rng.randrange(4)))
        memory = memoryview(bytearray(rng.randbytes(length)))
        views = [memory[a:b] for a, b in zip([0, *cuts], [*cuts, length], strict=True)]
        match rng.randrange(4):
            case 0:
                backend.discard(offset, length)
                model[offset : offset + length] = bytes(length)
            case 1:
                backend.writev(views, offset)
                model[offset : offset + length] = memory
            case _:
                backend.readv(views, offset)
                assert memory == model[offset : offset + length]
    backend.flush()


def test_more_views_than_one_call_takes(backend: BlockBackend) -> None:
    data = random.Random(1).randbytes(3000 * 64)
    backend.writev([memoryview(data)[at : at + 64] for at in range(0, len(data), 64)], 512)
    back = memoryview(bytearray(len(data)))
    backend.readv([back[at : at + 64] for at in range(0, len(data), 64)], 512)
    assert back == data


def test_a_created_disk_is_sparse_and_keeps_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with FileBackend.open(path, 1 << 40, create=True) as disk:
        disk.writev([memoryview(b"x" * 512)], (1 << 40) - 512)
        assert path.stat().st_blocks * 512 < 1 << 20
    with FileBackend.open(path, 1 << 40, create=True) as disk:
        back = bytearray(512)
        disk.readv([memoryview(back)], (1 << 40) - 512)
        assert back == b"x" * 512
    assert [entry.name for entry in tmp_path.iterdir()] == ["disk.img"]


def test_discard_gives_space_back(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with FileBackend.open(path, 1 << 20, create=True) as disk:
        disk.writev([memoryview(b"x" * (1 << 20))], 0)
        disk.flush()
        full = path.stat().st_blocks
        disk.discard(0, 1 << 20)
        assert path.stat().st_blocks < full


def test_where_holes_cannot_be_punched_zeros_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("partitions.storage.backends._punch_hole", lambda *_: errno.EOPNOTSUPP)
    size = 3 << 20
    with FileBackend.open(tmp_path / "disk.img", size, create=True) as disk:
        disk.writev([memoryview(b"x" * size)], 0)
        disk.discard(512, size - 1024)
        back = bytearray(size)
        disk.readv([memoryview(back)], 0)
        assert back == b"x" * 512 + bytes(size - 1024) + b"x" * 512


@pytest.mark.parametrize(
    ("arrange", "number", "remedy"),
    [
        (lambda place: None, errno.ENOENT, "truncate -s"),
        (lambda place: place.mkdir(), errno.EISDIR, "name a disk image"),
        (lambda place: place.write_bytes(bytes(512)), errno.EINVAL, "truncate -s 1048576"),
        (lambda place: place.symlink_to("/dev/null"), errno.ENOTBLK, "name a disk image"),
    ],
)
def test_a_disk_that_cannot_be_opened_says_what_to_do(
    tmp_path: Path, arrange: Callable[[Path], object], number: int, remedy: str
) -> None:
    place = tmp_path / "disk.img"
    arrange(place)
    before = sorted(tmp_path.iterdir())
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(BackendOpenError, match=remedy) as caught:
        FileBackend.open(place, 1 << 20)
    assert caught.value.errno == number
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackendOpenError, match="mkdir -p"):
        FileBackend.open(tmp_path / "no" / "disk.img", 1 << 20, create=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open anything")
def test_a_file_that_may_not_be_written_says_so(tmp_path: Path) -> None:
    place = tmp_path / "disk.img"
    place.write_bytes(bytes(1 << 20))
    place.chmod(0o400)
    with pytest.raises(BackendOpenError, match="read_only = true"):
        FileBackend.open(place)
    FileBackend.open(place, read_only=True).close()


def test_a_descriptor_for_reading_only_is_no_writable_disk(tmp_path: Path) -> None:
    place = tmp_path / "disk.img"
    place.write_bytes(bytes(1 << 20))
    descriptor = os.open(place, os.O_RDONLY)
    with pytest.raises(BackendOpenError, match="read_only = true") as caught:
        FileBackend.adopt(descriptor)
    assert caught.value.errno == errno.EROFS
    with FileBackend.adopt(descriptor, read_only=True) as disk:
        with pytest.raises(BackendError) as refused:
            disk.writev([memoryview(bytes(512))], 0)
        assert refused.value.errno == errno.EROFS
        with pytest.raises(BackendError):
            disk.discard(0, 512)


def test_a_file_of_no_whole_block_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "disk.img"
    place.write_bytes(bytes(1000))
    with pytest.raises(BackendOpenError, match="truncate -s 1024"):
        FileBackend.open(place)


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """Past it the kernel answers EFBIG: Python ignores SIGXFSZ."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_past_the_file_size_limit_fails_typed_and_what_was_there_stays(tmp_path: Path) -> None:
    with FileBackend.open(tmp_path / "disk.img", SIZE, create=True) as disk:
        disk.writev([memoryview(b"a" * SIZE)], 0)
        with file_size_limit(SIZE // 2):
            with pytest.raises(BackendError) as caught:
                disk.writev([memoryview(b"b" * 1024)], SIZE // 2 - 512)
            assert caught.value.errno == errno.EFBIG
        back = bytearray(SIZE)
        disk.readv([memoryview(back)], 0)
        assert back[: SIZE // 2 - 512] == b"a" * (SIZE // 2 - 512)
        assert back[SIZE // 2 :] == b"a" * (SIZE // 2)


def test_a_full_device_is_enospc() -> None:
    with DescriptorBackend(os.open("/dev/full", os.O_RDWR), SIZE) as disk:
        with pytest.raises(BackendError) as caught:
            disk.writev([memoryview(bytes(512))], 0)
        assert caught.value.errno == errno.ENOSPC


def test_a_medium_error_is_eio() -> None:
    """Nothing is mapped at address 0, so this process's own memory reads there as a bad sector does."""
    with DescriptorBackend(os.open("/proc/self/mem", os.O_RDWR), SIZE) as disk:
        with pytest.raises(BackendError) as caught:
            disk.readv([memoryview(bytearray(512))], 0)
        assert caught.value.errno == errno.EIO


def test_a_file_that_became_shorter_is_eio_not_a_hang(tmp_path: Path) -> None:
    place = tmp_path / "disk.img"
    with FileBackend.open(place, SIZE, create=True) as disk:
        os.truncate(place, SIZE // 2)
        with pytest.raises(BackendError, match="ends there") as caught:
            disk.readv([memoryview(bytearray(1024))], SIZE // 2 - 512)
        assert caught.value.errno == errno.EIO


def test_a_closed_disk_stays_closed(backend: DescriptorBackend) -> None:
    backend.close()
    backend.close()
    with pytest.raises(BackendError):
        backend.readv([memoryview(bytearray(512))], 0)
    with pytest.raises(BackendError):
        backend.flush()


@pytest.mark.parametrize("size", [0, -512, 1000])
def test_a_disk_has_whole_blocks(size: int) -> None:
    with pytest.raises(ValueError, match="multiple of 512"):
        MemoryBackend(size)


def test_memory_cannot_be_shrunk_under_its_users() -> None:
    with MemoryBackend(SIZE) as disk:
        assert disk.descriptor is not None
        with pytest.raises(PermissionError):
            os.ftruncate(disk.descriptor, 0)
