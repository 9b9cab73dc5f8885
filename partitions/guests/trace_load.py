"""A guest of `partvisor bench trace`: exchanges over each device in turn, and stamps where it asks and is answered.

Beside the stamps it times each exchange by the clock, from just outside of them: so that a split can be held against a
measurement that knows nothing of it. Events: `trace_load`, one a device.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from bus.guids import SCSI
from bus.native import Channel, monotonic_ns
from bus.trace import Hop
from partitions.child import DISK_DATA_BYTES, ECHO_DATA_BYTES, Partition
from partitions.custom.client import RingCustom
from partitions.custom.wire import CUSTOM_INTERFACE
from partitions.storage.disk import Disk

_SLOTS: Final = 1
_PAUSE_S: Final = 0.002  # before the first exchange: both sides are at rest


def main(partition: Partition) -> None:
    """args: devices = [names], exchanges = count for each, payload_bytes, kind = "echo" or "disk"."""
    args = partition.args
    size, count = int(args["payload_bytes"]), int(args["exchanges"])
    for name in args["devices"]:
        opening = _echo(partition, name, size) if name.startswith("echo") else _disk(partition, name, size)
        with opening as (channel, exchange):
            time.sleep(_PAUSE_S)
            took = _run(channel, exchange, count)
        took.sort()
        partition.report(
            "trace_load",
            device=name,
            exchanges=count,
            p50_ns=took[len(took) // 2],
            mean_ns=round(sum(took) / len(took)),
        )


def _run(channel: Channel, exchange: Callable[[], None], count: int) -> list[int]:
    stamp, now, took = channel.stamp, monotonic_ns, []
    for _ in range(count):
        before = now()
        stamp(Hop.CALL)
        exchange()
        stamp(Hop.RETURN)
        took.append(now() - before)
    return took


@contextmanager
def _echo(partition: Partition, name: str, size: int) -> Iterator[tuple[Channel, Callable[[], None]]]:
    payload = bytes(size)
    with partition.open_channel(name, CUSTOM_INTERFACE, ECHO_DATA_BYTES) as opened:
        ring_bytes = partition.devices[name]["ring_bytes"]
        echo = RingCustom(opened.channel, ring_bytes, opened.data, opened.data_gpfn)

        def exchange() -> None:
            if echo.exchange_in_band(payload) != payload:
                raise ValueError("the echo is not what was said")

        yield opened.channel, exchange


@contextmanager
def _disk(partition: Partition, name: str, size: int) -> Iterator[tuple[Channel, Callable[[], None]]]:
    with (
        partition.open_channel(name, SCSI, DISK_DATA_BYTES) as opened,
        Disk(opened.channel, opened.data, opened.data_gpfn) as disk,
        disk.open_queue(_SLOTS, size) as queue,
    ):

        def exchange() -> None:
            queue.read(0)

        yield opened.channel, exchange
