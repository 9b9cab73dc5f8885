"""Where the channels of a guest are served: what its bus asks for, and what it is told.

There are two kinds: OwnChannels, threads of this process (partitions.stack.own_channels), and DriverChannels, in a
driver partition (partitions.drivers.channels). A bus does not know which it talks to.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from bus.channel_actions import OpenChannel
from partitions.machine_plan import AttachmentPlan
from partitions.stack.guest_memory import GuestMemory
from partitions.stack.offered_device import OfferedDevice
from partitions.stack.served_channel import ServedChannel
from partitions.stack.vmbus_ports import FlagAllocator


@dataclass(frozen=True, slots=True)
class Opening:
    """One opening of one channel, as it is recorded before anything is done for it."""

    number: int  # no other opening of this machine ever has it
    flag: int  # in the SINT 2 of who serves it
    connection_id: int  # that the guest signals

    def to_state(self) -> list[int]:
        return [self.number, self.flag, self.connection_id]


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """A channel to be served, with all that its host needs to know."""

    action: OpenChannel
    opening: Opening
    device: OfferedDevice
    plan: AttachmentPlan
    sub_channel: int = 0  # 0: the device's first

    @property
    def relid(self) -> int:
        return self.action.relid


class ChannelListener(Protocol):
    """The bus of the guest. Called in the stack's own task; news of an opening that is no more are ignored."""

    @property
    def partition(self) -> int: ...
    @property
    def name(self) -> str: ...
    def opened(self, relid: int, number: int, status: int) -> None: ...
    def closed(self, relid: int, number: int) -> None: ...
    def lost(self, relid: int, number: int, failed: bool, reason: str) -> None:
        """It serves no more: the guest broke its ring, or the service failed for good."""

    def asked_for_sub_channels(self, relid: int, number: int, count: int) -> None:
        """Its guest wants so many in all; asked twice, it has them once."""

    def withdraw(self, device: str, reason: str) -> None:
        """The device is no more, for good."""


class ChannelHost(Protocol):
    """Serves the channels of one guest that belong here."""

    @property
    def memory(self) -> GuestMemory: ...
    @property
    def flags(self) -> FlagAllocator: ...
    def open(self, request: OpenRequest) -> int | None:
        """Its status for the guest; None: the listener will be told.

        HypercallError, LookupError, ValueError, OSError: it could not; nothing is left of it.
        """

    def close(self, relid: int, opening: Opening) -> None:
        """Stop it, give its ports back, tell the listener. Also one that only a predecessor had."""

    def bury(self, relid: int, opening: Opening) -> None:
        """The guest died about when our predecessor did: give back what it had here."""

    def adopt(self, request: OpenRequest) -> None:
        """A channel that is open, from a predecessor. Raises HypercallError: its guest is gone with it."""

    def waits_to_be_served(self, relid: int) -> bool:
        """Whether `replay` and `serve` are up to us, for an adopted one."""

    def was_executing(self, relid: int) -> bool: ...
    def replay(self, relid: int) -> bool:
        """See ServedChannel."""

    def serve(self, relid: int) -> None: ...
    def find_stuck(self, stuck_ms: int) -> int | None:
        """The relid of a channel that does not move though it holds work."""

    def is_busy(self, relid: int) -> bool:
        """Whether a request is known to be under way there. False: nobody here can tell, perhaps."""

    def statistics(self, relid: int) -> dict[str, Any]: ...
    def workers(self) -> Iterable[ServedChannel]:
        """All that have a thread in this process, also those that are being closed."""


@runtime_checkable
class HostedDevice(Protocol):
    """A device whose channels are not served in this process."""

    def make_host(self, listener: ChannelListener) -> ChannelHost: ...


@runtime_checkable
class CalledServer(Protocol):
    """A device that guests reach by send, receive and reply: no channel, and nothing is offered."""

    def attach_client(self, partition: int, name: str, device: str, number: int) -> None:
        """Have `partition` served, to which the device is its number `number`, called `device`.

        Raises HypercallError: too little memory was deposited; LookupError: it has as many clients as it can.
        """
