"""What who runs a device's driver needs of it: a process of the device's own, or the process of its VMBus server."""

import socket
from typing import Protocol, runtime_checkable

from bus.seam import Seam
from partitions.calls.serving import Caller
from partitions.faults.faulty_medium import FaultyMedium
from partitions.storage.device import OfferedDevice


class EndpointService(Protocol):
    """Of one client that sends and waits for the reply. One thread; statistics may be read from any."""

    refuses_resent: bool  # set: the client was not back in time, and others have gone on

    @property
    def phase(self) -> int:
        """Not 0: a request was begun, and nobody else may be served before it is done again."""

    @property
    def served(self) -> int:
        """Requests that came."""

    @property
    def busy(self) -> bool:
        """A request is being executed."""

    @property
    def settled(self) -> bool:
        """Nothing that the client has begun for others is left to be done."""

    def serve_one(self, sock: socket.socket) -> bool:
        """Receive, execute, reply. False: the client is gone, or has broken the protocol, which ends the socket."""

    def serve(self, sock: socket.socket) -> bool:
        """As `serve_one`, and perhaps many before it."""

    def hold(self) -> None:
        """Keep everyone else from the device until `let_go`."""

    def let_go(self) -> None: ...
    def statistics(self) -> dict[str, int]: ...


@runtime_checkable
class DrivenDevice(OfferedDevice, Protocol):
    """A device with its driver, whatever its class."""

    def open_messages(self, record: memoryview, seam: Seam) -> EndpointService:
        """Serve a client without rings. `record`: where a predecessor stood, or zeros."""

    def stick(self) -> None:
        """A fault on purpose: from now on nothing is served."""

    def close(self) -> None:
        """All that was done is where it survives."""


@runtime_checkable
class CalledBothWays(Protocol):
    """A DrivenDevice that has something to say which nobody asked for. Its clients have a second connection, on which
    they keep one call that is answered when there is something."""

    def open_calls(self, caller: Caller, record: memoryview, seam: Seam) -> EndpointService:
        """In the place of `open_messages`."""


@runtime_checkable
class HasMedium(Protocol):
    """A device that keeps what it is given: a disk."""

    medium: FaultyMedium


def medium_of(device: object) -> FaultyMedium | None:
    return device.medium if isinstance(device, HasMedium) else None


class PassedOnDevice(OfferedDevice, Protocol):
    """A device of somebody else's, to be offered on."""

    def settled(self) -> None:
        """All that predecessors of ours had begun is done."""

    def stick(self) -> None: ...
    def close(self) -> None: ...
