"""Message queues: the kernel's, and those of Python's multiprocessing."""

import ctypes
import errno
import multiprocessing
import os
import secrets
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from runtime.measure.transport import Answer, Impossible, Transport

_LIMIT: Final = Path("/proc/sys/fs/mqueue/msgsize_max")
_MESSAGES: Final = 4


class _Attributes(ctypes.Structure):
    """struct mq_attr. Source: mq_getattr(3)."""

    _fields_ = (
        ("flags", ctypes.c_long),
        ("messages_max", ctypes.c_long),
        ("message_bytes", ctypes.c_long),
        ("messages", ctypes.c_long),
        ("reserved", ctypes.c_long * 4),
    )


class MessageQueueTransport(Transport):
    """Two POSIX message queues, by ctypes; their names are gone as soon as they are open. Source: mq_overview(7)."""

    name, group = "posix-mqueue", "kernel"

    def open(self, payload_bytes: int) -> None:
        self._fds: list[int] = []
        self._size = payload_bytes
        self._libc = ctypes.CDLL(None, use_errno=True)
        if not hasattr(self._libc, "mq_open"):
            raise Impossible("the C library has no mq_open")
        self._libc.mq_receive.restype = self._libc.mq_send.restype = ctypes.c_ssize_t
        self._libc.mq_receive.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p]
        self._libc.mq_send.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint]
        self._buffer = ctypes.create_string_buffer(payload_bytes)
        try:
            for _ in range(2):
                self._fds.append(self._create(payload_bytes))
        except Impossible:
            self.close()
            raise

    def _create(self, payload_bytes: int) -> int:
        name = f"/partvisor-{secrets.token_hex(8)}".encode()
        attributes = _Attributes(messages_max=_MESSAGES, message_bytes=payload_bytes)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        fd = int(self._libc.mq_open(name, flags, ctypes.c_uint(0o600), ctypes.byref(attributes)))
        if fd < 0:
            number = ctypes.get_errno()
            if number == errno.EINVAL and _LIMIT.exists():
                raise Impossible(f"a message has at most {_LIMIT.read_text().strip()} bytes: {_LIMIT}")
            raise Impossible(f"mq_open: {os.strerror(number)}")
        self._libc.mq_unlink(name)
        return fd

    def serve(self, answer: Answer) -> None:
        while True:
            self._send(self._fds[1], answer(self._receive(self._fds[0])))

    def exchange(self, request: bytes) -> bytes:
        self._send(self._fds[0], request)
        return self._receive(self._fds[1])

    def _send(self, fd: int, data: bytes) -> None:
        if self._libc.mq_send(fd, data, len(data), 0) < 0:
            raise OSError(ctypes.get_errno(), "mq_send")

    def _receive(self, fd: int) -> bytes:
        length = self._libc.mq_receive(fd, self._buffer, self._size, None)
        if length < 0:
            raise OSError(ctypes.get_errno(), "mq_receive")
        return self._buffer.raw[:length]

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)


class MultiprocessingPipeTransport(Transport):
    """multiprocessing.Pipe, as bytes."""

    name, group = "multiprocessing-pipe", "multiprocessing"
    _client: "Connection[bytes, bytes]"
    _server: "Connection[bytes, bytes]"

    def open(self, payload_bytes: int) -> None:
        self._client, self._server = multiprocessing.get_context("fork").Pipe()

    def serve(self, answer: Answer) -> None:
        receive, send = self._server.recv_bytes, self._server.send_bytes
        while True:
            send(answer(receive()))

    def exchange(self, request: bytes) -> bytes:
        self._client.send_bytes(request)
        return self._client.recv_bytes()

    def close(self) -> None:
        self._client.close()
        self._server.close()


class MultiprocessingQueueTransport(Transport):
    """multiprocessing.Queue: pickled, through a thread of the sender."""

    name, group = "multiprocessing-queue", "multiprocessing"

    def open(self, payload_bytes: int) -> None:
        context: Any = multiprocessing.get_context("fork")
        self._requests, self._replies = context.Queue(), context.Queue()

    def serve(self, answer: Answer) -> None:
        while True:
            self._replies.put(answer(self._requests.get()))

    def exchange(self, request: bytes) -> bytes:
        self._requests.put(request)
        reply: bytes = self._replies.get()
        return reply

    def close(self) -> None:
        self._requests.close()
        self._replies.close()
