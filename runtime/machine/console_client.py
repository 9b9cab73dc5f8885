"""The client's end of a console: the terminal, or whatever stdin and stdout are. Blocking."""

import contextlib
import os
import select
import signal
import socket
import sys
import termios
import time
import tty
from collections.abc import Iterator
from types import FrameType
from typing import Final

import msgspec

from runtime.exits import CommandError, ExitCode
from runtime.machine.management_client import RequestRefused
from runtime.machine.management_wire import ManagementStatus
from runtime.machine.rundir import MachineFolder

ESCAPE: Final = 0x1D  # Ctrl-]
ANSWER_SECONDS_MAX: Final = 5.0  # for all of it
ANSWER_BYTES_MAX: Final = 4096
_PIECE_BYTES: Final = 4096


class NoConsole(CommandError):
    """The machine is there, and its console socket does not answer."""

    exit_code = ExitCode.NO_ANSWER


class _Answer(msgspec.Struct, frozen=True):
    ok: bool
    status: ManagementStatus = ManagementStatus.FAILED
    message: str = "it does not say why"


def connect(folder: MachineFolder, name: str, *, log: bool) -> socket.socket:
    """Raises RequestRefused: no such console, or somebody else has it; NoConsole."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(ANSWER_SECONDS_MAX)
        try:
            sock.connect(str(folder.console_path))
            sock.sendall(msgspec.json.encode({"name": name, "log": log}) + b"\n")
            answer = msgspec.json.decode(_read_line(sock), type=_Answer)
        except (OSError, ValueError, RecursionError) as error:
            raise NoConsole(
                f"the consoles of machine {folder.name!r} (pid {folder.pid}) do not answer: {error}"
            ) from error
        if not answer.ok:
            raise RequestRefused(answer.status, answer.message)
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return sock


def _read_line(sock: socket.socket) -> bytes:
    """Byte by byte: what comes behind it belongs to somebody else. OSError, ValueError: it is not there in time."""
    deadline, line = time.monotonic() + ANSWER_SECONDS_MAX, b""
    while not line.endswith(b"\n"):
        if len(line) == ANSWER_BYTES_MAX:
            raise ValueError(f"more than {ANSWER_BYTES_MAX} bytes without an end")
        if (left := deadline - time.monotonic()) <= 0:
            raise TimeoutError("timed out")
        sock.settimeout(left)
        if not (byte := sock.recv(1)):
            raise ConnectionResetError("it has closed the connection")
        line += byte
    return line


def read_log(line: socket.socket) -> list[tuple[str, str]]:
    """(time, text) of each line that is kept."""
    data = b""
    while piece := line.recv(_PIECE_BYTES):
        data += piece
    rows = [row.partition("  ") for row in data.decode("utf-8", "replace").splitlines()]
    return [(time, text) for time, _, text in rows]


def attach(line: socket.socket, *, quiet_ms: int, escape: int | None) -> bool:
    """Until the user detaches, or the input ends and nothing comes any more. True: the machine has ended.

    Args:
        escape: the byte that detaches; None: none does. Then stdin is no terminal.
    """
    with _raw(0) if escape is not None else contextlib.nullcontext():
        if escape is not None:
            print("attached; detach with Ctrl-]", end="\r\n", file=sys.stderr, flush=True)
        return _pump(line, quiet_ms, escape)


def _pump(line: socket.socket, quiet_ms: int, escape: int | None) -> bool:
    waits = select.poll()
    waits.register(line, select.POLLIN)
    waits.register(0, select.POLLIN)
    typing = True
    while True:
        ready = dict(waits.poll(None if typing else quiet_ms))
        if not ready:
            return False  # quiet for so long
        if line.fileno() in ready:
            try:
                data = line.recv(_PIECE_BYTES)
            except ConnectionResetError:
                data = b""
            if not data:
                return True
            _write_all(data)
        if 0 in ready:
            data = os.read(0, _PIECE_BYTES)
            before, found, _ = data.partition(bytes([escape])) if escape is not None else (data, b"", b"")
            if before:
                try:
                    line.sendall(before)
                except (BrokenPipeError, ConnectionResetError):
                    return True
            if found:
                return False
            if not data:
                typing = False
                waits.unregister(0)


def _write_all(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


@contextlib.contextmanager
def _raw(fd: int) -> Iterator[None]:
    """The terminal is as it was afterwards, also where we are told to end."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = termios.tcgetattr(fd)
    handlers = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        tty.setraw(fd, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
