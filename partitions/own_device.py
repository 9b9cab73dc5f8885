"""A device that is this partition's own: its server, in a thread of this process, on a channel that nobody else has.

The same server, backend and client as anywhere else, so a program notices no difference. Nobody else has a page of the
channel, or a doorbell.
"""

import contextlib
import mmap
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from bus.memory import PAGE_BYTES
from bus.native import Channel, GpaMap, RingError, Waiting
from bus.packets import GpaRange
from bus.seam import Seam
from partitions.machine_plan import DevicePlan
from partitions.stack.channel_client import ChannelClient
from partitions.stack.saved_state import RECORD_BYTES
from partitions.stack.served_channel import Service
from partitions.storage.disk import Disk

if TYPE_CHECKING:
    from partitions.net.device import NetDevice
    from partitions.net.nic import Nic
    from partitions.storage.device import DiskDevice

FIRST_GPFN: Final = 0x1000  # of the private channel: no page of the partition's
_JOIN_S: Final = 2.0
_RECEIVE, _SEND = 1, 2  # GPADLs of a network's buffers
_ITSELF: Final = 0  # to its own driver: a network wants to know whom it serves
_Device = TypeVar("_Device", bound="DiskDevice | NetDevice")


@dataclass(frozen=True, slots=True)
class PrivateChannel:
    """The client's end, and what is behind its rings."""

    channel: Channel
    data: memoryview
    data_gpfn: int


@contextlib.contextmanager
def private_channel(
    open_service: Callable[[Channel, GpaMap, memoryview, Seam], Service],
    ring_bytes: int,
    data_bytes: int,
    waiting: str,
) -> Iterator[PrivateChannel]:
    """With its server, until the block ends.

    Args:
        ring_bytes, data_bytes: whole pages.
    """
    rings = 2 * (PAGE_BYTES + ring_bytes)
    memory = mmap.mmap(-1, rings + data_bytes)
    bells = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2)]
    ends = []
    for own in (0, 1):
        offsets = [0, PAGE_BYTES + ring_bytes]
        ends.append(
            Channel(
                memory,
                outgoing_offset=offsets[own],
                outgoing_bytes=ring_bytes,
                incoming_offset=offsets[1 - own],
                incoming_bytes=ring_bytes,
                signal_fd=bells[own],
                wait_fd=bells[1 - own],
                waiting=Waiting(waiting),
                reset=own == 0,
            )
        )
    client, server = ends
    pages, stop = GpaMap(), threading.Event()
    pages.add(FIRST_GPFN, memory)
    service = open_service(server, pages, memoryview(bytearray(RECORD_BYTES)), Seam())

    def serve() -> None:
        with contextlib.suppress(RingError):
            service.serve(stop)

    thread = threading.Thread(target=serve, name="own device", daemon=True)
    thread.start()
    try:
        yield PrivateChannel(client, memoryview(memory)[rings:], FIRST_GPFN + rings // PAGE_BYTES)
    finally:
        stop.set()
        client.close()
        server.close()
        thread.join(_JOIN_S)
        for bell in bells:
            os.close(bell)


class OwnDevices:
    """Of this partition, by name. Each is opened with its first use, and closed when the partition ends."""

    def __init__(
        self, tables: Mapping[str, Mapping[str, Any]], files: Mapping[str, int], emit: Callable[..., None]
    ) -> None:
        """
        Args:
            files: the descriptors that came with the birth; those of devices are ours.
            emit: where their errors are reported.
        """
        self._tables, self._files, self._emit = tables, files, emit
        self._opened: dict[str, DiskDevice | NetDevice] = {}
        self._one_at_a_time = threading.Lock()

    def __contains__(self, name: object) -> bool:
        return name in self._tables

    @contextlib.contextmanager
    def open_disk(self, name: str, ring_bytes: int, data_bytes: int, waiting: str | None) -> Iterator[Disk]:
        """BackendOpenError: what was handed over is no disk of that size."""
        from partitions.storage.device import DiskDevice

        device = self._device(name, DiskDevice)
        with (
            private_channel(device.open, ring_bytes, data_bytes, waiting or "adaptive") as opened,
            Disk(opened.channel, opened.data, opened.data_gpfn) as disk,
        ):
            yield disk

    @contextlib.contextmanager
    def open_net(
        self,
        name: str,
        ring_bytes: int,
        receive_bytes: int,
        send_bytes: int,
        waiting: str | None,
        **more: Any,
    ) -> Iterator["Nic"]:
        """`more`: of `Nic`."""
        from partitions.net.device import open_net
        from partitions.net.nic import Nic

        device = self._device(name, open_net)
        sizes = {_RECEIVE: receive_bytes, _SEND: send_bytes}
        rings = 2 * (PAGE_BYTES + ring_bytes)

        def buffer(gpadl: int) -> GpaRange:
            at = rings if gpadl == _RECEIVE else rings + receive_bytes
            if gpadl not in sizes:
                raise LookupError(f"no GPADL {gpadl:#x}")
            return GpaRange.contiguous(FIRST_GPFN + at // PAGE_BYTES, sizes[gpadl])

        def open_service(channel: Channel, pages: GpaMap, record: memoryview, seam: Seam) -> Service:
            return device.open_for(ChannelClient(_ITSELF, buffer), channel, pages, record, seam)

        with private_channel(
            open_service, ring_bytes, receive_bytes + send_bytes, waiting or "adaptive"
        ) as opened:
            lent = opened.data[:receive_bytes], opened.data[receive_bytes:]
            with contextlib.closing(Nic(opened.channel, lent[0], _RECEIVE, lent[1], _SEND, **more)) as nic:
                yield nic

    def _device(self, name: str, make: "Callable[[DevicePlan, None, int], _Device]") -> "_Device":
        """With its driver, whoever opens it first."""
        from partitions.hardware.watch import deliver_to

        deliver_to(self._emit)
        with self._one_at_a_time:
            if name not in self._opened:
                plan = DevicePlan.from_table(self._tables[name])
                self._opened[name] = make(plan, None, os.dup(self._files[f"device:{name}"]))
            return cast("_Device", self._opened[name])  # a name is of one kind

    def close(self) -> None:
        for device in self._opened.values():
            device.close()
        self._opened.clear()
