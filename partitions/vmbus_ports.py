"""The port and connection ids that the VMBus server gives out. The hypervisor only needs them unique per partition.

A guest knows, of all these, its two message connections, and for each channel the connection in the offer and the
port on which the host's signals arrive.
"""

from typing import Final

from bus.channel_messages import MAX_CHANNELS

GUEST_MESSAGE_PORT: Final = 1  # in the guest: host -> guest channel messages
_GUEST_CHANNEL_PORT: Final = 0x1_0000  # in the guest: | relid
_ROOT_MESSAGE_PORT: Final = 0x1_0000  # in the root: | the guest's partition id, so a message names its sender
_ROOT_LEGACY_MESSAGE_PORT: Final = (
    0x3_0000  # the same for versions below 5.0, which post to another connection
)
_ROOT_EVENT_PORT: Final = 0x2_0000  # in the root: | flag
_ID_MASK: Final = 0xFFFF


def guest_channel_port(relid: int) -> int:
    """The guest's port for one channel's host -> guest signals."""
    return _GUEST_CHANNEL_PORT | relid


def root_message_port(partition: int) -> int:
    """The root's port for one guest's messages; also the id of the root's connection to that guest's message port."""
    if not 0 < partition <= _ID_MASK:
        raise ValueError(f"partition id {partition}: the message ports have 16 bits of it")
    return _ROOT_MESSAGE_PORT | partition


def root_legacy_message_port(partition: int) -> int:
    return root_message_port(partition) ^ _ROOT_MESSAGE_PORT | _ROOT_LEGACY_MESSAGE_PORT


def partition_of_message_port(port: int) -> int | None:
    """Who sent a message that arrived at this port; None: not a message port of ours."""
    if port & ~_ID_MASK in (_ROOT_MESSAGE_PORT, _ROOT_LEGACY_MESSAGE_PORT):
        return port & _ID_MASK
    return None


def root_event_port(flag: int) -> int:
    """The root's port for one channel's guest -> host signals; also the root's connection to the guest's port."""
    return _ROOT_EVENT_PORT | flag


class FlagAllocator:
    """Event flags of the root's SINT 2: one an open channel, over all guests. The one freed longest ago comes next."""

    def __init__(self) -> None:
        self._used: set[int] = set()
        self._last = 0

    def take(self) -> int:
        """LookupError: all are in use."""
        if len(self._used) >= MAX_CHANNELS:
            raise LookupError(f"all {MAX_CHANNELS} event flags of the root are in use")
        flag = self._last
        while (flag := flag % MAX_CHANNELS + 1) in self._used:
            pass
        self._used.add(flag)
        self._last = flag
        return flag

    def claim(self, flag: int) -> None:
        """Take this one, which a predecessor had."""
        self._used.add(flag)

    def free(self, flag: int) -> None:
        self._used.discard(flag)
