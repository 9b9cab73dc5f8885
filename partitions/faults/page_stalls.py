"""Pages whose next use waits, whoever uses them, the kernel on our behalf too: userfaultfd on shared memory.

The pages are taken out of this process's page table; who touches one then waits for whoever holds the userfaultfd. That
is a child that sleeps and ends: the kernel lets the waiting go on when the last descriptor is gone, and nobody here has
to run for it, who may himself be waiting with the interpreter's lock.

Needs vm.unprivileged_userfaultfd = 1 or root privileges, Linux 5.14, and no sandbox: that forbids the system call.
"""

import ctypes
import errno
import fcntl
import functools
import mmap
import os
import platform
import struct
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_SYSTEM_CALLS: Final = {"x86_64": 323, "aarch64": 282}
_UFFD_API: Final = 0xAA
_MINOR_SHMEM: Final = 1 << 10  # UFFD_FEATURE_MINOR_SHMEM
_REGISTER_MODE_MINOR: Final = 1 << 2
_MADV_DONTNEED: Final = 4
_API: Final = struct.Struct("<QQQ")  # api, features, ioctls
_REGISTER: Final = struct.Struct("<QQQQ")  # start, length, mode, ioctls


def _iowr(number: int, form: struct.Struct) -> int:
    return 3 << 30 | form.size << 16 | _UFFD_API << 8 | number


_UFFDIO_API: Final = _iowr(0x3F, _API)
_UFFDIO_REGISTER: Final = _iowr(0x00, _REGISTER)
_PAGE: Final = mmap.PAGESIZE

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.syscall.restype = ctypes.c_long


class PageStalls:
    """Of one device's channels. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sleepers: list[subprocess.Popen[bytes]] = []

    def stall(self, views: Sequence[memoryview], seconds: float) -> None:
        """From now on, and so long at most. OSError: this host or its sandbox does not let us; nothing is stalled."""
        descriptor = _open()
        try:
            for view in views:
                start, end = _pages_of(view)
                register = bytearray(_REGISTER.pack(start, end - start, _REGISTER_MODE_MINOR, 0))
                fcntl.ioctl(descriptor, _UFFDIO_REGISTER, register)
            sleeper = subprocess.Popen(["sleep", f"{seconds:.3f}"], pass_fds=(descriptor,))
            with self._lock:
                self._sleepers = [one for one in self._sleepers if one.poll() is None] + [sleeper]
            for view in views:
                start, end = _pages_of(view)
                _libc.madvise(
                    start, end - start, _MADV_DONTNEED
                )  # what is shared stays, but for our page table
        finally:
            os.close(descriptor)

    def end(self) -> None:
        with self._lock:
            sleepers, self._sleepers = self._sleepers, []
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()


@functools.cache
def refusal() -> str | None:
    """Why pages cannot be stalled in this process. One line, with what would help."""
    try:
        os.close(_open())
    except OSError as error:
        return (
            f'{error.strerror}: want vm.unprivileged_userfaultfd = 1 or root privileges, and sandbox = "off"'
        )
    return None


def _open() -> int:
    if _is_filtered():
        raise OSError(errno.EPERM, "a sandbox, which would end us for it")
    if (number := _SYSTEM_CALLS.get(platform.machine())) is None:
        raise OSError(errno.ENOSYS, f"no userfaultfd is known of {platform.machine()}")
    descriptor = int(_libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK))
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), f"userfaultfd: {os.strerror(ctypes.get_errno())}")
    try:
        fcntl.ioctl(descriptor, _UFFDIO_API, bytearray(_API.pack(_UFFD_API, _MINOR_SHMEM, 0)))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _is_filtered() -> bool:
    status = Path("/proc/self/status").read_text()
    return any(line.split() == ["Seccomp:", "2"] for line in status.splitlines())


def _pages_of(view: memoryview) -> tuple[int, int]:
    """First address, and the one behind the last page."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    return address // _PAGE * _PAGE, -(-(address + view.nbytes) // _PAGE) * _PAGE
