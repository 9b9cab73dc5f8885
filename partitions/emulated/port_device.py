"""What every emulated device is: registers behind ports, one interrupt, and a state that can be saved.

A device does no I/O and never raises for what a guest does: each access means something, if only "nothing". What it
wants of the world (a byte to be shown, a sector to be read) it leaves to be taken.
"""

from abc import ABC, abstractmethod
from typing import Final

STATE_BYTES_MAX: Final = 1024  # of one device


class PortDevice(ABC):
    """Offsets count from the device's first port. `size` is 1, 2 or 4 bytes."""

    def __init__(self) -> None:
        self._was_raised = False
        self._edge = False

    # -- ports

    @abstractmethod
    def read(self, offset: int, size: int) -> int: ...
    @abstractmethod
    def write(self, offset: int, size: int, value: int) -> None: ...
    def is_wide(self, offset: int) -> bool:
        """Whether an access of two or four bytes here is one. Elsewhere the bus makes single bytes of it, at ports that
        follow each other."""
        return False

    def read_string(self, offset: int, size: int, count: int) -> bytes:
        """`count` reads of one port, as INS makes them."""
        return b"".join(self.read(offset, size).to_bytes(size, "little") for _ in range(count))

    def write_string(self, offset: int, size: int, data: bytes) -> None:
        """Writes to one port, as OUTS makes them. `data`: whole elements."""
        for at in range(0, len(data), size):
            self.write(offset, size, int.from_bytes(data[at : at + size], "little"))

    # -- its interrupt

    @property
    @abstractmethod
    def interrupt(self) -> bool:
        """The level of the line."""

    @property
    def is_quiet(self) -> bool:
        """Whether nothing waits to be taken: no interrupt, and nothing else that the device wants of the world."""
        self._watch_line()
        return not self._edge

    def take_interrupt(self) -> bool:
        """Whether the line has risen since this was asked last: an interrupt controller sees edges."""
        self._watch_line()
        edge, self._edge = self._edge, False
        return edge

    def _watch_line(self) -> None:
        """After a change that may have let the line fall, or rise: two changes between two looks are not lost."""
        level = self.interrupt
        self._edge = self._edge or (level and not self._was_raised)
        self._was_raised = level

    # -- its state

    @abstractmethod
    def save(self) -> bytes:
        """All of it; at most STATE_BYTES_MAX."""

    @abstractmethod
    def restore(self, state: bytes) -> None:
        """Become what `save` said. Its interrupt counts as not yet seen."""
