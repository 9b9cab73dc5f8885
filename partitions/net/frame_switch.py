"""What the server of a channel needs of the network behind it: the switch itself, or a way to it."""

from collections.abc import Sequence
from typing import Protocol

from partitions.net.port import Port


class FrameSwitch(Protocol):
    def join(self, port: Port) -> None:
        """The port takes frames, from now on; said again, by another packet filter."""

    def leave(self, port: Port) -> None: ...
    def forward(self, source: Port, frames: Sequence[memoryview]) -> None:
        """Frames that came in at `source`, each with an Ethernet header."""
