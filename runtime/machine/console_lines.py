"""The consoles of a machine's partitions: what comes from each is logged, and one terminal at a time may attach.

The root hands us an end of each line, and so does its successor; a terminal that is attached notices nothing.
Terminals come by the socket `console` in the machine's folder: a line of JSON, {"name", "log"}, is answered by one,
{"ok": true, "line"} or {"ok": false, "status", "message"}; from then on bytes travel as they are. With "log" the log
follows instead.
"""

import math
import os
import socket
import struct
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import msgspec
import trio

from runtime.config.devices import BackendKind, DeviceConfig, DeviceKind
from runtime.config.emulated import EmulatedKind
from runtime.config.model import MachineConfig
from runtime.machine.console_text import ConsoleText
from runtime.machine.machine_control import ControlError
from runtime.machine.management_wire import ManagementStatus
from runtime.machine.private_socket import listen_at
from runtime.machine.rundir import MachineFolder
from runtime.reserved_names import ROOT

REQUEST_BYTES_MAX: Final = 4096
REQUEST_SECONDS_MAX: Final = 5.0
TERMINALS_MAX: Final = 32  # connections at once, also those that are being refused
SHOWN_PIECES_MAX: Final = (
    256  # that wait for a terminal that is slow; what comes then, it misses: the log has it
)
_PIECE_BYTES: Final = 4096
_CREDENTIALS: Final = struct.Struct("=iII")


class Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a terminal says first."""

    name: str
    log: bool = False


class _Terminal:
    """One that is attached."""

    def __init__(self, stream: trio.SocketStream, pid: int) -> None:
        self.stream, self.pid = stream, pid
        self.pieces, self._take = trio.open_memory_channel[bytes](SHOWN_PIECES_MAX)
        self.missed = 0  # bytes

    def show(self, data: bytes) -> None:
        try:
            self.pieces.send_nowait(data)
        except trio.WouldBlock:
            self.missed += len(data)

    async def write(self) -> None:
        async for data in self._take:
            await self.stream.send_all(data)


class _Line:
    """One console."""

    def __init__(self, key: str) -> None:
        self.key = key
        # Oldest first; that one counts. A successor makes a pair in any case, and its driver may have outlived it all.
        self.ends: list[trio.SocketStream] = []
        self.changed = trio.Condition()
        self.terminal: _Terminal | None = None
        self.text: ConsoleText | None = None

    async def listen(self, end: trio.SocketStream) -> None:
        """Until that root's end is gone."""
        async with self.changed:
            self.ends.append(end)
            self.changed.notify_all()
        try:
            while data := await end.receive_some(_PIECE_BYTES):
                if self.text is not None:
                    self.text.write(data)
                if self.terminal is not None:
                    self.terminal.show(data)
        except trio.BrokenResourceError:
            pass
        finally:
            self._forget(end)
            await trio.aclose_forcefully(end)

    def _forget(self, end: trio.SocketStream) -> None:
        if end in self.ends:
            self.ends.remove(end)

    async def type(self, data: bytes) -> None:
        """To whichever root is there. What one that dies had not read is lost with it."""
        while True:
            async with self.changed:
                while not self.ends:
                    await self.changed.wait()
                end = self.ends[0]
            try:
                await end.send_all(data)
                return
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._forget(end)


def _log_of(line: _Line, folder: MachineFolder) -> ConsoleText:
    return ConsoleText(folder.path / f"console-{line.key.replace(':', '-')}.log")


class ConsoleLines:
    """Of one machine. `connect` may come before anything else."""

    def __init__(self, config: MachineConfig) -> None:
        self._lines: dict[str, _Line] = {}
        self._of_name: dict[str, list[str]] = {}  # keys, by what a user may say
        self._partitions = [partition.name for partition in config.partitions]
        consoles = {
            device.name
            for device in config.root.devices
            if device.kind is DeviceKind.SERIAL and device.backend is BackendKind.CONSOLE
        }
        for partition in config.partitions:
            if partition.parent != ROOT:
                continue
            names = [f"serial:{one.name}" for one in partition.devices if one.name in consoles]
            if any(one.kind is EmulatedKind.UART for one in partition.emulated):
                names.insert(0, f"uart:{partition.name}")
            for key in names:
                self._lines[key] = _Line(key)
                self._of_name.setdefault(key, [key])
            if names:
                self._of_name[partition.name] = names
        for device in consoles:
            if f"serial:{device}" in self._lines:
                self._of_name.setdefault(device, [f"serial:{device}"])
        self._new_send, self._new = trio.open_memory_channel[tuple[_Line, int]](math.inf)
        self._terminals = 0
        self._folder: MachineFolder | None = None  # once it is served

    def add(self, partition: str, device: DeviceConfig) -> None:
        """A device that the partition gets while the machine runs; not a line, mostly."""
        if device.kind is not DeviceKind.SERIAL or device.backend is not BackendKind.CONSOLE:
            return
        key = f"serial:{device.name}"
        if key not in self._lines:
            self._lines[key] = line = _Line(key)
            if self._folder is not None:
                line.text = _log_of(line, self._folder)
            self._of_name[key] = [key]
            self._of_name.setdefault(device.name, [key])
            self._of_name[partition] = [*self._of_name.get(partition, ()), key]

    def connect(self, key: str, fd: int) -> None:
        """A root's end of a line; ours from here on."""
        if (line := self._lines.get(key)) is None:
            os.close(fd)
            return
        self._new_send.send_nowait((line, fd))

    def find(self, name: str) -> _Line:
        """Raises ControlError."""
        keys = self._of_name.get(name, [])
        if len(keys) == 1:
            return self._lines[keys[0]]
        if keys:
            raise ControlError(
                ManagementStatus.REFUSED, f"{name} has {len(keys)} lines; choose one: {', '.join(keys)}"
            )
        if name in self._partitions:
            problem = (
                f'partition {name} has no console: give it an emulated device of kind = "uart", or a device of'
                ' kind = "serial" with backend = "console"'
            )
        else:
            those = ", ".join(self._partitions)
            problem = f"no partition named {name[:80]!r}; there are {those}" if those else "no partitions"
        raise ControlError(ManagementStatus.NOT_FOUND, problem)

    async def serve(
        self, folder: MachineFolder, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Until cancelled."""
        self._folder = folder
        for line in self._lines.values():
            line.text = _log_of(line, folder)
        listener = trio.socket.from_stdlib_socket(listen_at(folder.console_path, TERMINALS_MAX))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._accept_ends, nursery)
                nursery.start_soon(
                    partial(
                        trio.serve_listeners,
                        self._serve,
                        [trio.SocketListener(listener)],
                        handler_nursery=nursery,
                    )
                )
                task_status.started()
        finally:
            folder.console_path.unlink(missing_ok=True)

    async def _accept_ends(self, nursery: trio.Nursery) -> None:
        async for line, fd in self._new:
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=fd)))
            nursery.start_soon(line.listen, stream)

    # -- terminals

    async def _serve(self, stream: trio.SocketStream) -> None:
        """One of them; whatever it does, nobody else is hurt."""
        self._terminals += 1
        try:
            async with stream:
                await self._talk(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._terminals -= 1

    async def _talk(self, stream: trio.SocketStream) -> None:
        try:
            if self._terminals > TERMINALS_MAX:
                raise ControlError(ManagementStatus.BUSY, f"{TERMINALS_MAX} terminals are attached already")
            hello, rest = await _read_hello(stream)
            line = self.find(hello.name)
            if hello.log:
                await _say(stream, {"ok": True, "line": line.key})
                assert line.text is not None
                await stream.send_all(line.text.read())
                return
            if line.terminal is not None:
                raise ControlError(
                    ManagementStatus.BUSY,
                    f"the console of {hello.name} is in use, by process {line.terminal.pid}: detach there first"
                    " (Ctrl-])",
                )
        except ControlError as error:
            await _say(stream, {"ok": False, "status": error.status, "message": error.message})
            return
        line.terminal = terminal = _Terminal(stream, _pid_of(stream))
        try:
            await _say(stream, {"ok": True, "line": line.key})
            async with trio.open_nursery() as nursery:
                nursery.start_soon(terminal.write)
                if rest:
                    await line.type(rest)
                while data := await stream.receive_some(_PIECE_BYTES):
                    await line.type(data)
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            line.terminal = None


def _pid_of(stream: trio.SocketStream) -> int:
    data = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(data)[0])


async def _read_hello(stream: trio.SocketStream) -> tuple[Hello, bytes]:
    """And what came behind it."""
    data = b""
    with trio.move_on_after(REQUEST_SECONDS_MAX):
        while b"\n" not in data and len(data) <= REQUEST_BYTES_MAX:
            piece = await stream.receive_some(REQUEST_BYTES_MAX)
            if not piece:
                break
            data += piece
    text, newline, rest = data.partition(b"\n")
    try:
        if not newline or len(text) > REQUEST_BYTES_MAX:
            raise ValueError("no line")
        return msgspec.json.decode(text, type=Hello), rest
    except (ValueError, RecursionError) as error:
        raise ControlError(ManagementStatus.BAD_REQUEST, f"not {{name, log}}: {error}") from error


async def _say(stream: trio.SocketStream, words: Mapping[str, Any]) -> None:
    await stream.send_all(msgspec.json.encode(words) + b"\n")
