"""What RLIMIT_NPROC of a process is held against: its user's threads in its user namespace, and in those made in there.

A partition of an ordinary user's machine is in a namespace of its own, where few count. Before Linux 5.14 all of the
user's counted, wherever they were. Real root is exempt.

Source: Linux kernel/fork.c, copy_process; kernel/ucount.c, is_rlimit_overlimit; ioctl_ns(2).
"""

import contextlib
import fcntl
import os
import re
from typing import Final

import psutil

_COUNTED_BY_NAMESPACE_SINCE: Final = (5, 14)
_NS_GET_PARENT: Final = 0xB702


def counted_threads(pid: int) -> int:
    """Raises ProcessLookupError: it has ended."""
    try:
        user, home = psutil.Process(pid).uids().real, _namespaces_around(pid)[:1]
    except (psutil.NoSuchProcess, FileNotFoundError):
        raise ProcessLookupError(pid) from None
    total = 0
    for other in psutil.process_iter(["uids", "num_threads"]):
        uids = other.info["uids"]
        if uids is not None and uids.real == user and _is_counted(other.pid, home):
            total += other.info["num_threads"] or 1
    return total


def _is_counted(pid: int, home: list[int]) -> bool:
    if _kernel() < _COUNTED_BY_NAMESPACE_SINCE:
        return True
    with contextlib.suppress(OSError):  # it has ended, or hides: then it is none of the machine's
        return set(home) <= set(_namespaces_around(pid))
    return False


def _namespaces_around(pid: int) -> list[int]:
    """Its user namespace and those around it, by inode, as far as we may see."""
    found: list[int] = []
    namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    while True:
        found.append(os.fstat(namespace).st_ino)
        try:
            parent = fcntl.ioctl(namespace, _NS_GET_PARENT)
        except OSError:  # this is our own, or the host's
            return found
        finally:
            os.close(namespace)
        namespace = parent


def _kernel() -> tuple[int, ...]:
    return tuple(int(word) for word in re.findall(r"\d+", os.uname().release)[:2])
