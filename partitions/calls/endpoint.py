"""One end of a pair of sockets, as the hypervisor handed it out: client and server have the same."""

import contextlib
import socket
from typing import Final

SOCKET_BUFFER_BYTES: Final = 1 << 20  # asked for; what the kernel counts has overhead in it


def adopt_endpoint(fd: int) -> socket.socket:
    """A claimed end, which it owns from now on, with room for whole transfers."""
    sock = socket.socket(fileno=fd)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    return sock
