"""A stream as the VMBus server offers it: a device of its own for each connection, gone with it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from uuid import UUID

from bus.guids import vsock_service
from bus.native import Channel, GpaMap
from bus.seam import Seam
from partitions.stack.channel_client import ChannelClient
from partitions.streams.relay import NoStream, StreamEnd, StreamRelay
from partitions.streams.wire import offer_of

PREFIX: Final = "stream:"  # of their names among a machine's devices; no name in a config has a colon


class StreamDevice:
    """A ClientDevice, and an OfferedDevice."""

    shares_channels = False

    def __init__(
        self,
        number: int,
        service: UUID,
        end: StreamEnd | None,
        *,
        accept: bool = False,
        opened: Callable[[], None] = lambda: None,
        ended: Callable[[str], None] = lambda name: None,
    ) -> None:
        """`opened()`, `ended(name)`: called by the thread that serves it. `end`: None, of a predecessor's."""
        self.name = f"{PREFIX}{number}"
        self.interface: Final = service
        self.accept: Final = accept  # it is for a listener of the guest's
        self._end, self._tell_opened, self._tell_ended = end, opened, ended

    @property
    def framing(self) -> dict[str, Any]:
        """Of its channel's packets, as OfferParameters has it."""
        return offer_of(accept=self.accept)

    def open(self, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam) -> StreamRelay:
        raise TypeError("a stream is opened by open_for")

    def open_for(
        self, client: ChannelClient, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam
    ) -> "StreamRelay | NoStream":
        """In the thread that serves it."""
        end, self._end = self._end, None
        if end is None:
            return NoStream(channel)
        self._tell_opened()
        return StreamRelay(channel, end, lambda: self._tell_ended(self.name))

    def close(self) -> None:
        """It was never opened."""
        if self._end is not None:
            self._end.close(finished=False)
            self._end = None


def remains(guests: Iterable[Mapping[str, Any]]) -> dict[str, StreamDevice]:
    """Streams of a predecessor's, by name, out of what it saved of its guests: they are there to be taken away."""
    names = [row[1] for guest in guests for row in guest["offers"] if str(row[1]).startswith(PREFIX)]
    names += [row[0] for guest in guests for row in guest["withheld"] if str(row[0]).startswith(PREFIX)]
    found = {}
    for name in names:
        number = int(name.removeprefix(PREFIX))
        found[name] = StreamDevice(number, vsock_service(0), None)
    return found
