"""Trace memory on its way: a file of a partition's birth, under a name that no config can give.

The platform makes one for each process that is traced. Guests get theirs with their files; those of driver partitions
the root keeps, for each of their processes gets it anew.
"""

from collections.abc import Mapping

from bus import tracing
from runtime.abi import TRACE_FILE

_kept: dict[str, int] = {}  # by driver partition


def keep(named: Mapping[str, int]) -> None:
    """Descriptors to be handed on."""
    _kept.update(named)


def of_driver(name: str) -> list[int]:
    """None, or one."""
    return [_kept[name]] if name in _kept else []


def take(files: dict[str, int]) -> None:
    """Take the trace out of a birth's files, and begin to stamp."""
    if (fd := files.pop(TRACE_FILE, None)) is not None:
        tracing.attach(fd)
