"""What every kernel has: pipes and sockets."""

import os
import socket
from typing import Final

from runtime.measure.transport import Answer, Transport

_PATIENCE_S: Final = 10.0


class PipeTransport(Transport):
    """Two pipes, read and written by bare system calls."""

    name, group = "pipe", "kernel"

    def open(self, payload_bytes: int) -> None:
        self._size = payload_bytes
        self._requests, self._replies = os.pipe(), os.pipe()

    def serve(self, answer: Answer) -> None:
        while True:
            os.write(self._replies[1], answer(self._read(self._requests[0])))

    def exchange(self, request: bytes) -> bytes:
        os.write(self._requests[1], request)
        return self._read(self._replies[0])

    def _read(self, fd: int) -> bytes:
        data = os.read(fd, self._size)
        while len(data) < self._size:  # a pipe has no borders between messages
            data += os.read(fd, self._size - len(data))
        return data

    def close(self) -> None:
        for fd in (*self._requests, *self._replies):
            os.close(fd)


class _Stream(Transport):
    group = "sockets"
    _client: socket.socket
    _server: socket.socket

    def serve(self, answer: Answer) -> None:
        server = self._server
        while True:
            server.sendall(answer(self._receive(server)))

    def exchange(self, request: bytes) -> bytes:
        self._client.sendall(request)
        return self._receive(self._client)

    def _receive(self, end: socket.socket) -> bytes:
        data = end.recv(self._size)
        while len(data) < self._size:
            if not (more := end.recv(self._size - len(data))):
                raise EOFError("the other side is gone")
            data += more
        return data

    def open(self, payload_bytes: int) -> None:
        self._size = payload_bytes

    def close(self) -> None:
        self._client.close()
        self._server.close()


class UnixStreamTransport(_Stream):
    name = "unix-stream"

    def open(self, payload_bytes: int) -> None:
        super().open(payload_bytes)
        self._client, self._server = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


class UnixSeqpacketTransport(Transport):
    """Datagrams that arrive in order: what a partition's hypercalls travel by."""

    name, group = "unix-seqpacket", "sockets"

    def open(self, payload_bytes: int) -> None:
        self._size = payload_bytes
        self._client, self._server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def serve(self, answer: Answer) -> None:
        server, size = self._server, self._size
        while True:
            server.send(answer(server.recv(size)))

    def exchange(self, request: bytes) -> bytes:
        self._client.send(request)
        return self._client.recv(self._size)

    def close(self) -> None:
        self._client.close()
        self._server.close()


class TcpTransport(_Stream):
    """Loopback, without Nagle's delay."""

    name = "tcp-loopback"

    def open(self, payload_bytes: int) -> None:
        super().open(payload_bytes)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1)
        self._client = self._server = self._listener

    def serve(self, answer: Answer) -> None:
        self._server, _ = self._listener.accept()
        self._server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().serve(answer)

    def connect(self) -> None:
        self._client = socket.create_connection(self._listener.getsockname(), timeout=_PATIENCE_S)
        self._client.settimeout(None)
        self._client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        self._listener.close()
