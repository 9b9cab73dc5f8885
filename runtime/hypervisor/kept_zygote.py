"""The zygote that the broker has, and the one that takes its place when it is lost."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from typing import Final

from runtime.hypervisor.loop import Loop
from runtime.hypervisor.zygote import Spawned, SpawnFailed, Zygote, ZygoteLost

ZYGOTE_RESTARTS_MAX: Final = 8


class KeptZygote:
    """Partitions live on without it; those that it was asked for are lost with it."""

    def __init__(
        self,
        loop: Loop,
        zygote: Zygote,
        answered: Callable[[Spawned | SpawnFailed], None],
        lost: Callable[[str], None],
        *,
        may_restart: Callable[[], bool],
    ) -> None:
        """`lost(reason)`: whatever was asked for, and not answered, will not come; by then a new one may be there."""
        self._loop, self._answered, self._lost, self._may_restart = loop, answered, lost, may_restart
        self._module, self._sandbox, self._started = zygote.module, zygote.sandbox, 1
        self.current: Zygote | None = zygote
        self._watch(zygote)

    @property
    def pid(self) -> int | None:
        return None if self.current is None else self.current.pid

    def ask(self, spawn_id: int, path: str, module: str, grant: list[int], console_fd: int) -> socket.socket:
        """Our end of the new process's hypercall socket; the answer comes later. Takes `console_fd` over.

        Raises: OSError: it won't come.
        """
        try:
            if self.current is None:
                raise OSError("there is no zygote any more")
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            os.close(console_fd)
            raise
        try:
            self.current.spawn(spawn_id, path, module, grant, [theirs.detach(), console_fd])
            self._loop.watch_writable(self.current.socket.fileno(), self.current.outbox)
        except OSError as error:
            ours.close()
            self._lose(str(error))
            raise
        return ours

    def close(self) -> None:
        """Kill it; there will be no other."""
        if self.current is not None:
            self._loop.drop(self.current.socket.fileno())
            self.current.close()
            self.current = None

    def _watch(self, zygote: Zygote) -> None:
        self._loop.watch(zygote.socket.fileno(), self._serve)

    def _serve(self, events: int) -> None:
        zygote = self.current
        assert zygote is not None
        try:
            if events & select.EPOLLOUT:
                zygote.outbox.flush()
            answer = zygote.receive()
        except (ZygoteLost, OSError) as error:
            self._lose(str(error))
            return
        self._loop.watch_writable(zygote.socket.fileno(), zygote.outbox)
        if answer is not None:
            self._answered(answer)

    def _lose(self, reason: str) -> None:
        """A new one, unless it fails again and again."""
        assert self.current is not None
        self.close()
        if self._started <= ZYGOTE_RESTARTS_MAX and self._may_restart():
            self._started += 1
            self.current = Zygote(self._module, self._sandbox)
            self._watch(self.current)
        self._lost(f"the zygote was lost: {reason}")
