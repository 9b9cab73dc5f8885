"""Guests' streams and programs of the host: the platform accepts and connects, and hands each socket to the root.

    stream-NAME         listens here: a program connects, and says "CONNECT 5000\n" for that port of guest NAME
    stream-NAME_5000    a program listens here: guest NAME connects to port 5000 of the host

Both are Unix sockets in the machine's folder. What comes through them only the root reads.
"""

import contextlib
import re
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import trio

from runtime.machine.private_socket import accept_each, listening
from runtime.machine.questions import RequestRefused
from runtime.machine.rundir import STREAM_PREFIX, MachineFolder

BACKLOG: Final = 64
DIAL_SECONDS_MAX: Final = 2.0  # for the program to take it: one that has a full backlog does not
SERVICE_PATTERN: Final = re.compile(r"[0-9a-f-]{1,36}")
_CONNECT_PAUSE_S: Final = 0.1

Forward = Callable[[str, Mapping[str, object], Sequence[int]], Awaitable[None]]  # a verb, values, descriptors


class HostStreams:
    """Of one machine."""

    def __init__(self, partitions: Sequence[str], forward: Forward) -> None:
        """`partitions`: those that have streams. `forward` raises OSError or RequestRefused: the root is not there."""
        self._partitions, self._forward = partitions, forward
        self._folder: Path | None = None

    def path_of(self, partition: str, service: str | None = None) -> Path:
        assert self._folder is not None
        return self._folder / f"{STREAM_PREFIX}{partition}{'' if service is None else f'_{service}'}"

    async def serve(
        self, folder: MachineFolder, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Until cancelled."""
        self._folder = folder.path
        async with trio.open_nursery() as nursery:
            for partition in self._partitions:
                await nursery.start(self._listen, partition)
            task_status.started()
            await trio.sleep_forever()

    async def _listen(
        self, partition: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async def hand_over(client: trio.socket.SocketType) -> None:
            # A root that is away: the client sees the end.
            with client, contextlib.suppress(OSError, RequestRefused):
                await self._forward("stream", {"partition": partition}, [client.fileno()])

        with listening(self.path_of(partition), BACKLOG) as listener:
            task_status.started()
            await accept_each(listener, hand_over)

    async def dial(self, values: Mapping[str, object]) -> None:
        """The root asks for a connection to whoever listens for this guest. It is told if there is nobody."""
        fds: list[int] = []
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
            with contextlib.suppress(OSError):
                if await self._connect(stream, str(values.get("partition")), str(values.get("service"))):
                    fds.append(stream.fileno())
            with contextlib.suppress(OSError, RequestRefused):
                await self._forward("dialled", {"number": values.get("number")}, fds)

    async def _connect(self, stream: socket.socket, partition: str, service: str) -> bool:
        if partition not in self._partitions or not SERVICE_PATTERN.fullmatch(service):
            return False
        stream.setblocking(False)
        with trio.move_on_after(DIAL_SECONDS_MAX):
            while True:
                try:
                    stream.connect(str(self.path_of(partition, service)))
                except BlockingIOError:  # its backlog is full
                    await trio.sleep(_CONNECT_PAUSE_S)
                else:
                    return True
        return False
