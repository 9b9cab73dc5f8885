"""The platform's end of the hypervisor's loader, which the root's first process leaves behind (partitions.loader).

A loaded hypervisor is the platform's child, as one that the platform executes itself: the loader is forked twice, and
the platform is a subreaper while that goes on.
"""

import contextlib
import socket
from collections.abc import Mapping
from typing import Final

from runtime.codec import DecodeError
from runtime.machine.firmware import PacketLink
from runtime.machine.lifeline import adopt_orphans
from runtime.machine.process import AdoptedChild, Child, Descriptor, execute

HYPERVISOR: Final = "runtime.hypervisor"


class Loader:
    """Of one machine, and for one boot."""

    def __init__(self) -> None:
        ours, self.root_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._link: Final = PacketLink(ours)
        adopt_orphans()

    async def boot(self, sockets: Mapping[str, Descriptor], *options: str) -> Child:
        """The hypervisor's process: loaded, or, where there is no loader, executed."""
        return await self._load(sockets, options) or execute(HYPERVISOR, sockets, *options)

    async def _load(self, sockets: Mapping[str, Descriptor], options: tuple[str, ...]) -> Child | None:
        with contextlib.suppress(OSError, DecodeError, ValueError, KeyError):
            try:
                message = await self._link.receive()
            finally:
                adopt_orphans(False)
            if message is not None and message.verb == "loader":
                child = AdoptedChild(int(message.values["pid"]))
                values = {"descriptors": list(sockets), "options": [str(option) for option in options]}
                await self._link.send("boot", values, [one.fileno() for one in sockets.values()])
                return child
        return None

    def close(self) -> None:
        """A loader that still waits ends."""
        self.root_end.close()
        self._link.close()
