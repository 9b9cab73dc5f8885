"""What a serial line leads to by itself: a pty, a Unix socket, or the console of its partition.

The stack opens it and keeps it open, so that processes of the driver come and go, and who is attached notices nothing.
"""

import contextlib
import errno
import os
import select
import socket
import tty
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from partitions.machine_plan import DevicePlan
from partitions.sdk.context import DriverContext
from partitions.sdk.serial import SerialDriver
from partitions.serial.console_line import open_pair
from partitions.storage.backends import BackendOpenError

Log = Callable[..., None]
_GONE: Final = (errno.EIO, errno.EPIPE, errno.ECONNRESET)
_kept: dict[
    str, tuple[int, ...]
] = {}  # descriptors of this process's lines, by device; the first is handed on


class PtySerial(SerialDriver):
    """On the master of a pty, which somebody else keeps a slave of: it never hangs up."""

    def write(self, data: bytes) -> int:
        assert self.context.backing_fd is not None
        try:
            return os.write(self.context.backing_fd, data)
        except BlockingIOError:
            return 0

    def read(self, limit: int) -> bytes:
        assert self.context.backing_fd is not None
        try:
            return os.read(self.context.backing_fd, limit)
        except BlockingIOError:
            return b""
        except OSError as error:
            if error.errno in _GONE:
                return b""
            raise

    @property
    def descriptor(self) -> int | None:
        return self.context.backing_fd


class SocketSerial(SerialDriver):
    """On a listening socket: one peer at a time; what is written while there is none waits for the next."""

    def __init__(self, context: DriverContext) -> None:
        super().__init__(context)
        assert context.backing_fd is not None
        self._listener = socket.socket(fileno=os.dup(context.backing_fd))
        self._listener.setblocking(False)
        self._peer: socket.socket | None = None
        self._both = select.epoll()
        self._both.register(self._listener, select.EPOLLIN)

    def _attach(self) -> None:
        with contextlib.suppress(BlockingIOError):
            peer, _ = self._listener.accept()
            peer.setblocking(False)
            self._peer = peer
            self._both.unregister(self._listener)
            self._both.register(peer, select.EPOLLIN)

    def _detach(self) -> None:
        peer, self._peer = self._peer, None
        if peer is not None:
            self._both.unregister(peer)
            peer.close()
            self._both.register(self._listener, select.EPOLLIN)

    def write(self, data: bytes) -> int:
        peer = self._peer
        try:
            return 0 if peer is None else peer.send(data)
        except BlockingIOError:
            return 0
        except OSError:  # it has gone: `read` finds that out, too
            return 0

    def read(self, limit: int) -> bytes:
        if self._peer is None:
            self._attach()
        if self._peer is None:
            return b""
        try:
            data = self._peer.recv(limit)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:
            self._detach()
        return data

    @property
    def descriptor(self) -> int | None:
        return self._both.fileno()

    def close(self) -> None:
        self._detach()
        self._both.close()
        self._listener.close()
        super().close()


class ConsoleSerial(PtySerial):
    """On one end of a pair, whose other end the platform has."""

    def write(self, data: bytes) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno in _GONE:
                return 0
            raise


SERIAL_BACKENDS: Final[Mapping[str, type[SerialDriver]]] = {
    "pty": PtySerial,
    "socket": SocketSerial,
    "console": ConsoleSerial,
}


def open_line(plan: DevicePlan, log: Log) -> int | None:
    """What a line's driver is to have: a descriptor of its own, each time. Raises BackendOpenError. None: nothing."""
    if plan.backend is None or plan.backend not in _OPENERS:
        return None
    if plan.name not in _kept:
        try:
            _kept[plan.name] = _OPENERS[plan.backend](plan, log)
        except OSError as error:
            raise BackendOpenError(error.errno or 0, f"{plan.name}: {error.strerror or error}") from error
    return os.dup(_kept[plan.name][0])


def _open_pty(plan: DevicePlan, log: Log) -> tuple[int, ...]:
    master, slave = os.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    path = os.ttyname(slave)
    if plan.path is not None:
        temporary = Path(f"{plan.path}.{os.getpid()}")
        temporary.symlink_to(path)
        temporary.rename(plan.path)  # over the one of a predecessor
    log("serial.ready", device=plan.name, path=path)
    return master, slave


def _open_socket(plan: DevicePlan, log: Log) -> tuple[int, ...]:
    path = str(plan.path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    _remove_stale(path)
    listener.bind(path)
    listener.listen(1)
    listener.setblocking(False)
    log("serial.ready", device=plan.name, path=path)
    return (listener.detach(),)


def _open_console(plan: DevicePlan, log: Log) -> tuple[int, ...]:
    return (open_pair(f"serial:{plan.name}"),)


_OPENERS: Final[Mapping[str, Callable[[DevicePlan, Log], tuple[int, ...]]]] = {
    "pty": _open_pty,
    "socket": _open_socket,
    "console": _open_console,
}


def _remove_stale(path: str) -> None:
    """A socket that nobody listens on: of a machine that was killed."""
    with contextlib.suppress(FileNotFoundError), socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()


def make_backend(plan: DevicePlan, backing_fd: int | None) -> SerialDriver:
    context: Mapping[str, Any] = {"size_bytes": None, "block_bytes": 512, "read_only": False, "memory": None}
    assert plan.backend is not None
    return SERIAL_BACKENDS[plan.backend](
        DriverContext(name=plan.name, kind=plan.kind, args=plan.args, backing_fd=backing_fd, **context)
    )
