"""A server's end: take one call, and wait beside it for what is to be its answer."""

import select
import socket
from dataclasses import dataclass
from typing import Final

HUNG_UP_MS: Final = 50  # before a descriptor that has hung up is looked at again


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose calls an endpoint's are."""

    partition: int  # the guest; of a monitor, the guest that it stands for
    receives: bool  # the second of its connections, on which one call waits for what nobody asked for


def receive_call(sock: socket.socket, buffer: bytearray) -> memoryview | None:
    """One call, good until the next one. None: the client is gone, or sent more than any call has."""
    try:
        received, _, flags, _ = sock.recvmsg_into((buffer,))
    except OSError:
        return None
    if not received or flags & socket.MSG_TRUNC:
        return None
    return memoryview(buffer)[:received]


def reply(sock: socket.socket, message: bytes) -> bool:
    """False: the client is gone."""
    try:
        sock.send(message, socket.MSG_NOSIGNAL)
    except OSError:
        return False
    return True


def wait_beside(sock: socket.socket, descriptor: int | None, timeout_ms: int | None) -> bool:
    """Until the descriptor is readable, or the time is over. False: the client left, or did not wait for its reply."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    if descriptor is not None:
        poller.register(descriptor, select.POLLIN)
    ready = dict(poller.poll(timeout_ms))
    if sock.fileno() in ready:
        return False
    if (
        descriptor is not None and ready.get(descriptor, 0) & ~select.POLLIN
    ):  # it has hung up, and says so for ever
        poller.unregister(descriptor)
        return not poller.poll(timeout_ms or HUNG_UP_MS)
    return True
