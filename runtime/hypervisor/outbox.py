"""Packets on their way to a peer that may be slow to read: the platform, the zygote.

Partitions get no outbox: one that does not read its replies is refused further service.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Sequence
from typing import Final

from runtime import codec

PACKETS_WAITING_MAX: Final = 4096


class Outbox:
    """Sends in order on a non-blocking socket. Owns the descriptors of what waits."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket: Final = sock
        self._waiting: deque[tuple[bytes, list[int]]] = deque()
        self.dropped = 0  # packets, because too many waited

    @property
    def waits(self) -> bool:
        """Whether `flush` is to be called once the socket can be written."""
        return bool(self._waiting)

    def send(self, message: object, fds: Sequence[int] = ()) -> bool:
        """Send, or keep for later. Takes the descriptors over. False: too much waits, it was dropped.

        Raises: OSError: the peer is gone.
        """
        if len(self._waiting) >= PACKETS_WAITING_MAX:
            codec.close_all(fds)
            self.dropped += 1
            return False
        self._waiting.append((codec.encode(message), list(fds)))
        self.flush()
        return True

    def flush(self) -> None:
        """Send what the socket takes. Raises: OSError: the peer is gone."""
        while self._waiting:
            packet, fds = self._waiting[0]
            try:
                codec.send_packet(self._socket, packet, fds)
            except BlockingIOError:
                return
            self._waiting.popleft()
            codec.close_all(fds)

    def close(self) -> None:
        for _, fds in self._waiting:
            codec.close_all(fds)
        self._waiting.clear()
