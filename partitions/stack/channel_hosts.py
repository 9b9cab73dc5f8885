"""Who serves the channels of one guest: this process, or the driver partitions of its devices."""

from collections.abc import Iterator

from partitions.stack.channel_host import ChannelHost, ChannelListener, HostedDevice
from partitions.stack.offered_device import OfferedDevice
from partitions.stack.own_channels import OwnChannels
from partitions.stack.served_channel import ServedChannel
from partitions.stack.stack_resources import RootResources


class ChannelHosts:
    def __init__(self, root: RootResources, listener: ChannelListener) -> None:
        """`listener`: the guest's bus, which each of them tells what becomes of its channels."""
        self._listener = listener
        self._own = OwnChannels(root, listener)
        self._elsewhere: dict[str, ChannelHost] = {}  # by name of the device

    def __iter__(self) -> Iterator[ChannelHost]:
        yield self._own
        yield from self._elsewhere.values()

    def of(self, device: OfferedDevice) -> ChannelHost:
        """From here on it knows whom to tell that the device is no more."""
        if not isinstance(device, HostedDevice):
            return self._own
        if device.name not in self._elsewhere:
            self._elsewhere[device.name] = device.make_host(self._listener)
        return self._elsewhere[device.name]

    def forget(self, device: str) -> None:
        """It is gone, and closed. Another one of its name may be in another place."""
        self._elsewhere.pop(device, None)

    def workers(self) -> list[ServedChannel]:
        """The channels that this process serves."""
        return [channel for host in self for channel in host.workers()]
