"""How a guest tells what its workload came to, so that `partvisor compare` can set it beside the same one elsewhere.

    with partition.measuring("4 KiB reads", transfer_bytes=4096) as load:
        for _ in range(1000):
            begun = monotonic_ns()
            disk.read(offset, 4096)
            load.latency.record(monotonic_ns() - begun)

Any guest can do so, with any device. Two events carry it: `guest.measuring` when the load is about to begin, and
`guest.measured` with the figures when it has ended. Behind both the guest waits until the platform has
read what each process of the machine has used, so set-up and checks of the guest are in no figure.
"""

import base64
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from bus.native import Channel, Histogram
from bus.trace import Hop

PATIENCE_S: Final = 5.0  # for the platform to hear and to look
PAUSE_S: Final = 0.005  # beside that
BEGINS: Final = "measuring"
ENDS: Final = "measured"
PAUSES: Final = "measuring_pauses"


class Records(Protocol):
    """Where a report goes: the machine's log."""

    def wait_until_read(self, patience_s: float) -> None: ...


class Reporter(Protocol):
    """What of a partition a report needs."""

    @property
    def console(self) -> Records: ...
    def report(self, kind: str, **fields: object) -> None: ...


class Load:
    """What is being measured. The guest fills it in."""

    __slots__ = ("latency", "mismatches", "operations")

    def __init__(self) -> None:
        self.latency: Final = Histogram()
        """Of each request, in ns."""
        self.operations: int | None = None
        """Set it where not each request was timed; otherwise there are as many as latencies."""
        self.mismatches = 0
        """Answers that were not what they had to be; one fails the whole comparison."""


def stamps_of(device: object) -> Callable[[Hop], None] | None:
    """How a load marks the beginning and the end of an exchange, by CALL and RETURN, on its device's channel.

    None: nobody traces this machine, or the device has no channel. A stamp costs more than the look at None.
    """
    channel = getattr(device, "channel", None)
    return channel.stamp if isinstance(channel, Channel) and channel.is_traced else None


@contextmanager
def measuring(partition: Reporter, name: str, *, transfer_bytes: int = 0, depth: int = 1) -> Iterator[Load]:
    """Measure one load, named so that it is known again. Nothing is reported if the block raises.

    Args:
        transfer_bytes: of one request, where there is such a number.
        depth: requests in flight.
    """
    load = Load()
    partition.report(BEGINS, name=name)
    _pause(partition)
    begun = time.monotonic()
    yield load
    seconds = time.monotonic() - begun
    latency = load.latency
    partition.report(
        ENDS,
        name=name,
        transfer_bytes=transfer_bytes,
        depth=depth,
        operations=latency.count if load.operations is None else load.operations,
        seconds=seconds,
        mismatches=load.mismatches,
        p50_ns=latency.percentile(50),
        p99_ns=latency.percentile(99),
        latency=base64.b85encode(zlib.compress(latency.pack(), 1)).decode(),
    )
    _pause(partition)


def _pause(partition: Reporter) -> None:
    """Until the platform has heard of it and looked at /proc, however busy the host is: it takes in the next record
    when it has dealt with the last one. The rest is for the case that it has not heard our name yet."""
    partition.report(PAUSES)
    partition.console.wait_until_read(PATIENCE_S)
    time.sleep(PAUSE_S)
