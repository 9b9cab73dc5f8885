"""A process that waits to become the root: forked and imported, with its first hypercall in its socket, unread."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from runtime.hypervisor.processes import WatchedProcess


@dataclass(slots=True)
class Standby:
    """Owns the broker's end of its hypercall socket, and its process once the zygote has told of it."""

    socket: socket.socket
    process: WatchedProcess | None = None
    wanted: bool = False  # the root is gone: it is to become the root as soon as it is there

    def close(self) -> None:
        """Its end: a closed hypercall socket is one for whoever waits on it, and the kill makes sure."""
        self.socket.close()
        if self.process is not None:
            self.process.kill()
            self.process.close()
            self.process = None
