"""The stack's end of a driver partition whose clients send, and wait for the reply: who they are, and their ports.

Such a client has a connection to an event port of the server's, and no channel: at each end a hypercall turns that into
a socket (runtime.hypervisor.endpoints). What to serve the server is told as of a channel, so it is started again, and
told again, in the same way.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from bus.synic import VMBUS_SINT
from partitions.drivers.messages import Serve, ServeFlags
from partitions.drivers.openings import Standing
from partitions.drivers.partition import DriverPartition
from partitions.drivers.phase import Phase
from partitions.stack.channel_host import Opening
from partitions.stack.channel_ports import remove_event_port
from partitions.stack.vmbus_ports import message_connection, receive_connection, server_event_port
from runtime.abi import HypercallError, PartitionState, PortType, Route

_COUNTERS: Final = ("requests", "reads", "writes", "bytes_read", "bytes_written", "errors", "dropped")
_BOTH_WAYS: Final = ("net", "serial")  # classes whose clients have a second connection, on which they receive
_GONE: Final = (PartitionState.FINALIZING, PartitionState.FINALIZED)


@dataclass(eq=False, slots=True)
class MessageClient:
    """One client. For what the server says of it, it stands where the channels of a guest's bus would."""

    server: "ServerPartition"
    partition: int
    name: str
    device: str  # as the client calls it
    opening: Opening
    stands_for: int  # the guest whose monitor it is; 0: a guest itself
    receives: bool  # its second connection
    state: str = "opening"
    has_ports: bool = True  # a later client of the same partition may have the same connection id

    def opened(self, standing: Standing, status: int) -> None:
        self.state = "failed" if status else "open"

    def stopped(self, relid: int, opening: Opening) -> None:
        self.server.forget(self)

    def lost(self, standing: Standing, failed: bool, reason: str) -> None:
        """Its thread has given up: who waits is told by the end of its port."""
        self.withdraw(self.device, reason)

    def asked(self, standing: Standing, count: int) -> None:
        """It has no channels. A server that says so anyway changes nothing."""

    def withdraw(self, device: str, reason: str) -> None:
        self.state = "failed"
        self.server.remove_ports(self)

    def to_state(self) -> list[Any]:
        return [
            self.partition,
            self.name,
            self.device,
            self.opening.to_state(),
            self.stands_for,
            self.receives,
            self.state,
            self.has_ports,
        ]


class ServerPartition(DriverPartition):
    """Of one device. Its clients are guests (microkernel), or what runs guests (hosted)."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._clients: list[MessageClient] = []

    def attach_client(
        self, partition: int, name: str, device: str, number: int, *, stands_for: int = 0
    ) -> None:
        """Give `partition` what it reaches its device `number` by, and have the server serve it.

        `stands_for`: the guest, where it is not `partition` itself.

        Raises HypercallError: too little memory was deposited; LookupError: it has as many clients as it can.
        """
        called = [self._connect(partition, name, device, message_connection(number), stands_for)]
        try:
            if self.kind in _BOTH_WAYS:
                connection = receive_connection(number)
                called.append(self._connect(partition, name, device, connection, stands_for, receives=True))
        except (HypercallError, LookupError):
            for client in called:
                self.remove_ports(client)
                self.flags.free(client.opening.flag)
            raise
        for client in called:
            self._clients.append(client)
            if self.gives_service:
                self.begin_serving(self._standing_of(client))
            else:
                client.withdraw(device, self._reason)

    def _connect(
        self,
        partition: int,
        name: str,
        device: str,
        connection: int,
        stands_for: int,
        *,
        receives: bool = False,
    ) -> MessageClient:
        """Raises as `attach_client`, and then there is nothing."""
        for earlier in self._clients:
            if earlier.partition == partition and earlier.opening.connection_id == connection:
                self.remove_ports(earlier)  # it has ended; its server's thread may not have yet
        flag = self.flags.take()
        opening = Opening(next(self.stack.numbers), flag, connection)
        client = MessageClient(self, partition, name, device, opening, stands_for, receives)
        try:
            self.call.create_port(
                server_event_port(flag),
                partition,
                PortType.EVENT,
                VMBUS_SINT,
                0,
                partition=self.partition,
                base_flag=flag,
                flag_count=1,
            )
            self.call.connect_port(
                connection, self.partition, server_event_port(flag), partition=partition, route=Route.DIRECT
            )
        except HypercallError:
            self.remove_ports(client)
            self.flags.free(flag)
            raise
        return client

    def has_client(self, partition: int) -> bool:
        return any(client.partition == partition and client.state != "ending" for client in self._clients)

    def detach_client(self, partition: int) -> None:
        """It ended, and may come back."""
        for client in self._clients:
            if client.partition == partition and client.state != "ending":
                self._end_client(client)

    def _end_client(self, client: MessageClient) -> None:
        client.state = "ending"
        self.stop_serving(client, 0, client.opening)

    def _standing_of(self, client: MessageClient) -> Standing:
        flags = ServeFlags.MESSAGES
        if client.stands_for:
            flags |= ServeFlags.PROXY
        if client.receives:
            flags |= ServeFlags.RECEIVES
        opening, guest = client.opening, client.stands_for or client.partition
        serve = Serve(opening.number, guest, 0, opening.flag, flags, "block", 0, 0, 0, ())
        return Standing(client, 0, opening, serve)

    def remove_ports(self, client: MessageClient) -> None:
        if not client.has_ports:
            return
        client.has_ports, opening = False, client.opening
        remove_event_port(self.call, self.partition, client.partition, opening.connection_id, opening.flag)

    def forget(self, client: MessageClient) -> None:
        if client in self._clients:
            self._clients.remove(client)
            self.remove_ports(client)
            self.flags.free(client.opening.flag)
            self.stack.save()

    def look(self) -> None:
        for client in [client for client in self._clients if client.state != "ending"]:
            if self._has_ended(client.partition):
                self._end_client(client)
        super().look()

    def _has_ended(self, partition: int) -> bool:
        try:
            return self.call.get_state(partition) in _GONE
        except HypercallError:
            return True

    def _withdraw(self) -> None:
        super()._withdraw()
        for client in self._clients:
            client.withdraw(self.name, f"its server failed: {self._reason}")

    # -- taking over

    def to_state(self) -> dict[str, Any]:
        return super().to_state() | {"clients": [client.to_state() for client in self._clients]}

    def adopt_state(self, state: Mapping[str, Any]) -> None:
        super().adopt_state(state)
        for partition, name, device, opening, *more in state["clients"]:
            client = MessageClient(self, partition, name, device, Opening(*opening), *more)
            word = client.state
            self._clients.append(client)
            self.flags.claim(client.opening.flag)
            if word not in ("ending", "failed"):
                self.go_on_serving(self._standing_of(client))
            elif word == "ending":
                client.state = "open"  # `look` finds it gone once more
                self.go_on_serving(self._standing_of(client))

    # -- for people

    def _counters_of(self, client: MessageClient) -> dict[str, int]:
        if self._state is None:
            return {}
        values = self._state.load_counters(client.opening.flag)
        return {name: values[name] for name in _COUNTERS}

    def rows_of(self, partition: str) -> list[dict[str, Any]]:
        """For `partvisor show` of a client."""
        return [
            {
                "device": client.device,
                "state": client.state if self.phase is not Phase.FAILED else "failed",
                "transport": "messages",
                "served_by": [self.name],
                "service": str(self.phase),
                "failures": self._back_off.failures,
                **self._counters_of(client),
            }
            for client in self._clients
            if client.name == partition and not client.receives
        ]
