"""The debug port: a Unix socket in the machine's folder on which the broker itself answers, whoever else is dead.

It is no way to command anything. A client asks for one page of one table and gets it; a page is bounded, a client that
does not read is dropped, and only the machine's owner is let in.

    client -> broker   [table, {"after"?: where to go on}]; a table is "partitions", "ports", "queue", "objects",
                       "hypervisor" or "processes"
    broker -> client   [the same, {"rows": [...], "more": bool}], or {...} for the last two; or ["error", {"reason"}]
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Final

from runtime import codec
from runtime.hypervisor.loop import Loop

CLIENTS_MAX: Final = 4
REQUEST_BYTES_MAX: Final = 1_024
CLIENT_LIFE_MS: Final = 30_000  # of one connection
_CREDENTIALS: Final = struct.Struct("=iII")  # pid, uid, gid

Table = Callable[[int], dict[str, object]]  # (after) -> one page


class DebugPort:
    """Owns the listening socket and its clients."""

    def __init__(self, loop: Loop, listener: socket.socket, tables: Mapping[str, Table]) -> None:
        """`tables`: what can be asked for."""
        listener.setblocking(False)
        self._loop: Final = loop
        self._listener: Final = listener
        self._tables: Final = tables
        self._clients: dict[int, socket.socket] = {}  # by descriptor
        loop.watch(listener.fileno(), lambda events: self._accept())

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:  # gone already, or no descriptor is left
            return
        if len(self._clients) >= CLIENTS_MAX or not _is_owner(client):
            client.close()
            return
        client.setblocking(False)
        fd = client.fileno()
        self._clients[fd] = client
        self._loop.watch(fd, lambda events: self._serve(client))
        self._loop.after(CLIENT_LIFE_MS, lambda: self._drop(client))

    def _serve(self, client: socket.socket) -> None:
        """One request and its answer."""
        try:
            packet = client.recv(REQUEST_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self._drop(client)
            return
        try:
            client.send(codec.encode(self._answer(packet)), socket.MSG_NOSIGNAL)
        except (OSError, codec.EncodeError):  # gone; or it asks, and does not read the answers
            self._drop(client)

    def _answer(self, packet: bytes) -> list[object]:
        try:
            request = codec.decode(packet)
        except codec.DecodeError as error:
            return ["error", {"reason": str(error)}]
        match request:
            case [str() as name, dict() as args] if name in self._tables:
                after = args.get("after", 0)
                if type(after) is int and after >= 0:
                    return [name, self._tables[name](after)]
        return ["error", {"reason": f"want [table, map]; tables: {', '.join(self._tables)}"}]

    def _drop(self, client: socket.socket) -> None:
        fd = client.fileno()
        if self._clients.get(fd) is client:
            del self._clients[fd]
            self._loop.drop(fd)
            client.close()

    def close(self) -> None:
        for client in list(self._clients.values()):
            self._drop(client)
        self._loop.drop(self._listener.fileno())
        self._listener.close()


def _is_owner(client: socket.socket) -> bool:
    """The kernel's word for who connected."""
    credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(credentials)
    return uid in (os.geteuid(), 0)
