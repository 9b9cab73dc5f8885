"""The file of a saved partition: what it was, whose disks it had, and what its program wants to know when it goes on.

    head    8 bytes "PVSAVED\\0", u32 version, u32 length of the description, u32 CRC-32 of the description
    description   a msgpack map, see Description
    pages   those of the state that are not all zero, 4096 bytes each, in their order

Little-endian. A reader trusts nothing: every length is bounded before anything of that length is read, and what does
not fit is a SavedPartitionError. It appears with all of its content or not at all.
"""

import os
import struct
import zlib
from pathlib import Path
from typing import Annotated, BinaryIO, Final

import msgspec
from msgspec import Meta

MAGIC: Final = b"PVSAVED\0"
VERSION: Final = 1
PAGE_BYTES: Final = 4096
STATE_BYTES_MAX: Final = 16 << 20  # of one program
DESCRIPTION_BYTES_MAX: Final = 1 << 20
_HEAD: Final = struct.Struct("<8sIII")
_PAGES_MAX: Final = STATE_BYTES_MAX // PAGE_BYTES

assert _HEAD.size == 20

_Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class SavedPartitionError(Exception):
    """It is no such file, or not a whole one, or not of a version that this program knows. One line for the user."""


class DiskIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A disk as it stood: its blocks are not copied, and they must not have changed since."""

    device: str
    path: str
    size_bytes: _Count
    inode: _Count
    host_device: _Count
    changed_ns: _Count  # the file's time of modification: each write is a generation

    @classmethod
    def of(cls, device: str, path: str) -> "DiskIdentity":
        """After a flush. OSError: it is not there."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        return cls(device, path, status.st_size, status.st_ino, status.st_dev, status.st_mtime_ns)


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is in the file beside the state's pages."""

    machine: str
    partition: str
    program: str
    saved_ns: _Count  # since 1970
    disks: Annotated[list[DiskIdentity], Meta(max_length=64)]
    state_bytes: Annotated[int, Meta(ge=0, le=STATE_BYTES_MAX)]
    state_crc32: Annotated[int, Meta(ge=0, le=2**32 - 1)]
    pages: Annotated[list[Annotated[int, Meta(ge=0, lt=_PAGES_MAX)]], Meta(max_length=_PAGES_MAX)]


class SavedPartition(msgspec.Struct, frozen=True):
    description: Description
    state: bytes


def write(
    path: Path,
    machine: str,
    partition: str,
    program: str,
    saved_ns: int,
    disks: list[DiskIdentity],
    state: bytes,
) -> int:
    """The file's size. OSError: nothing was written, and what stood there before still does."""
    padded = state.ljust(-(-len(state) // PAGE_BYTES) * PAGE_BYTES, b"\0")
    pages = [padded[at : at + PAGE_BYTES] for at in range(0, len(padded), PAGE_BYTES)]
    kept = [number for number, page in enumerate(pages) if any(page)]
    description = msgspec.msgpack.encode(
        Description(machine, partition, program, saved_ns, disks, len(state), zlib.crc32(state), kept)
    )
    head = _HEAD.pack(MAGIC, VERSION, len(description), zlib.crc32(description))
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(head + description)
            for number in kept:
                file.write(pages[number])
            file.flush()
            os.fsync(descriptor)
            size = file.tell()
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)  # its name, too
    finally:
        os.close(folder)
    return size


def load(path: Path) -> SavedPartition:
    """Raises SavedPartitionError."""
    try:
        with path.open("rb") as file:
            return read(file)
    except OSError as error:
        raise SavedPartitionError(f"{path}: {error.strerror}") from error
    except SavedPartitionError as error:
        raise SavedPartitionError(f"{path}: {error}") from error


def read(file: BinaryIO) -> SavedPartition:
    """Raises SavedPartitionError."""
    head = _exactly(file, _HEAD.size)
    magic, version, length, crc32 = _HEAD.unpack(head)
    if magic != MAGIC:
        raise SavedPartitionError("not a saved partition")
    if version != VERSION:
        raise SavedPartitionError(f"of version {version}; this program knows {VERSION}")
    if length > DESCRIPTION_BYTES_MAX:
        raise SavedPartitionError(f"a description of {length} bytes; at most {DESCRIPTION_BYTES_MAX}")
    data = _exactly(file, length)
    if zlib.crc32(data) != crc32:
        raise SavedPartitionError("its description has changed since it was written")
    try:
        description = msgspec.msgpack.decode(data, type=Description)
    except (ValueError, RecursionError) as error:  # DecodeError, ValidationError
        raise SavedPartitionError(f"a description that is none: {error}") from error
    count = -(-description.state_bytes // PAGE_BYTES)
    if description.pages != sorted({number for number in description.pages if number < count}):
        raise SavedPartitionError("pages out of order, or beyond the state")
    padded = bytearray(count * PAGE_BYTES)
    for number in description.pages:
        padded[number * PAGE_BYTES : (number + 1) * PAGE_BYTES] = _exactly(file, PAGE_BYTES)
    if file.read(1):
        raise SavedPartitionError("more bytes than it says")
    state = bytes(padded[: description.state_bytes])
    if zlib.crc32(state) != description.state_crc32 or any(padded[description.state_bytes :]):
        raise SavedPartitionError("its state has changed since it was written")
    return SavedPartition(description, state)


def changed_disks(disks: list[DiskIdentity]) -> list[str]:
    """Those that are not as they were, each in words."""
    changed = []
    for disk in disks:
        try:
            now = DiskIdentity.of(disk.device, disk.path)
        except OSError as error:
            changed.append(f"{disk.device} ({disk.path}: {error.strerror})")
            continue
        if now != disk:
            changed.append(f"{disk.device} ({disk.path})")
    return changed


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise SavedPartitionError(f"cut off: {len(data)} bytes where {size} should be")
    return data
