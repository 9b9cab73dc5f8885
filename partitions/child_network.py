"""How a partition's program reaches networks and streams: part of `partitions.child.Partition`."""

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from bus.guids import NETWORK
from partitions.calls.call_socket import Connect
from partitions.own_device import OwnDevices
from partitions.vsc.channel import GuestChannel
from partitions.vsc.vmbus import VmbusGuest

if TYPE_CHECKING:
    from partitions.net.adapter import NetAdapter
    from partitions.net.guest_tap import GuestTap
    from partitions.net.nic import Nic
    from partitions.streams.guest import Listener, Stream, Streams

NET_RECEIVE_BYTES: Final = 4 << 20
NET_SEND_BYTES: Final = 1 << 20


class NetworkAccess(ABC):
    """What needs a bus, and nothing else of a partition."""

    devices: dict[str, Mapping[str, Any]]
    _first_use: threading.RLock
    _own: OwnDevices
    _streams: "Streams | None" = None

    @property
    @abstractmethod
    def vmbus(self) -> VmbusGuest: ...

    @abstractmethod
    def _connections(self, name: str) -> tuple[Connect, Connect]: ...

    @abstractmethod
    def open_channel(
        self,
        name: str,
        interface: UUID,
        data_bytes: int,
        *,
        ring_bytes: int | None = None,
        buffers: Sequence[int] = (),
    ) -> GuestChannel: ...

    @contextlib.contextmanager
    def open_net(
        self,
        name: str,
        receive_bytes: int = NET_RECEIVE_BYTES,
        send_bytes: int = NET_SEND_BYTES,
        **more: Any,
    ) -> "Iterator[NetAdapter]":
        """The adapter of that name, until the block ends: a `Nic`, or, where there are no rings, a `MessageNic`.

        Args:
            name: of a [[partition.device]] of this partition's config.
            receive_bytes, send_bytes: of the buffers that are lent to the server; whole pages.
            more: `mtu` and `promiscuous` of `partitions.net.nic.Nic`.
        """
        if name in self._own:
            table = self.devices[name]
            sizes = table["ring_bytes"], receive_bytes, send_bytes
            with self._own.open_net(name, *sizes, table.get("waiting"), **more) as own_nic:
                yield own_nic
            return
        if self.devices[name].get("messages"):
            from partitions.net.message_nic import MessageNic

            with contextlib.closing(MessageNic(*self._connections(name), receive_bytes, **more)) as adapter:
                yield adapter
            return
        with self._open_nic(name, receive_bytes, send_bytes, **more) as nic:
            yield nic

    @contextlib.contextmanager
    def _open_nic(self, name: str, receive_bytes: int, send_bytes: int, **more: Any) -> "Iterator[Nic]":
        from partitions.net.nic import Nic

        lent = receive_bytes, send_bytes
        with self.open_channel(name, NETWORK, sum(lent), buffers=lent) as opened:
            receive, send = opened.data[:receive_bytes], opened.data[receive_bytes:]
            nic = Nic(opened.channel, receive, opened.buffers[0], send, opened.buffers[1], **more)
            with contextlib.closing(nic):
                yield nic

    @contextlib.contextmanager
    def open_tap(self, **more: Any) -> "Iterator[GuestTap]":
        """The TAP of the config's [partition.tap], joined to its network, until the block ends.

        Args:
            more: as `open_net`.

        Raises TapUnavailable: there is none; it says why.
        """
        from partitions.net.guest_tap import GuestTap
        from partitions.net.guest_tap_birth import born

        tap = born()
        with (
            self.open_net(tap.device, **more) as adapter,
            contextlib.closing(GuestTap(adapter, tap.tap_fd, tap.runner)) as joined,
        ):
            yield joined

    @property
    def _stream_sockets(self) -> "Streams":
        with self._first_use:
            if self._streams is None:
                from partitions.streams.guest import Streams

                self._streams = Streams(self.vmbus)
            return self._streams

    def connect_stream(self, target: str, service: int | UUID, timeout_s: float = 10.0) -> "Stream":
        """To a program of the host ("host"), or a partition, that listens there. See `partitions.streams.guest`."""
        return self._stream_sockets.connect(target, service, timeout_s)

    def listen_stream(self, service: int | UUID, backlog: int = 16) -> "Listener":
        """Connections to this partition: `accept` of what is returned waits for the next one."""
        return self._stream_sockets.listen(service, backlog)
