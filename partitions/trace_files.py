"""Trace memory on its way: a file of a partition's birth, under a name that no config can give.

The platform makes one for each process that is traced. Guests get theirs with their files; those of driver partitions
the root keeps, for each of their processes gets it anew. A successor of the root is born with the same: the trace goes
on, as another generation's.
"""

import os
from typing import Final

from bus import tracing
from runtime.abi import TRACE_FILE

_ROOT: Final = "root"
_kept: dict[str, int] = {}  # by driver partition


def begin(named: dict[str, int]) -> None:
    """The root's: stamp into its own, and keep the others, to be handed on. After a reboot it is told twice."""
    own = named.pop(_ROOT, None)
    if own is not None and not tracing.attached():
        tracing.attach(own)
    elif own is not None:
        os.close(own)
    for name, fd in named.items():
        if _kept.setdefault(name, fd) != fd:
            os.close(fd)


def of_driver(name: str) -> list[int]:
    """None, or one."""
    return [_kept[name]] if name in _kept else []


def take(files: dict[str, int]) -> None:
    """Take the trace out of a birth's files, and begin to stamp."""
    if (fd := files.pop(TRACE_FILE, None)) is not None:
        tracing.attach(fd)
