"""ZeroMQ's PAIR sockets, by pyzmq. A context does not survive a fork: each side makes its own."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from runtime.measure.transport import Answer, NotInstalled, Transport

if TYPE_CHECKING:
    import zmq

_ENDPOINT_BYTES_MAX: Final = 256


class _ZmqTransport(Transport):
    group = "zeromq"
    _context: "zmq.Context[zmq.Socket[bytes]] | None" = None  # where both sides are one process

    def open(self, payload_bytes: int) -> None:
        try:
            import zmq
        except ImportError as error:
            raise NotInstalled("pip install pyzmq") from error
        self._zmq: Any = zmq
        self._said = os.pipe()  # the server says where it listens

    def _where(self) -> str:
        raise NotImplementedError

    def _pair(self) -> Any:
        context = self._context or self._zmq.Context()
        socket = context.socket(self._zmq.PAIR)
        socket.setsockopt(self._zmq.LINGER, 0)
        return socket

    def serve(self, answer: Answer) -> None:
        server = self._pair()
        server.bind(self._where())
        os.write(self._said[1], server.getsockopt(self._zmq.LAST_ENDPOINT).rstrip(b"\0"))
        while True:
            server.send(answer(server.recv()))

    def connect(self) -> None:
        self._client = self._pair()
        self._client.connect(os.read(self._said[0], _ENDPOINT_BYTES_MAX).decode())

    def exchange(self, request: bytes) -> bytes:
        self._client.send(request)
        reply: bytes = self._client.recv()
        return reply

    def close(self) -> None:
        for fd in self._said:
            os.close(fd)


class ZmqInprocTransport(_ZmqTransport):
    """Two threads of one process, which share its interpreter lock: it is no way for two processes to talk."""

    name, one_process = "zmq-inproc-2-threads", True

    def _where(self) -> str:
        return "inproc://ladder"

    def _pair(self) -> Any:
        # Both sides come here at about the same time; the thread that serves was started first.
        if self._context is None:
            self._context = self._zmq.Context.instance()
        return super()._pair()


class ZmqIpcTransport(_ZmqTransport):
    """A Unix socket below."""

    name = "zmq-ipc"

    def open(self, payload_bytes: int) -> None:
        super().open(payload_bytes)
        self._folder = tempfile.TemporaryDirectory(prefix="partvisor-bench-")

    def _where(self) -> str:
        return f"ipc://{Path(self._folder.name) / 'pair'}"

    def close(self) -> None:
        super().close()
        self._folder.cleanup()


class ZmqTcpTransport(_ZmqTransport):
    name = "zmq-tcp"

    def _where(self) -> str:
        return "tcp://127.0.0.1:*"
