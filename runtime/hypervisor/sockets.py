"""The broker's ends of the hypercall sockets.

A reply comes before the next request is read. So while a call waits for somebody else (its VP stands at an intercept)
its partition's socket is left alone; what else is in it waits in the kernel. So does what a
partition asks for that is in debt (service_time.py).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from runtime.hypervisor.loop import Loop, now_ns

if TYPE_CHECKING:
    from runtime.hypervisor.service_time import ServiceTime

_REST: Final = "rest"  # of alarms' keys


class PartitionSockets:
    """Owns them. `serve(partition)` is called whenever one may hold a request."""

    def __init__(
        self, loop: Loop, serve: Callable[[int], object], service: ServiceTime | None = None
    ) -> None:
        self._loop: Final = loop
        self._serve: Final = serve
        self.service: Final = service
        self._sockets: dict[int, socket.socket] = {}
        self._held: set[int] = set()  # whose last call is not answered yet
        self._resting: set[int] = set()  # in debt: not to be read from until it is paid
        self._unwatched: set[int] = set()  # of both: where something came, and would wake the loop for ever

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
        if partition in self._resting:
            self._resting.discard(partition)
            self._loop.cancel((_REST, partition))
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
        self._watch_again(partition)
        return self._sockets[partition]

    def rests(self, partition: int) -> bool:
        return partition in self._resting

    def rest(self, partition: int, rest_ns: int) -> None:
        """It has had more than it may: its next request is read when so much time has passed."""
        if partition in self._sockets:
            self._resting.add(partition)
            self._loop.alarm_at((_REST, partition), now_ns() + rest_ns, lambda: self._rested(partition))

    def _rested(self, partition: int) -> None:
        self._resting.discard(partition)
        self._watch_again(partition)

    def _watch_again(self, partition: int) -> None:
        if partition in self._unwatched and partition not in self._held and partition not in self._resting:
            self._unwatched.discard(partition)
            self._watch(partition, self._sockets[partition])

    def _watch(self, partition: int, sock: socket.socket) -> None:
        self._loop.watch(sock.fileno(), lambda events: self._may_be_read(partition))

    def _may_be_read(self, partition: int) -> None:
        if (
            partition in self._held or partition in self._resting
        ):  # who waits for a reply has nothing to say, so this is rare
            self._unwatched.add(partition)
            self._loop.drop(self._sockets[partition].fileno())
            return
        self._serve(partition)
        if self.service is not None and (debt := self.service.served(partition)) is not None:
            self.rest(*debt)
