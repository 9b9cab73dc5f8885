"""What whoever serves one client by send, receive and reply asks of the device that it serves."""

import socket
from typing import Protocol

IDLE, BEGUN, DONE = range(3)  # phases of a record; BEGUN: nobody else may be served before it is done again


class EndpointService(Protocol):
    """Of one client that sends and waits for the reply. One thread; statistics may be read from any."""

    refuses_resent: bool  # set: the client was not back in time, and others have gone on

    @property
    def phase(self) -> int:
        """Where its record stands: IDLE, BEGUN or DONE."""

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
