"""What services have in common that take one call at a time and hold nothing between two."""

import socket
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from partitions.calls.endpoint_service import IDLE
from partitions.calls.serving import receive_call

CallT = TypeVar("CallT")


class CallService(Generic[CallT]):
    """An EndpointService, but for what a call does."""

    phase: Final = IDLE
    settled: Final = True

    def __init__(
        self, buffer_bytes: int, decode: Callable[[memoryview], CallT], malformed: type[Exception]
    ) -> None:
        """`malformed` is what `decode` raises for what is no call."""
        self._buffer = bytearray(buffer_bytes)
        self._decode, self._malformed_call = decode, malformed
        self.refuses_resent = False
        self.busy = False
        self.served = self.malformed = 0

    def _take(self, sock: socket.socket) -> CallT | None:
        """None: the client is gone, or has broken the protocol."""
        if (data := receive_call(sock, self._buffer)) is None:
            return None
        try:
            call = self._decode(data)
        except self._malformed_call:
            self.malformed += 1
            return None
        self.served += 1
        return call

    def serve_one(self, sock: socket.socket) -> bool:
        raise NotImplementedError

    def serve(self, sock: socket.socket) -> bool:
        return self.serve_one(sock)

    def hold(self) -> None:
        """Nobody else has to be kept away."""

    def let_go(self) -> None:
        """Nothing is held."""
