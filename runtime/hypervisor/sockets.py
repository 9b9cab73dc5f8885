"""The broker's ends of the hypercall sockets.

A reply comes before the next request is read. So while a call waits for somebody else (its VP stands at an intercept)
its partition's socket is left alone; what else is in it waits in the kernel.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

from runtime.hypervisor.loop import Loop


class PartitionSockets:
    """Owns them. `serve(partition)` is called whenever one may hold a request."""

    def __init__(self, loop: Loop, serve: Callable[[int], object]) -> None:
        self._loop: Final = loop
        self._serve: Final = serve
        self._sockets: dict[int, socket.socket] = {}
        self._held: set[int] = set()  # whose last call is not answered yet
        self._unwatched: set[int] = set()  # of those: where something came, and would wake the loop for ever

    def __contains__(self, partition: int) -> bool:
        return partition in self._sockets

    def add(self, partition: int, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sockets[partition] = sock
        self._watch(partition, sock)

    def close(self, partition: int) -> None:
        if (sock := self._sockets.pop(partition, None)) is None:
            return
        self._held.discard(partition)
        if partition in self._unwatched:
            self._unwatched.discard(partition)
        else:
            self._loop.drop(sock.fileno())
        sock.close()

    def descriptors(self) -> list[tuple[int, int]]:
        """(partition, our end) of each."""
        return [(partition, sock.fileno()) for partition, sock in self._sockets.items()]

    def readable(self, partition: int) -> socket.socket | None:
        """Where its next request is, if there may be one now."""
        return None if partition in self._held else self._sockets.get(partition)

    def hold(self, partition: int) -> None:
        """Its call gets its reply later."""
        self._held.add(partition)

    def watched_fd(self, partition: int) -> int | None:
        """Of a socket that the loop looks at."""
        if partition not in self._sockets or partition in self._unwatched:
            return None
        return self._sockets[partition].fileno()

    def let_go(self, partition: int) -> socket.socket | None:
        """Where the reply that was held back goes. None: it is gone meanwhile."""
        if partition not in self._held:
            return None
        self._held.discard(partition)
        sock = self._sockets[partition]
        if partition in self._unwatched:
            self._unwatched.discard(partition)
            self._watch(partition, sock)
        return sock

    def _watch(self, partition: int, sock: socket.socket) -> None:
        self._loop.watch(sock.fileno(), lambda events: self._may_be_read(partition))

    def _may_be_read(self, partition: int) -> None:
        if partition in self._held:  # who waits for a reply has nothing to say, so this is rare
            self._unwatched.add(partition)
            self._loop.drop(self._sockets[partition].fileno())
        else:
            self._serve(partition)
