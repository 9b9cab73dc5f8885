"""Saved partitions on disk: written as a stream, whole or not at all; and read, into memory that nobody changes.

Of a partition's memory only pages that are not all zero are written, and holes are not even looked at.
"""

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from runtime.abi import PAGE_BYTES
from runtime.machine.saved_partition import (
    RUN_PAGES_MAX,
    Description,
    DiskIdentity,
    SavedPartitionError,
    SavedReader,
    SavedWriter,
)

_CHUNK_BYTES: Final = RUN_PAGES_MAX * PAGE_BYTES
_ZERO_PAGE: Final = bytes(PAGE_BYTES)
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def write(
    path: Path,
    description: Description,
    state: bytes,
    memory: Sequence[int] = (),
    on_progress: Callable[[int, int], None] = lambda done, of: None,
    look: Callable[[], None] = lambda: None,
) -> int:
    """The file's size in bytes. It appears with all of its content, in the place of what stood there, or not at all.

    Args:
        memory: descriptors, of the description's own slots in their order.
        on_progress: bytes of the memory that have been looked at, of how many; for each chunk.
        look: for each chunk, and before the file gets its name; what it raises ends this.

    Raises OSError, SavedPartitionError, what `look` raises: nothing was written.
    """
    own = [place for place, slot in enumerate(description.hypervisor.slots) if slot.own]
    sizes = [description.hypervisor.slots[place].pages * PAGE_BYTES for place in own]
    total, before = sum(sizes), 0
    if path.exists() and not path.is_file():  # it would be replaced, be it a terminal or a disk
        raise SavedPartitionError("it is no file")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            writer = SavedWriter(file, description, state)
            for place, fd, size in zip(own, memory, sizes, strict=True):
                for first, pages in runs_of(fd, size):
                    look()
                    writer.run(place, first, pages)
                    on_progress(before + first * PAGE_BYTES, total)
                before += size
            writer.end()
            file.flush()
            os.fsync(descriptor)
        look()
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)  # its name, too
    finally:
        os.close(folder)
    return writer.size_bytes


def runs_of(fd: int, size_bytes: int) -> Iterator[tuple[int, bytes]]:
    """(first page, pages) of memory that is not all zero."""
    at = 0
    while at < size_bytes:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole from here on
            return
        hole = min(os.lseek(fd, at, os.SEEK_HOLE), size_bytes)
        while at < hole:
            data = os.pread(fd, min(_CHUNK_BYTES, hole - at), at)
            if len(data) % PAGE_BYTES or not data:
                raise OSError("memory that cannot be read")
            yield from _runs_in(data, at // PAGE_BYTES)
            at += len(data)


def _runs_in(data: bytes, first: int) -> Iterator[tuple[int, bytes]]:
    begin: int | None = None
    for at in range(0, len(data), PAGE_BYTES):
        if data[at : at + PAGE_BYTES] == _ZERO_PAGE:
            if begin is not None:
                yield first + begin // PAGE_BYTES, data[begin:at]
            begin = None
        elif begin is None:
            begin = at
    if begin is not None:
        yield first + begin // PAGE_BYTES, data[begin:]


def load(path: Path) -> SavedReader:
    """All of it is read and checked. Raises SavedPartitionError."""
    try:
        with path.open("rb") as file:
            return _checked(file)
    except OSError as error:
        raise SavedPartitionError(f"{path}: {error.strerror}") from error
    except SavedPartitionError as error:
        raise SavedPartitionError(f"{path}: {error}") from error


def _checked(file: BinaryIO) -> SavedReader:
    reader = SavedReader(file)
    for _ in reader.runs():
        pass
    return reader


def image(path: Path, look: Callable[[], None] = lambda: None) -> tuple[Description, int]:
    """What the file says, and a sealed copy for the partition that goes on, which is not told about the host: the
    names of its disks' files are left out. The descriptor is the caller's. Raises SavedPartitionError, and what `look`
    raises, which is called for each chunk."""
    descriptor = os.memfd_create("restored", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with path.open("rb") as file, open(descriptor, "wb", closefd=False) as copy:
            reader = SavedReader(file)
            described = msgspec.structs.replace(reader.description, machine="", disks=[])
            writer = SavedWriter(copy, described, reader.state)
            for slot, first, pages in reader.runs():
                look()
                writer.run(slot, first, pages)
            writer.end()
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        os.close(descriptor)
        raise SavedPartitionError(f"{path}: {error.strerror}") from error
    except SavedPartitionError as error:
        os.close(descriptor)
        raise SavedPartitionError(f"{path}: {error}") from error
    except BaseException:
        os.close(descriptor)
        raise
    return reader.description, descriptor


def identity_of(device: str, path: str) -> DiskIdentity:
    """As it stands after a flush. OSError: it is not there."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return DiskIdentity(device, path, status.st_size, status.st_ino, status.st_dev, status.st_mtime_ns)


def changed_disks(disks: list[DiskIdentity]) -> list[str]:
    """Those that are not as they were, each in words."""
    changed = []
    for disk in disks:
        try:
            now = identity_of(disk.device, disk.path)
        except OSError as error:
            changed.append(f"{disk.device} ({disk.path}: {error.strerror})")
            continue
        if now != disk:
            changed.append(f"{disk.device} ({disk.path})")
    return changed
