"""One-way streams of small messages over what every Python program has: what our batches have to beat.

Two forks of this process, pinned. The receiver gets each message as bytes of its own; where the transport has no
borders between messages, it cuts them itself. BATCH messages go out at once where the transport can take them so.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Iterator
from time import perf_counter_ns
from typing import Final

from runtime.exits import CommandError
from runtime.machine.lifeline import die_with_parent

MESSAGE_BYTES: Final = 64
BATCH: Final = 256
_READ_BYTES: Final = 1 << 16
_REPORT_BYTES: Final = 32

Send = Callable[[int], None]  # so many messages
Receive = Callable[[], int]  # how many came
Way = Callable[[], "contextlib.AbstractContextManager[tuple[Send, Receive]]"]


def _batch() -> list[bytes]:
    return [os.urandom(MESSAGE_BYTES) for _ in range(BATCH)]


def _cut(data: bytes) -> list[bytes]:
    return [data[at : at + MESSAGE_BYTES] for at in range(0, len(data), MESSAGE_BYTES)]


def _stream(write: Callable[[bytes], object], read: Callable[[int], bytes]) -> tuple[Send, Receive]:
    batch = _batch()
    rest = b""

    def send(count: int) -> None:
        write(b"".join(batch[:count]))

    def receive() -> int:
        nonlocal rest
        if not (got := read(_READ_BYTES)):
            raise EOFError("the sender is gone")
        data = rest + got
        whole = len(data) - len(data) % MESSAGE_BYTES
        rest = data[whole:]
        return len(_cut(data[:whole]))

    return send, receive


@contextlib.contextmanager
def pipe() -> Iterator[tuple[Send, Receive]]:
    read_fd, write_fd = os.pipe()
    try:
        yield _stream(lambda data: _write_all(write_fd, data), lambda size: os.read(read_fd, size))
    finally:
        os.close(read_fd)
        os.close(write_fd)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


@contextlib.contextmanager
def unix_stream() -> Iterator[tuple[Send, Receive]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        yield _stream(ours.sendall, theirs.recv)


@contextlib.contextmanager
def unix_seqpacket() -> Iterator[tuple[Send, Receive]]:
    """A message each: the kernel keeps the borders."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    batch = _batch()

    def send(count: int) -> None:
        for message in batch[:count]:
            ours.send(message)

    def receive() -> int:
        theirs.recv(MESSAGE_BYTES)
        return 1

    with ours, theirs:
        yield send, receive


@contextlib.contextmanager
def multiprocessing_pipe() -> Iterator[tuple[Send, Receive]]:
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
    batch = _batch()

    def send(count: int) -> None:
        for message in batch[:count]:
            sender.send_bytes(message)

    def receive() -> int:
        receiver.recv_bytes()
        return 1

    with receiver, sender:
        yield send, receive


WAYS: Final[dict[str, Way]] = {
    "pipe": pipe,
    "unix-stream": unix_stream,
    "unix-seqpacket": unix_seqpacket,
    "multiprocessing-pipe": multiprocessing_pipe,
}


def messages_per_s(name: str, messages: int, cpus: tuple[int, int]) -> float:
    """As the receiver saw it, from its first message to its last. CommandError: a side failed."""
    messages = max(messages // BATCH, 2) * BATCH
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    sides: list[int] = []
    try:
        with WAYS[name]() as (send, receive):
            sides.append(_fork(cpus[1], lambda: _report(write_fd, _receive_all(receive, messages))))
            sides.append(_fork(cpus[0], lambda: _send_all(send, messages)))
            os.close(write_fd)
            write_fd = -1
            said = os.read(read_fd, _REPORT_BYTES)
    finally:
        for pid in sides:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for fd in (read_fd, write_fd):
            if fd >= 0:
                os.close(fd)
    if not said:
        raise CommandError(f"one-way messages over {name}: a side failed")
    return float(said)


def _fork(cpu: int, body: Callable[[], None]) -> int:
    parent, pid = os.getpid(), os.fork()
    if pid == 0:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            die_with_parent(parent)
            os.sched_setaffinity(0, {cpu})
            body()
        finally:
            os._exit(0)
    return pid


def _send_all(send: Send, messages: int) -> None:
    for _ in range(messages // BATCH):
        send(BATCH)
    signal.pause()  # until we are killed: our end stays open


def _receive_all(receive: Receive, messages: int) -> float:
    first = left = receive()
    begin = perf_counter_ns()
    left = messages - first
    while left > 0:
        left -= receive()
    return (messages - first) / ((perf_counter_ns() - begin) / 1e9)


def _report(write_fd: int, value: float) -> None:
    os.write(write_fd, f"{value:.0f}".encode())
