"""Unix sockets in a machine's folder, for its user alone: whoever listens at a path, and takes in who comes."""

import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import trio

from runtime.exits import CommandError
from runtime.machine.rundir import SOCKET_PATH_BYTES_MAX

_ACCEPT_PAUSE_S: Final = 0.1  # before accepting again, where this process has run out of descriptors


class SocketRefused(CommandError):
    """None can be made there. The text is one line for the user."""


def listen_at(path: Path, backlog: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A listening socket whose file is 0600 from the first moment. SocketRefused."""
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise SocketRefused(
            f"{path}: a socket's path has at most {SOCKET_PATH_BYTES_MAX} bytes: choose shorter names"
        )
    listener = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
    umask_before = os.umask(0o177)
    try:
        listener.bind(str(path))
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise SocketRefused(f"{path}: no socket can be made there ({error.strerror})") from error
    finally:
        os.umask(umask_before)
    return listener


@contextlib.contextmanager
def listening(
    path: Path, backlog: int, kind: socket.SocketKind = socket.SOCK_STREAM
) -> Iterator[trio.socket.SocketType]:
    """The same for trio; in the end the socket and its file are gone."""
    with trio.socket.from_stdlib_socket(listen_at(path, backlog, kind)) as listener:
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


async def accept_each(
    listener: trio.socket.SocketType, take: Callable[[trio.socket.SocketType], Awaitable[None]]
) -> None:
    """Until cancelled: `take` gets each client, whose socket is its own to close."""
    while True:
        try:
            client, _ = await listener.accept()
        except OSError:  # no descriptor, or a client that has gone away again
            await trio.sleep(_ACCEPT_PAUSE_S)
        else:
            await take(client)
