"""The port and connection ids that VMBus servers give out. The hypervisor only needs them unique per partition.

A partition may be guest of one server and host of its own guests at once, so its ids in both parts differ. "Root" is
the serving side, whichever partition that is.

A guest knows, of all these, its two message connections, and for each channel the connection in the offer and the
port on which the host's signals arrive.
"""

from typing import Final

from bus.channel_messages import MAX_CHANNELS

GUEST_MESSAGE_PORT: Final = 1  # in the guest: host -> guest channel messages
_GUEST_CHANNEL_PORT: Final = 0x4_0000  # in the guest: | relid
_ROOT_MESSAGE_PORT: Final = 0x1_0000  # in the root: | the guest's partition id, so a message names its sender
_ROOT_LEGACY_MESSAGE_PORT: Final = (
    0x3_0000  # the same for versions below 5.0, which post to another connection
)
_ROOT_EVENT_PORT: Final = 0x2_0000  # in who serves the channel: | flag
_DRIVER_PORT: Final = 0x5_0000  # in who offers: | the driver partition's id, so a message names its sender
DRIVER_COMMAND_PORT: Final = 2  # in a driver partition: what it is told
DRIVER_ANSWER_CONNECTION: Final = 3  # of a driver partition: what it tells
DRIVER_PASSAGE_PORT: Final = 4  # in a driver partition: sockets that are handed in to it
DRIVER_MESSAGE: Final = 0x5056  # the SynIC message type of both: partitions.drivers.messages
# 0x6_0000, and 0x5_0001 in a guest: partitions.vp.intercept_ports
_MESSAGE_CONNECTION: Final = 0x7_0000  # in who sends to a message server: | number of the device there
_RECEIVE_CONNECTION: Final = 0x8_0000  # the same, for one call that waits for what nobody asked for
_PASSAGE_CONNECTION: Final = (
    0x9_0000  # in who offers: | the driver partition's id; sockets are handed in by it
)
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


def server_event_port(flag: int) -> int:
    """The server's port for one channel's guest -> host signals; also its connection to the guest's port."""
    return _ROOT_EVENT_PORT | flag


def driver_port(partition: int) -> int:
    """Our port for one driver partition's answers; also the id of our connection to its command port."""
    if not 0 < partition <= _ID_MASK:
        raise ValueError(f"partition id {partition}: the driver ports have 16 bits of it")
    return _DRIVER_PORT | partition


def passage_connection(partition: int) -> int:
    """Our connection to one driver partition's passage (partitions.drivers.passage)."""
    if not 0 < partition <= _ID_MASK:
        raise ValueError(f"partition id {partition}: the passages have 16 bits of it")
    return _PASSAGE_CONNECTION | partition


class FlagAllocator:
    """Event flags of a server's SINT 2: one an open channel, over all guests. The one freed longest ago comes next."""

    def __init__(self, flags: int = MAX_CHANNELS) -> None:
        self._flags: Final = flags
        self._used: set[int] = set()
        self._last = 0

    def take(self) -> int:
        """LookupError: all are in use."""
        if len(self._used) >= self._flags:
            raise LookupError(f"all {self._flags} event flags are in use")
        flag = self._last
        while (flag := flag % self._flags + 1) in self._used:
            pass
        self._used.add(flag)
        self._last = flag
        return flag

    def claim(self, flag: int) -> None:
        """Take this one, which a predecessor had."""
        self._used.add(flag)

    def free(self, flag: int) -> None:
        self._used.discard(flag)


def message_connection(number: int) -> int:
    """A partition's connection to the server of its device of that number, where that is reached without rings."""
    return _MESSAGE_CONNECTION | number


def receive_connection(number: int) -> int:
    """The second connection to a server that also has something to say which nobody asked for."""
    return _RECEIVE_CONNECTION | number
