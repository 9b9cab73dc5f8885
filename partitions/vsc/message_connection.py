"""How a partition gets a socket to the server behind a connection that its stack has given it."""

from partitions.storage.message_channel import Connect
from runtime.abi import HypercallError, HypervisorGone
from runtime.hypercalls.caller import HypercallPort


def connect_to(call: HypercallPort, connection: int) -> Connect:
    """For a `MessageChannel`: again and again, as servers come and go."""

    def connect() -> int:
        try:
            return call.claim_connection_endpoint(connection)
        except (HypercallError, HypervisorGone) as error:
            raise ConnectionError(f"there is no server any more: {error}") from error

    return connect
