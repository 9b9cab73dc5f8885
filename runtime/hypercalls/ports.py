"""Ports and connections, messages and events. One family of `runtime.hypercalls.caller`."""

from __future__ import annotations

from runtime.abi import PARTITION_SELF, HypercallCode, PortProperty, PortType, Route
from runtime.hypercalls.connection import HypercallSocket
from runtime.hypercalls.results import Doorbell, PortCounts, decode_doorbell


class PortCalls(HypercallSocket):
    """See `runtime.hypercalls.caller.HypercallPort`."""

    def create_port(
        self,
        port: int,
        connection_partition: int,
        port_type: PortType,
        sint: int,
        vp: int = 0,
        *,
        partition: int = PARTITION_SELF,
        base_flag: int = 0,
        flag_count: int = 0,
    ) -> None:
        """A port of `partition` that `connection_partition` may connect to, once."""
        self.call(
            HypercallCode.CREATE_PORT,
            partition=partition,
            port=port,
            connection_partition=connection_partition,
            type=int(port_type),
            sint=sint,
            vp=vp,
            base_flag=base_flag,
            flag_count=flag_count,
        )

    def delete_port(self, port: int, partition: int = PARTITION_SELF) -> None:
        """Drops its queued messages; its connection stays, and posting to it is INVALID_PORT_ID."""
        self.call(HypercallCode.DELETE_PORT, partition=partition, port=port)

    def connect_port(
        self,
        connection: int,
        port_partition: int,
        port: int,
        *,
        partition: int = PARTITION_SELF,
        route: Route = Route.BROKER,
    ) -> None:
        """Give `partition` the connection id `connection`. The route matters for event ports only."""
        self.call(
            HypercallCode.CONNECT_PORT,
            partition=partition,
            connection=connection,
            port_partition=port_partition,
            port=port,
            route=int(route),
        )

    def disconnect_port(self, connection: int, partition: int = PARTITION_SELF) -> None:
        """The port can be connected again. Messages already queued stay."""
        self.call(HypercallCode.DISCONNECT_PORT, partition=partition, connection=connection)

    def get_posted_messages(self, port: int, partition: int = PARTITION_SELF) -> int:
        """How many messages were ever posted to a message port."""
        result = self.call(
            HypercallCode.GET_PORT_PROPERTY,
            partition=partition,
            port=port,
            property=int(PortProperty.POST_COUNT),
        )
        return result.integer("value")

    def get_port_counts(self, port: int, partition: int = PARTITION_SELF) -> PortCounts:
        """What became of every interrupt that it was sent through the hypervisor."""
        result = self.call(HypercallCode.GET_PORT_COUNTS, partition=partition, port=port)
        names = ("sent", "merged", "suppressed", "delivered", "pending")
        return PortCounts(*(result.integer(name) for name in names))

    def move_port(self, port: int, vp: int, partition: int = PARTITION_SELF) -> None:
        """Aim its interrupts at another VP. Event flags that are set move along; messages that wait stay."""
        self.call(
            HypercallCode.SET_PORT_PROPERTY,
            partition=partition,
            port=port,
            property=int(PortProperty.TARGET_VP),
            value=vp,
        )

    def post_message(self, connection: int, message_type: int, payload: bytes) -> None:
        """Queue one SynIC message of at most 240 bytes. INSUFFICIENT_BUFFERS: 16 wait, retry later."""
        self.call(HypercallCode.POST_MESSAGE, connection=connection, type=message_type, payload=payload)

    def signal_event(self, connection: int, flag: int = 0) -> None:
        """Set an event flag by hypercall; the fast way is the connection's doorbell."""
        self.call(HypercallCode.SIGNAL_EVENT, connection=connection, flag=flag)

    def claim_port_doorbell(self, port: int) -> Doorbell:
        return decode_doorbell(self.call(HypercallCode.CLAIM_DOORBELL, port=port))

    def claim_connection_doorbell(self, connection: int, flag: int = 0) -> Doorbell:
        return decode_doorbell(self.call(HypercallCode.CLAIM_DOORBELL, connection=connection, flag=flag))

    def claim_port_endpoint(self, port: int) -> int:
        """A socket to the owner of the port's connection, who asked for it. NO_DATA: nobody did since the last one."""
        return self.call(HypercallCode.CLAIM_ENDPOINT, port=port).one_fd()

    def claim_connection_endpoint(self, connection: int) -> int:
        """A new socket to the owner of the port behind it, who is told; what was claimed before is no more answered."""
        return self.call(HypercallCode.CLAIM_ENDPOINT, connection=connection).one_fd()

    def create_port_deprecated(
        self,
        port: int,
        connection_partition: int,
        port_type: PortType,
        sint: int,
        vp: int = 0,
        *,
        partition: int = PARTITION_SELF,
        base_flag: int = 0,
        flag_count: int = 0,
    ) -> None:
        """The call that TLFS 2.0 had for `create_port`."""
        self.call(
            HypercallCode.CREATE_PORT_DEPRECATED,
            partition=partition,
            port=port,
            connection_partition=connection_partition,
            type=int(port_type),
            sint=sint,
            vp=vp,
            base_flag=base_flag,
            flag_count=flag_count,
        )

    def connect_port_deprecated(
        self, connection: int, port_partition: int, port: int, *, partition: int = PARTITION_SELF
    ) -> None:
        """The call that TLFS 2.0 had for `connect_port`; always by the broker's route."""
        self.call(
            HypercallCode.CONNECT_PORT_DEPRECATED,
            partition=partition,
            connection=connection,
            port_partition=port_partition,
            port=port,
        )
