"""A host's block device as a disk: a loop device, where this user may make one."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from partitions.storage.backends import BackendOpenError, FileBackend
from partitions.storage.overlay import OverlayBackend

SIZE = 4 << 20


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    image = tmp_path / "image"
    image.write_bytes(bytes(SIZE))
    if shutil.which("losetup") is None:
        pytest.skip("no losetup here")
    made = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device for this user: {made.stderr.strip()}")
    place = Path(made.stdout.strip())
    try:
        yield place
    finally:
        subprocess.run(["losetup", "-d", place], check=True)


def test_it_has_its_own_size_and_keeps_what_is_written(device: Path, tmp_path: Path) -> None:
    with FileBackend.open(device) as disk:
        assert disk.size_bytes == SIZE
        disk.writev([memoryview(b"w" * 1024)], 512)
        disk.discard(1024, 512)
        disk.flush()
    assert (tmp_path / "image").read_bytes()[:2048] == bytes(512) + b"w" * 512 + bytes(1024)
    with pytest.raises(BackendOpenError, match="size is"):
        FileBackend.open(device, 2 * SIZE)


def test_it_can_be_the_base_of_an_overlay(device: Path) -> None:
    memory = os.memfd_create("overlay", os.MFD_CLOEXEC)
    disk = OverlayBackend(FileBackend.open(device, read_only=True), memory, volatile=True)
    disk.writev([memoryview(b"o" * 512)], 0)
    found = bytearray(1024)
    disk.readv([memoryview(found)], 0)
    assert found == b"o" * 512 + bytes(512)
    disk.close()
