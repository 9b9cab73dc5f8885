"""Unix sockets on which a partition's program listens: made here, with a name, and handed over without one.

Those of [[partition.file]] tables with mode = "listen". They are made before the machine and kept until it has ended: a
program that is started anew finds its clients' connections in the same backlog.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from runtime.config.model import FileMode, MachineConfig, PartitionFileConfig
from runtime.machine.private_socket import listen_at

BACKLOG: Final = 64
_SUFFIX: Final = ".socket"


class ListeningSockets:
    """Of one machine; by partition and file."""

    def __init__(self) -> None:
        self._listeners: dict[tuple[str, str], socket.socket] = {}

    @contextlib.contextmanager
    def opened(self, config: MachineConfig, folder: Path) -> Iterator[None]:
        """Make them, those without a path in the machine's `folder`; in the end they are gone. SocketRefused."""
        places: list[Path] = []
        try:
            for partition in config.partitions:
                for file in partition.files:
                    if file.mode is FileMode.LISTEN:
                        place = _place(folder, partition.name, file)
                        self._listeners[partition.name, file.name] = _listen(place)
                        places.append(place)
            yield
        finally:
            for listener in self._listeners.values():
                listener.close()
            self._listeners.clear()
            for place in places:
                place.unlink(missing_ok=True)

    def descriptor(self, partition: str, file: str) -> int:
        """One more, the caller's."""
        return os.dup(self._listeners[partition, file].fileno())


def clients_of(partition: str, file: str) -> str:
    """Who connects there: somebody outside of the machine."""
    return f"clients of {partition}.{file}"


def clients_at(path: Path) -> str | None:
    """The same of a socket in a machine's folder, by its path; None: it is no such path."""
    partition, _, file = path.name.removesuffix(_SUFFIX).partition(".")
    return clients_of(partition, file) if path.name.endswith(_SUFFIX) and file else None


def _place(folder: Path, partition: str, file: PartitionFileConfig) -> Path:
    return folder / f"{partition}.{file.name}{_SUFFIX}" if file.path is None else file.path


def _listen(place: Path) -> socket.socket:
    _remove_stale(place)
    listener = listen_at(place, BACKLOG)
    listener.setblocking(False)
    return listener


def _remove_stale(place: Path) -> None:
    """One that nobody listens on: of a machine that was killed. Whatever else is there stays."""
    if place.is_socket():
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(place))
            except ConnectionRefusedError:
                place.unlink()
