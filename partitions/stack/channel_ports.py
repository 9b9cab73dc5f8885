"""The two event ports of one open channel, and their doorbells: guest -> server and server -> guest.

The server is the partition that serves the channel: who makes the ports, or a driver partition below it. All ids follow
from (guest, relid, flag), so who takes over finds its predecessor's ports again.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bus.channel_actions import OpenChannel
from bus.channel_messages import NO_INTERRUPT_VP
from bus.synic import VMBUS_SINT
from partitions.stack.vmbus_ports import guest_channel_port, server_event_port
from runtime.abi import HypercallError, PortType, Route
from runtime.hypercalls.caller import HypercallPort


@dataclass(frozen=True, slots=True)
class ChannelPorts:
    """The hypercalls about them. It holds nothing."""

    call: HypercallPort
    server: int  # whom the guest's signals go to
    guest: int
    request: OpenChannel
    flag: int  # of the server's SINT 2, this channel's alone
    route: Route
    vp: int = 0  # of the server

    @property
    def silent(self) -> bool:
        """The guest polls: nobody signals it."""
        return self.request.target_vp == NO_INTERRUPT_VP

    def connect(self) -> None:
        """Create and connect both ports. HypercallError: nothing is left of them."""
        try:
            self._connect_inbound()
            if not self.silent:
                self._connect_outbound()
        except BaseException:
            self.delete()
            raise

    @contextlib.contextmanager
    def made_anew(self) -> Iterator[None]:
        """Whatever a predecessor may have made before it died. Deleted again if the block fails."""
        self.delete()
        self.connect()
        try:
            yield
        except BaseException:
            self.delete()
            raise

    def _connect_inbound(self) -> None:
        """A port of the server's, and a connection of the guest's with the id that its offer named."""
        port = server_event_port(self.flag)
        self.call.create_port(
            port,
            self.guest,
            PortType.EVENT,
            VMBUS_SINT,
            self.vp,
            partition=self.server,
            base_flag=self.flag,
            flag_count=1,
        )
        connection = self.request.connection_id
        self.call.connect_port(connection, self.server, port, partition=self.guest, route=self.route)

    def _connect_outbound(self) -> None:
        """A port of the guest's, at the VP and flag that it chose, and a connection of the server's."""
        port = guest_channel_port(self.request.relid)
        self.call.create_port(
            port,
            self.server,
            PortType.EVENT,
            VMBUS_SINT,
            self.request.target_vp,
            partition=self.guest,
            base_flag=self.request.event_flag,
            flag_count=1,
        )
        connection = server_event_port(self.flag)
        self.call.connect_port(connection, self.guest, port, partition=self.server, route=self.route)

    def delete(self) -> None:
        """Whatever there is of ports and connections."""
        request = self.request
        remove_ports(self.call, self.server, self.guest, request.relid, request.connection_id, self.flag)


def remove_ports(
    call: HypercallPort, server: int, guest: int, relid: int, connection_id: int, flag: int
) -> None:
    """Delete both ports of a channel and their connections; what is gone already, or was never there, is no error."""
    servers, guests = server_event_port(flag), guest_channel_port(relid)
    _try(call.disconnect_port, servers, server)
    _try(call.delete_port, guests, guest)
    _try(call.disconnect_port, connection_id, guest)
    _try(call.delete_port, servers, server)


def remove_event_port(call: HypercallPort, server: int, client: int, connection: int, flag: int) -> None:
    """The client's connection and the server's port alone, as `remove_ports`."""
    _try(call.disconnect_port, connection, client)
    _try(call.delete_port, server_event_port(flag), server)


def _try(call: Callable[..., None], *arguments: int) -> None:
    with contextlib.suppress(HypercallError):
        call(*arguments)


@dataclass(frozen=True, slots=True)
class Doorbells:
    """What the server of a channel holds of its ports. Owns the descriptors."""

    flag: int
    route: Route
    wait_fd: int
    signal_fd: int  # -1: nobody is signalled

    def close(self) -> None:
        for fd in (self.wait_fd, self.signal_fd):
            if fd >= 0:
                os.close(fd)


def claim_doorbells(call: HypercallPort, flag: int, route: Route, *, silent: bool) -> Doorbells:
    """Of the caller's own ports. HypercallError: they do not exist."""
    port = server_event_port(flag)
    wait_fd = call.claim_port_doorbell(port).fd
    try:
        signal_fd = -1 if silent else call.claim_connection_doorbell(port).fd
    except BaseException:
        os.close(wait_fd)
        raise
    return Doorbells(flag, route, wait_fd, signal_fd)
