"""What holds a disk's bytes: a file, a block device, or memory.

A backend moves whole blocks between guest pages and the medium; the target has already checked every
range. All of today's backends sit on one descriptor, so that the native path can do the very same preadv and
pwritev by itself.
"""

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol, Self

BLOCK_BYTES: Final = 512
_IOV_MAX: Final = 1024  # Linux UIO_MAXIOV
_FALLOC_KEEP_SIZE: Final = 0x01
_FALLOC_PUNCH_HOLE: Final = 0x02
_ZEROS: Final = bytes(1 << 20)  # written in pieces where a medium can't punch holes
_NO_HOLES: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EINVAL)


class BackendError(Exception):
    """The medium refused or failed. Branch on `errno`, which is the kernel's; never on the text."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(number, text)
        self.errno = number

    def __str__(self) -> str:
        return f"{self.args[1]} ({errno.errorcode.get(self.errno, self.errno)})"


class BackendOpenError(BackendError):
    """A disk can't be opened as configured. The text ends in a one-line remedy."""


class BlockBackend(Protocol):
    """Offsets and lengths are whole blocks inside `size_bytes`.

    Any number of threads, but `close` comes after the last call of all others has returned.
    """

    @property
    def size_bytes(self) -> int: ...
    @property
    def block_bytes(self) -> int: ...
    @property
    def read_only(self) -> bool: ...
    @property
    def can_discard(self) -> bool:
        """True: `discard` works, and what was discarded reads as zeros."""
        ...

    @property
    def descriptor(self) -> int | None:
        """Where preadv and pwritev at the same offsets do the same; None: only the methods will do."""
        ...

    def readv(self, views: Sequence[memoryview], offset: int) -> None:
        """Fill all views from `offset` on, or raise BackendError with their content undefined."""
        ...

    def writev(self, views: Sequence[memoryview], offset: int) -> None:
        """Write all views, or raise BackendError with the blocks' content undefined."""
        ...

    def flush(self) -> None:
        """Return once all that was written before is on the medium."""
        ...

    def discard(self, offset: int, length: int) -> None: ...
    def close(self) -> None: ...


class DescriptorBackend:
    """Bytes [0, size_bytes) of an open descriptor, which it then owns."""

    can_discard: Final = True

    def __init__(
        self, descriptor: int, size_bytes: int, *, block_bytes: int = BLOCK_BYTES, read_only: bool = False
    ) -> None:
        if size_bytes <= 0 or size_bytes % block_bytes:
            raise ValueError(f"size_bytes {size_bytes}: want a positive multiple of {block_bytes}")
        self._descriptor: int | None = descriptor
        self.size_bytes: Final = size_bytes
        self.block_bytes: Final = block_bytes
        self.read_only: Final = read_only
        self._punches_holes = True

    @property
    def descriptor(self) -> int | None:
        return self._descriptor

    def _open_descriptor(self) -> int:
        if self._descriptor is None:
            raise BackendError(errno.EBADF, "the disk is closed")
        return self._descriptor

    def readv(self, views: Sequence[memoryview], offset: int) -> None:
        self._move(os.preadv, views, offset, "read")

    def writev(self, views: Sequence[memoryview], offset: int) -> None:
        if self.read_only:
            raise BackendError(errno.EROFS, "the disk is read-only")
        self._move(os.pwritev, views, offset, "write")

    def _move(
        self,
        call: Callable[[int, Sequence[memoryview], int], int],
        views: Sequence[memoryview],
        offset: int,
        verb: str,
    ) -> None:
        """The kernel may move less than asked (a signal, a full medium): go on until done or told why not."""
        descriptor = self._open_descriptor()
        remaining = [view for view in views if view.nbytes]
        while remaining:
            try:
                moved = call(descriptor, remaining[:_IOV_MAX], offset)
            except OSError as error:
                raise BackendError(error.errno or errno.EIO, f"{verb} at {offset}") from error
            if moved == 0:  # the file became shorter than its disk
                raise BackendError(errno.EIO, f"{verb} at {offset}: the file ends there")
            offset += moved
            while remaining and moved >= remaining[0].nbytes:
                moved -= remaining.pop(0).nbytes
            if moved:
                remaining[0] = remaining[0][moved:]

    def flush(self) -> None:
        try:
            os.fdatasync(self._open_descriptor())
        except OSError as error:
            if error.errno != errno.EINVAL:  # a descriptor with nothing behind it to synchronize
                raise BackendError(error.errno or errno.EIO, "flush") from error

    def discard(self, offset: int, length: int) -> None:
        """Give the space back where the medium can; either way the range reads as zeros afterwards."""
        if self.read_only:
            raise BackendError(errno.EROFS, "the disk is read-only")
        if self._punches_holes:
            number = _punch_hole(self._open_descriptor(), offset, length)
            if number == 0:
                return
            if number not in _NO_HOLES:
                raise BackendError(number, f"discard at {offset}")
            self._punches_holes = False
        zeros = memoryview(_ZEROS)
        for start in range(offset, offset + length, len(_ZEROS)):
            self.writev([zeros[: offset + length - start]], start)

    def close(self) -> None:
        """Idempotent."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        """Whoever forgets it must not keep its descriptor from the process for ever."""
        if getattr(self, "_descriptor", None) is not None:
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FileBackend(DescriptorBackend):
    """A disk image or a block device."""

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        size_bytes: int | None = None,
        *,
        create: bool = False,
        read_only: bool = False,
        block_bytes: int = BLOCK_BYTES,
    ) -> Self:
        """Open an image, or with `create` make a sparse one of `size_bytes` where there is none.

        A file longer than `size_bytes` keeps its tail untouched; None takes the whole file.

        Raises:
            BackendOpenError: missing, not permitted, not a file or block device, or too short. Nothing was
                created or changed.
        """
        place = Path(path)
        flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
        if create and not read_only:
            if size_bytes is None:
                raise ValueError("a disk to be created needs a size")
            if not place.exists():
                _create_sparse(place, size_bytes)
        try:
            descriptor = os.open(place, flags)
        except OSError as error:
            raise open_error(place, error, size_bytes) from error
        try:
            return cls.adopt(
                descriptor, size_bytes, read_only=read_only, block_bytes=block_bytes, name=str(place)
            )
        except BaseException:
            os.close(descriptor)
            raise

    @classmethod
    def adopt(
        cls,
        descriptor: int,
        size_bytes: int | None = None,
        *,
        read_only: bool = False,
        block_bytes: int = BLOCK_BYTES,
        name: str = "disk",
    ) -> Self:
        """Take over an open descriptor, as one that came with a partition's birth. See `open` for the rest.

        On BackendOpenError the descriptor is still the caller's.
        """
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise BackendOpenError(errno.ENOTBLK, f"{name}: not a file or block device; name a disk image")
        writable = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        if not writable and not read_only:
            raise BackendOpenError(errno.EROFS, f"{name}: opened for reading only; set read_only = true")
        there = os.lseek(descriptor, 0, os.SEEK_END)
        wanted = there if size_bytes is None else size_bytes
        if wanted <= 0 or wanted % block_bytes:
            raise BackendOpenError(
                errno.EINVAL,
                f"{name}: {wanted} bytes is no disk; want a multiple of {block_bytes}: "
                f"truncate -s {max(block_bytes, wanted + -wanted % block_bytes)} {name}",
            )
        if there < wanted:
            raise BackendOpenError(
                errno.EINVAL, f"{name}: {there} bytes, but size is {wanted}: truncate -s {wanted} {name}"
            )
        return cls(descriptor, wanted, block_bytes=block_bytes, read_only=read_only)


class MemoryBackend(DescriptorBackend):
    """A disk in anonymous memory that can't change its size; gone when its last holder has closed it."""

    def __init__(
        self, size_bytes: int, *, block_bytes: int = BLOCK_BYTES, descriptor: int | None = None
    ) -> None:
        """`descriptor`: of memory that somebody else keeps, too, so that the disk outlives this process."""
        if size_bytes <= 0 or size_bytes % block_bytes:
            raise ValueError(f"size_bytes {size_bytes}: want a positive multiple of {block_bytes}")
        if descriptor is not None:
            super().__init__(descriptor, size_bytes, block_bytes=block_bytes)
            return
        descriptor = os.memfd_create("disk", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, size_bytes)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        except OSError:
            os.close(descriptor)
            raise
        super().__init__(descriptor, size_bytes, block_bytes=block_bytes)


def _create_sparse(place: Path, size_bytes: int) -> None:
    """Appears with its full size or not at all, even if we die half-way."""
    partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise open_error(place, error, size_bytes) from error
    try:
        try:
            os.ftruncate(descriptor, size_bytes)
        finally:
            os.close(descriptor)
        os.link(partial, place)
    except FileExistsError:  # someone else was faster: theirs is checked like any other
        pass
    except OSError as error:
        raise open_error(place, error, size_bytes) from error
    finally:
        partial.unlink()


def open_error(place: Path, error: OSError, size_bytes: int | None) -> BackendOpenError:
    number = error.errno or errno.EIO
    if number == errno.ENOENT and not place.parent.is_dir():
        remedy = f"no such directory: mkdir -p {place.parent}"
    elif number == errno.ENOENT:
        remedy = f"no such file: truncate -s {size_bytes or '1G'} {place}"
    elif number in (errno.EACCES, errno.EPERM):
        remedy = f"not permitted: chmod u+rw {place}, or set read_only = true"
    elif number == errno.EROFS:
        remedy = "on a read-only file system: set read_only = true"
    elif number == errno.EISDIR:
        remedy = "a directory: name a disk image inside it"
    else:
        remedy = f"{os.strerror(number)}: choose another path"
    return BackendOpenError(number, f"{place}: {remedy}")


_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def _punch_hole(descriptor: int, offset: int, length: int) -> int:
    """0 or an errno. Python has no fallocate with flags."""
    if _fallocate(descriptor, _FALLOC_KEEP_SIZE | _FALLOC_PUNCH_HOLE, offset, length) == 0:
        return 0
    return ctypes.get_errno()
