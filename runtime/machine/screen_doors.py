"""The doors to the screens of a machine's partitions: where VNC viewers connect.

The platform listens and accepts; who comes is handed to the root as a connected socket, and is the root's from there on
(partitions.display). So addresses stay what they were when another root takes over. A viewer that comes while there is
no root waits on the firmware link for the next.
"""

import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Final

import trio

from runtime.config.devices import DeviceKind
from runtime.config.model import MachineConfig
from runtime.config.screen_address import UNIX, ScreenAddress
from runtime.exits import CommandError
from runtime.machine.events import EventLog
from runtime.machine.private_socket import accept_each, listen_at
from runtime.machine.questions import RequestRefused
from runtime.machine.rundir import MachineFolder
from runtime.reserved_names import ROOT

WAITING_MAX: Final = 16  # viewers that have connected and were not accepted yet, of each door

TellRoot = Callable[[str, Mapping[str, object], Sequence[int]], Awaitable[None]]


class NoScreenDoor(CommandError):
    """An address can't be had. The text is one line for the user."""


class ScreenDoors:
    """Of one machine."""

    def __init__(self, config: MachineConfig, log: EventLog) -> None:
        videos = {device.name: device for device in config.root.devices if device.kind is DeviceKind.VIDEO}
        self._wanted = {  # by partition
            partition.name: ScreenAddress.parse(videos[one.name].vnc or UNIX)
            for partition in config.partitions
            for one in partition.devices
            if partition.parent == ROOT and one.name in videos
        }
        self._log = log
        self._listeners: list[tuple[str, socket.socket]] = []
        self._addresses: dict[str, dict[str, str]] = {}

    def addresses_of(self, name: str) -> Mapping[str, str] | None:
        """Where viewers of that partition's screen connect: `unix`, and perhaps `tcp`. None: it has no screen."""
        return self._addresses.get(name)

    @contextlib.contextmanager
    def opened(self, folder: MachineFolder) -> Iterator[None]:
        """All of them, until the block ends. NoScreenDoor, SocketRefused."""
        paths = []
        try:
            for name, wanted in self._wanted.items():
                path = folder.screen_path(name)
                self._listeners.append((name, listen_at(path, WAITING_MAX)))
                paths.append(path)
                self._addresses[name] = {"unix": str(path)}
                if wanted.host is not None:
                    listener = _listen_on(wanted.host, wanted.port, name)
                    self._listeners.append((name, listener))
                    host, port = listener.getsockname()[:2]
                    self._addresses[name]["tcp"] = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            yield
        finally:
            for _, listener in self._listeners:
                listener.close()
            for path in paths:
                path.unlink(missing_ok=True)

    async def serve(self, tell_root: TellRoot) -> None:
        """Until cancelled; within `opened`. `tell_root`: as the platform has it."""
        for name, addresses in self._addresses.items():
            self._log.append("screen.ready", name, **addresses)
        async with trio.open_nursery() as nursery:
            for name, listener in self._listeners:
                nursery.start_soon(self._accept, name, trio.socket.from_stdlib_socket(listener), tell_root)

    async def _accept(self, name: str, listener: trio.socket.SocketType, tell_root: TellRoot) -> None:
        async def hand_over(viewer: trio.socket.SocketType) -> None:
            with viewer, contextlib.suppress(OSError, RequestRefused):  # no root: the viewer is sent away
                await tell_root("viewer", {"name": name}, [viewer.fileno()])

        await accept_each(listener, hand_over)


def _listen_on(host: str, port: int, name: str) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(WAITING_MAX)
    except OSError as error:
        listener.close()
        problem = f"no viewer can connect to {host} port {port} ({error.strerror}): choose another, or 0"
        raise NoScreenDoor(f"the screen of {name}: {problem}") from error
    return listener
