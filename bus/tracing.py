"""Whether this process traces: set once, early in its life, before it opens a channel."""

import mmap
import os
from dataclasses import dataclass
from typing import Final

from bus.native import Trace
from bus.trace import SERVER, channel_number, port_number

_trace: Trace | None = None


@dataclass(frozen=True, slots=True)
class Tracing:
    """What a Channel takes: the process's trace, and the channel's number in it."""

    trace: Trace | None
    channel: int


NOT_TRACED: Final = Tracing(None, 0)


def attach(fd: int) -> Trace:
    """Stamp into this memory from now on. The descriptor is closed. ValueError, OSError: it is no trace."""
    global _trace
    try:
        _trace = Trace(mmap.mmap(fd, os.fstat(fd).st_size))
    finally:
        os.close(fd)
    return _trace


def attached() -> bool:
    return _trace is not None


def of_guest(partition: int, relid: int, port: int) -> Tracing:
    """For the guest's end of a channel. `port`: of that partition, where the channel's interrupts arrive."""
    return _named(
        channel_number(partition, relid), port_number(partition, port), f"guest {partition}.{relid}"
    )


def of_server(guest: int, relid: int, owner: int, port: int, device: str) -> Tracing:
    """For the end of who serves it. `owner`: the partition that does; `port` is its; `device`: what is behind it."""
    text = f"server of {guest}.{relid} {device}"
    return _named(channel_number(guest, relid) | SERVER, port_number(owner, port), text)


def _named(channel: int, port: int, text: str) -> Tracing:
    if _trace is not None:
        _trace.name(channel, port, text)
    return Tracing(_trace, channel)
