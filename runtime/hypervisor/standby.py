"""The root's successor: at most one process that waits to become the root, or is on its way to do so at once.

It is forked and imported, its first hypercall lies unread in its socket, and to the kernel it is any process of
ours; to the state machine it is nobody. Answering that call makes it the root.

    none --warm--> on its way --spawned--> waits --want--> (the root; none is left)
                       `--want--> on its way, wanted --spawned--> (the root; none is left)
"""

from __future__ import annotations

import os
import socket
from typing import Final, Protocol

from runtime.abi import ROOT_PARTITION
from runtime.hypervisor.loop import Loop
from runtime.hypervisor.processes import WatchedProcess

STANDBY_ID: Final = 0  # what the zygote calls a process that is no partition yet
STANDBY_RETRY_MS: Final = 200  # after one died, before another is tried


class StandbyOwner(Protocol):
    """The broker, as a standby needs it."""

    def spawn_standby(self) -> socket.socket | None:
        """Ask the zygote; our end of its hypercall socket. None: there is no zygote, or nothing more to start."""

    def standby_waits(self, pid: int) -> None: ...

    def standby_takes_over(self, process: WatchedProcess, sock: socket.socket) -> None:
        """It was wanted, and here it is. Takes both over. It may have died meanwhile."""

    def standby_lost(self, reason: str) -> None:
        """It was wanted, and there will be none."""

    def standby_died(self) -> None:
        """There is a process to be reaped."""


class Standby:
    """Owns the waiting process and our end of its socket."""

    def __init__(self, owner: StandbyOwner, loop: Loop) -> None:
        self._owner: Final = owner
        self._loop: Final = loop
        self._socket: socket.socket | None = None  # None: there is no standby
        self._process: WatchedProcess | None = None  # None: or the zygote has not told of it yet
        self._wanted = False  # the root is gone: it is to become the root as soon as it is there

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def descriptor(self) -> int | None:
        """Of our end of its socket."""
        return None if self._socket is None else self._socket.fileno()

    @property
    def is_on_its_way(self) -> bool:
        return self._socket is not None and self._process is None

    def warm(self) -> None:
        """Have one ready, or on its way. If that cannot be, the next root is forked when it is needed."""
        if self._socket is None:
            self._socket = self._owner.spawn_standby()

    def want(self) -> None:
        """The root is gone, reaped: whoever comes now is alone on the devices."""
        self._wanted = True
        self.warm()
        if self._socket is None:
            self._drop("no process for a new root can be had")
        elif self._process is not None:
            self._loop.drop(self._process.pidfd)
            self._take_over(self._process)

    def spawned(self, pid: int) -> None:
        """The zygote has forked it."""
        if self._socket is None:  # we are closed
            return
        try:
            process = WatchedProcess(ROOT_PARTITION, pid, os.pidfd_open(pid))
        except OSError as error:
            self._drop(f"no pidfd of {pid}: {error}")
        else:
            if self._wanted:
                self._take_over(process)
            else:
                self._process = process
                self._loop.watch(process.pidfd, lambda events: self._look())
                self._owner.standby_waits(pid)

    def spawn_failed(self, reason: str) -> None:
        if self.is_on_its_way:
            self._drop(reason)

    def close(self) -> None:
        """End it. It is wanted no more; a spawn that is under way comes to nothing."""
        if self._socket is not None:
            self._socket.close()  # which its process notices, and ends; the kill makes sure
            self._socket = None
        if self._process is not None:
            self._loop.drop(self._process.pidfd)
            self._process.kill()
            self._process.close()
            self._process = None
        self._wanted = False

    def _take_over(self, process: WatchedProcess) -> None:
        sock, self._socket, self._process, self._wanted = self._socket, None, None, False
        assert sock is not None
        self._owner.standby_takes_over(process, sock)

    def _look(self) -> None:
        if self._process is not None and self._process.has_ended:
            self._drop("it died while it waited")

    def _drop(self, reason: str) -> None:
        """It is no good. Another one, by the root's failure if it was wanted, or a little later."""
        was_wanted = self._wanted
        self.close()
        self._owner.standby_died()
        if was_wanted:
            self._owner.standby_lost(reason)
        else:
            self._loop.after(STANDBY_RETRY_MS, self.warm)
