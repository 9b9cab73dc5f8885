"""Two processes in Python that hand each other bytes over what the kernel has for it: a peer in our own language.

Kinds are pipe, pty, stream and vsock. An exchange goes there and back, one after the other, and is compared; an echo is
a flow there and back, a flow goes one way. Both sides block. Whoever dies takes those along that it has started.
"""

import contextlib
import json
import os
import select
import socket
import time
import tty
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bus.native import Histogram, monotonic_ns
from runtime.exits import CommandError
from runtime.machine.lifeline import die_with_parent

ON_THE_WAY_BYTES_MAX: Final = 32 << 10  # of an echo: what pipes and terminals hold for sure is less
_WHOLE_BYTES: Final = 1 << 20
_PTY_BYTES: Final = 2048  # of one write: what a terminal takes at once
_VSOCK_LOCAL: Final = 1  # VMADDR_CID_LOCAL


@dataclass(frozen=True, slots=True)
class Side:
    read_fd: int
    write_fd: int

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.write_fd, view) :]

    def whole(self, size: int) -> bytes:
        """So many bytes; fewer at the end."""
        data = os.read(self.read_fd, size)
        while len(data) < size and (more := os.read(self.read_fd, size - len(data))):
            data += more
        return data


def _pipes() -> tuple[Side, Side]:
    (there, to_there), (back, to_back) = os.pipe(), os.pipe()
    return Side(back, to_there), Side(there, to_back)


def _terminal() -> tuple[Side, Side]:
    master, slave = os.openpty()
    tty.setraw(slave)
    return Side(master, master), Side(slave, slave)


def _sockets() -> tuple[Side, Side]:
    first, second = (one.detach() for one in socket.socketpair())
    return Side(first, first), Side(second, second)


def _vsocks() -> tuple[Side, Side]:
    """OSError: this kernel has no loopback of it."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as listener:
        listener.bind((_VSOCK_LOCAL, socket.VMADDR_PORT_ANY))
        listener.listen(1)
        ours = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        ours.connect(listener.getsockname())
        theirs, _ = listener.accept()
        first, second = ours.detach(), theirs.detach()
        return Side(first, first), Side(second, second)


KINDS: Final[dict[str, Callable[[], tuple[Side, Side]]]] = {
    "pipe": _pipes,
    "pty": _terminal,
    "stream": _sockets,
    "vsock": _vsocks,
}


def _serve(side: Side, mode: str) -> None:
    with contextlib.suppress(OSError):
        while data := os.read(side.read_fd, _WHOLE_BYTES):
            if mode != "flow":
                side.send(data)


def _exchange(side: Side, size: int, deadline: int, latency: Histogram) -> int:
    count = 0
    while (begun := monotonic_ns()) < deadline:
        count += 1
        piece = count.to_bytes(size, "little")
        side.send(piece)
        if side.whole(size) != piece:
            raise ValueError("what came back is not what was said")
        latency.record(monotonic_ns() - begun)
    return count


def _echo(side: Side, size: int, deadline: int, latency: Histogram) -> int:
    """Pieces that came back, with some on the way; what can be written now is, and what can be read is read first."""
    os.set_blocking(side.write_fd, False)
    os.set_blocking(side.read_fd, False)
    piece, sent, read, unsent = bytes(size), 0, 0, memoryview(b"")
    while monotonic_ns() < deadline or read < sent or unsent:
        wants = monotonic_ns() < deadline and sent - read + size <= ON_THE_WAY_BYTES_MAX
        if not unsent and wants:
            unsent = memoryview(piece)
            sent += size
        select.select([side.read_fd], [side.write_fd] if unsent else [], [])
        with contextlib.suppress(BlockingIOError):
            read += len(os.read(side.read_fd, _WHOLE_BYTES))
        with contextlib.suppress(BlockingIOError):
            unsent = unsent[os.write(side.write_fd, unsent[:_PTY_BYTES]) :] if unsent else unsent
    return read // size


def _flow(side: Side, size: int, deadline: int, latency: Histogram) -> int:
    piece, count = bytes(size), 0
    while monotonic_ns() < deadline:
        side.send(piece)
        count += 1
    return count


MODES: Final[dict[str, Callable[[Side, int, int, Histogram], int]]] = {
    "exchange": _exchange,
    "echo": _echo,
    "flow": _flow,
}


def run(kind: str, mode: str, size: int, seconds: float, cpus: tuple[int, int]) -> dict[str, float]:
    """OSError: this host has no such thing."""
    ours, theirs = KINDS[kind]()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            die_with_parent(parent)
            os.sched_setaffinity(0, {cpus[1]})
            for fd in {ours.read_fd, ours.write_fd}:
                os.close(fd)
            _serve(theirs, mode)
        finally:
            os._exit(0)
    for fd in {theirs.read_fd, theirs.write_fd}:
        os.close(fd)
    os.sched_setaffinity(0, {cpus[0]})
    latency, used, begun = Histogram(), time.process_time_ns(), monotonic_ns()
    count = MODES[mode](ours, size, begun + int(seconds * 1e9), latency)
    took, used = (monotonic_ns() - begun) / 1e9, time.process_time_ns() - used
    for fd in {ours.read_fd, ours.write_fd}:
        os.close(fd)
    _, _, theirs_used = os.wait4(child, 0)
    used += int((theirs_used.ru_utime + theirs_used.ru_stime) * 1e9)
    return {"p50_ns": latency.percentile(50), "operations": count, "seconds": took, "cpu_ns": used}


def run_apart(kind: str, mode: str, size: int, seconds: float, cpus: tuple[int, int]) -> dict[str, float]:
    """The same in a process of its own. CommandError: this host has no such thing, or it went wrong; one line."""
    read_fd, write_fd = os.pipe()
    parent = os.getpid()
    first = os.fork()
    if first == 0:
        answer: dict[str, float | str] = {"error": "it died"}
        try:
            die_with_parent(parent)
            os.close(read_fd)
            answer = {**run(kind, mode, size, seconds, cpus)}
        except (OSError, ValueError) as error:
            answer = {"error": str(error)}
        finally:
            os.write(write_fd, json.dumps(answer).encode())
            os._exit(0)
    os.close(write_fd)
    with open(read_fd, "rb") as answers:
        found = json.loads(answers.read() or b'{"error": "it was killed"}')
    os.waitpid(first, 0)
    if "error" in found:
        raise CommandError(f"no {kind} here: {found['error']}")
    return dict(found)
