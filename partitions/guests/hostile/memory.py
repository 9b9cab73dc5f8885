"""Attacks on memory that is shared: whoever has it mapped would get SIGBUS where it ends."""

import ctypes
import fcntl
import mmap
import os
import stat
from collections.abc import Callable
from typing import Final

from partitions.guests.hostile.scene import Scene
from partitions.guests.hostile.tally import Tally

_libc = ctypes.CDLL(None, use_errno=True)
_PAGE: Final = mmap.PAGESIZE
_COLLAPSE_RANGE, _INSERT_RANGE = 0x08, 0x20  # linux/falloc.h


def shrunk_memory(scene: Scene, tally: Tally) -> None:
    """Of every memfd among its descriptors: SynIC pages, its channel's rings and buffers, what it was lent."""
    scene.kept_door()
    memories = _shared_memories()
    sizes = {fd: os.fstat(fd).st_size for fd in memories}
    for fd, size in sizes.items():
        attempts: dict[str, Callable[[], object]] = {
            "cut to nothing": lambda: os.ftruncate(fd, 0),  # noqa: B023
            "cut by a page": lambda: os.ftruncate(fd, size - _PAGE),  # noqa: B023
            "grown": lambda: os.ftruncate(fd, size + _PAGE),  # noqa: B023
            "sealed against writing": lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),  # noqa: B023
            "unsealed": lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0),  # noqa: B023
            "appended to": lambda: _allocate(fd, 0, size, _PAGE),  # noqa: B023
            "collapsed": lambda: _allocate(fd, _COLLAPSE_RANGE, 0, _PAGE),  # noqa: B023
            "spread": lambda: _allocate(fd, _INSERT_RANGE, 0, _PAGE),  # noqa: B023
        }
        for name, attempt in attempts.items():
            try:
                attempt()
            except OSError as error:
                tally.met("EPERM" if error.errno in (1, 95) else "EINVAL")  # EOPNOTSUPP: no such operation
            else:
                tally.made += 1
                tally.breach(f"a memory of {size} bytes was {name}")
        if (now := os.fstat(fd).st_size) != size:
            tally.breach(f"a memory of {size} bytes has {now}")
    tally.evidence = f"{len(memories)} memories of {sorted(sizes.values())[-3:]} bytes at most, as before"


def _shared_memories() -> list[int]:
    """Every memfd among our descriptors, sealed or not."""
    found = []
    for fd in range(3, 256):
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                continue
            fcntl.fcntl(fd, fcntl.F_GET_SEALS)  # EINVAL where there can be none: it is no memory
            found.append(fd)
        except OSError:
            continue
    return found


def _allocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")
