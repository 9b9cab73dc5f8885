"""Who answers calls without rings by what stands in an input, whatever was asked: on a few sockets, and no more."""

import socket
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final
from unittest.mock import patch

from partitions.calls import call_socket

CONNECTIONS_MAX: Final = 2  # of one input: each bad reply costs a client its connection
REPLIES_MAX: Final = 4  # on one connection


class LyingServer:
    """Its replies are there before the calls are. Use it in a `with` block."""

    def __init__(self, replies: Sequence[bytes]) -> None:
        self._replies = deque(one for one in replies if one)
        self._ends: list[socket.socket] = []
        self._no_pauses = patch.object(call_socket, "_PAUSE_S_MAX", 0.0)

    def connect(self) -> int:
        """For the client. ConnectionError: all that it says was said."""
        if len(self._ends) >= CONNECTIONS_MAX:
            raise ConnectionError("the input is over")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ends.append(ours)
        ours.setblocking(False)
        with suppress(BlockingIOError):
            for _ in range(min(REPLIES_MAX, len(self._replies))):
                ours.send(self._replies.popleft(), socket.MSG_NOSIGNAL)
        with suppress(OSError):
            ours.shutdown(socket.SHUT_WR)
        return theirs.detach()

    def calls(self) -> list[bytes]:
        """What it was asked, on any connection, that was not looked at before."""
        found = []
        for end in self._ends:
            with suppress(BlockingIOError, ConnectionResetError):
                while data := end.recv(1 << 20):
                    found.append(data)
        return found

    def __enter__(self) -> "LyingServer":
        self._no_pauses.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._no_pauses.stop()
        for end in self._ends:
            end.close()
