"""A network of another process, as a monitor offers it to its guest: one wire from the guest's port to that switch.

The switch is with the driver, in the host process. Here every frame of the guest's goes into a call, and what the host
answers to the outstanding RECEIVE goes into the guest's buffer.
"""

import contextlib
import threading
import weakref
from collections.abc import Sequence
from typing import Final
from uuid import UUID

from bus import guids
from bus.native import Channel, GpaMap
from bus.seam import Seam
from partitions.calls.call_socket import Connect
from partitions.net.errors import NetClosedError
from partitions.net.frames import MTU_MAX
from partitions.net.message_calls import Receiving, Transmitting
from partitions.net.message_wire import Open, Received, how_many_fit
from partitions.net.port import Port
from partitions.net.server_session import Adapter
from partitions.net.vsp import NetVsp
from partitions.stack.channel_client import ChannelClient

KEPT_BYTES: Final = 1 << 20  # of frames that the host keeps for us; the guest's own buffer is behind that
_JOIN_S: Final = 1.0


class Wire:
    """A FrameSwitch with one port here. NetClosedError from all that talks: the host is gone for good."""

    def __init__(self, calls: Connect, receives: Connect) -> None:
        self._transmitting = Transmitting(calls, Open(MTU_MAX, 0, KEPT_BYTES))
        self._receiving = Receiving(receives)
        self.opened = self._transmitting.opened
        self._lock = threading.Lock()  # of the first connection
        self._changed = threading.Condition()  # of the port
        self._port: Port | None = None
        self._closed = False
        self.link_up = self.opened.link_up
        self._servers: weakref.WeakSet[NetVsp] = weakref.WeakSet()
        self._thread = threading.Thread(target=self._receive, name="wire", daemon=True)
        self._thread.start()

    def serve_too(self, server: NetVsp) -> None:
        """It is told what becomes of the link."""
        with self._changed:
            self._servers.add(server)

    # -- towards the host

    def join(self, port: Port) -> None:
        with self._lock:
            self._transmitting.open(Open(MTU_MAX, port.packet_filter, KEPT_BYTES))
        with self._changed:
            self._port = port
            self._changed.notify_all()

    def leave(self, port: Port) -> None:
        """Does not wait for the host, which may be dead: it sees that we have left, and is told when we are back."""
        with self._changed:
            if self._port is not port:
                return
            self._port = None
        with self._lock, contextlib.suppress(ConnectionError):
            self._transmitting.socket.renew()

    def forward(self, source: Port, frames: Sequence[memoryview]) -> None:
        done = 0
        while done < len(frames):
            count = how_many_fit(frames, done)
            with self._lock:
                self._transmitting.settle()
                self._transmitting.transmit(frames[done : done + count])
                self._transmitting.settle()
            done += count

    # -- towards the guest

    def _receive(self) -> None:
        with contextlib.suppress(
            ConnectionError, NetClosedError
        ):  # the next frame of the guest's finds that out
            while (port := self._wait_for_port()) is not None:
                match self._receiving.take():
                    case Received(frames, link_up):
                        self._see_link(up=link_up)
                        if frames:
                            port.deliver([memoryview(frame) for frame in frames], patient=True)
                    case _:
                        self._open_again()

    def _wait_for_port(self) -> Port | None:
        """None: closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._port is not None or self._closed)
            return None if self._closed else self._port

    def _open_again(self) -> None:
        with self._lock:
            if self._port is not None:
                self._transmitting.reopen()
                self._see_link(up=self._transmitting.opened.link_up)

    def _see_link(self, *, up: bool) -> None:
        if up != self.link_up:
            self.link_up = up
            with self._changed:
                for server in self._servers:
                    server.link_changed(up=up)

    def stick(self) -> None:
        """A fault on purpose: whoever forwards from now on never comes back."""
        self._lock.acquire()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        sockets = self._transmitting.socket, self._receiving.socket
        for one in sockets:
            one.close()
        self._thread.join(_JOIN_S)
        if not self._thread.is_alive():
            for one in sockets:
                one.destroy()


class PassedOnNet:
    """A PassedOnDevice and a ClientDevice."""

    interface: Final[UUID] = guids.NETWORK
    shares_channels = True

    def __init__(self, calls: Connect, receives: Connect) -> None:
        """ConnectionError: there is no host."""
        self.name = "passed on"
        try:
            self._wire = Wire(calls, receives)
        except NetClosedError as error:
            raise ConnectionError(str(error)) from error

    def open(self, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam) -> NetVsp:
        raise TypeError(f"{self.name} has to know whom it serves")

    def open_for(
        self, client: ChannelClient, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam
    ) -> NetVsp:
        opened = self._wire.opened
        adapter = Adapter(opened.mac, opened.mtu, self._wire.link_up)
        server = NetVsp(channel, gpa_map, client, self._wire, adapter, record, seam)
        self._wire.serve_too(server)
        return server

    def settled(self) -> None:
        """The host waits for nothing."""

    def stick(self) -> None:
        self._wire.stick()

    def close(self) -> None:
        self._wire.close()
