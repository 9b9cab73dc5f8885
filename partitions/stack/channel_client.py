"""Who opened a channel, and the buffers that it lent beside the rings: for servers that have to know."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from bus.native import Channel, GpaMap, ServiceBudget
from bus.packets import GpaRange
from bus.seam import Seam
from partitions.faults.server_agent import ServerAgent
from partitions.stack.offered_device import OfferedDevice
from partitions.stack.served_channel import ServedChannel, Service


@dataclass(frozen=True, slots=True)
class ChannelClient:
    partition: int  # the same as long as it lives
    buffer: Callable[[int], GpaRange]  # a GPADL of the channel, by its handle. LookupError: there is none
    ring: Callable[[], None] = lambda: (
        None
    )  # of a shared channel, once something was published or released there
    budget: ServiceBudget | None = None  # with which threads pay that work for it beside its channel's own


@runtime_checkable
class ClientDevice(Protocol):
    """An OfferedDevice whose servers are made for a client.

    They publish what is no answer to a request, too, so `Channel`'s journal is not for them: what was not released is
    there again for a successor, which finds out by itself what was done.
    """

    shares_channels: bool  # a server also sends on the channels of others: see ServedChannel

    def open_for(
        self, client: ChannelClient, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam
    ) -> Service: ...


class _Watch(Protocol):
    def serves(self, channel: ServedChannel) -> None: ...


@runtime_checkable
class MultiChannelDevice(Protocol):
    """An OfferedDevice whose guest may ask for sub-channels, each served as the first one is."""

    def open_queue(
        self, index: int, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam
    ) -> Service: ...


class SubChannelRequests(Protocol):
    """What a guest has asked for on a primary."""

    def tell(self, ask: Callable[[int], None]) -> None:
        """`ask(count)` from now on, each time that more are wanted; and now, if a predecessor may not have."""


@runtime_checkable
class MultiChannelService(Protocol):
    """Its guest asks here."""

    @property
    def sub_channel_requests(self) -> SubChannelRequests: ...


@runtime_checkable
class WatchedDevice(Protocol):
    """An OfferedDevice whose errors are counted: see partitions.hardware.watch."""

    watch: _Watch


def open_device(
    device: OfferedDevice,
    client: ChannelClient,
    served: ServedChannel,
    gpa_map: GpaMap,
    seam: Seam,
    faults: ServerAgent | None = None,
    sub_channel: int = 0,
) -> Service:
    """The VSP for an opened channel, with what is armed on its device. DeviceGone: it has failed for good."""
    if isinstance(device, WatchedDevice):
        device.watch.serves(served)
    if faults is None:
        return _open(device, client, served, served.channel, gpa_map, seam, sub_channel)
    of_device = faults.of(device.name)
    service = _open(device, client, served, *of_device.ends_for(served, gpa_map), seam, sub_channel)
    of_device.opened(served)
    return service


def _open(
    device: OfferedDevice,
    client: ChannelClient,
    served: ServedChannel,
    channel: Channel,
    gpa_map: GpaMap,
    seam: Seam,
    sub_channel: int,
) -> Service:
    if sub_channel:
        if not isinstance(device, MultiChannelDevice):
            raise LookupError(f"{device.name} has one channel")
        return device.open_queue(sub_channel, channel, gpa_map, served.record, seam)
    if isinstance(device, ClientDevice):
        client = replace(client, ring=served.ring, budget=served.budget)
        return device.open_for(client, channel, gpa_map, served.record, seam)
    return device.open(channel, gpa_map, served.record, seam)


def manner_of(device: OfferedDevice) -> dict[str, bool]:
    """How its channels are served, as ServedChannel has it."""
    if isinstance(device, ClientDevice):
        return {"journalled": False, "shared": device.shares_channels}
    return {}
