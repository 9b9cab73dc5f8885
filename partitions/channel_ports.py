"""The two event ports of one open channel, and their doorbells: guest -> root and root -> guest.

All ids follow from (guest, relid, flag), so a root that takes over finds its predecessor's ports again.
"""

import contextlib
import os
from collections.abc import Callable
from typing import Final

from bus.channel_actions import OpenChannel
from bus.channel_messages import NO_INTERRUPT_VP
from bus.synic import VMBUS_SINT
from partitions.vmbus_ports import guest_channel_port, root_event_port
from runtime.abi import HypercallError, PortType, Route
from runtime.hypercalls import HypercallPort

_ROOT_VP: Final = 0


class ChannelPorts:
    """Ids until `connect` or `claim`; then also `wait_fd` and `signal_fd`, which it owns."""

    def __init__(
        self, hypercalls: HypercallPort, root: int, guest: int, request: OpenChannel, flag: int, route: Route
    ) -> None:
        """`flag`: of the root's SINT 2, this channel's alone."""
        self._call, self._root, self._guest, self._request = hypercalls, root, guest, request
        self.flag, self.route = flag, route
        self.wait_fd = self.signal_fd = -1

    @property
    def _silent(self) -> bool:
        """The guest polls: nobody signals it."""
        return self._request.target_vp == NO_INTERRUPT_VP

    def connect(self) -> None:
        """Create and connect both ports. HypercallError: nothing is left of them."""
        try:
            self._connect_inbound()
            if not self._silent:
                self._connect_outbound()
            self.claim()
        except BaseException:
            self.delete()
            raise

    def _connect_inbound(self) -> None:
        """A port of ours, and a connection of the guest's with the id that its offer named."""
        port = root_event_port(self.flag)
        self._call.create_port(
            port, self._guest, PortType.EVENT, VMBUS_SINT, _ROOT_VP, base_flag=self.flag, flag_count=1
        )
        connection = self._request.connection_id
        self._call.connect_port(connection, self._root, port, partition=self._guest, route=self.route)

    def _connect_outbound(self) -> None:
        """A port of the guest's, at the VP and flag that it chose, and a connection of ours."""
        port = guest_channel_port(self._request.relid)
        self._call.create_port(
            port,
            self._root,
            PortType.EVENT,
            VMBUS_SINT,
            self._request.target_vp,
            partition=self._guest,
            base_flag=self._request.event_flag,
            flag_count=1,
        )
        self._call.connect_port(root_event_port(self.flag), self._guest, port, route=self.route)

    def claim(self) -> None:
        """The doorbells of ports that exist. HypercallError: they do not."""
        self.wait_fd = self._call.claim_port_doorbell(root_event_port(self.flag)).fd
        if not self._silent:
            self.signal_fd = self._call.claim_connection_doorbell(root_event_port(self.flag)).fd

    def delete(self) -> None:
        """Whatever there is of ports, connections and doorbells."""
        remove_ports(self._call, self._guest, self._request.relid, self._request.connection_id, self.flag)
        for fd in (self.wait_fd, self.signal_fd):
            if fd >= 0:
                os.close(fd)
        self.wait_fd = self.signal_fd = -1


def remove_ports(call: HypercallPort, guest: int, relid: int, connection_id: int, flag: int) -> None:
    """Delete both ports of a channel and their connections; what is gone already, or was never there, is no error."""
    ours, guests = root_event_port(flag), guest_channel_port(relid)
    _try(call.disconnect_port, ours)
    _try(call.delete_port, guests, guest)
    _try(call.disconnect_port, connection_id, guest)
    _try(call.delete_port, ours)


def _try(call: Callable[..., None], *arguments: int) -> None:
    with contextlib.suppress(HypercallError):
        call(*arguments)
