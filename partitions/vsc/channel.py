"""A guest's open channel: what it is made of, and how to let go of it."""

from typing import Final, Protocol

from bus.memory import PAGE_BYTES, MemorySlot
from bus.native import Channel


class ChannelOpener(Protocol):
    """Who has opened a channel. What becomes of it is said to the host, and that is the opener's to do."""

    def move_interrupts(self, opened: "GuestChannel", vp: int) -> None:
        """Raises VmbusError."""

    def close_channel(self, opened: "GuestChannel") -> None:
        """May be called twice."""


class GuestChannel:
    """An open channel: its rings, and its data area, in one slot of their own."""

    def __init__(
        self,
        opener: ChannelOpener,
        relid: int,
        gpadl: int,
        slot: MemorySlot,
        channel: Channel,
        data_offset: int,
        fds: list[int],
        sets_flag: bool,
        vp: int,
        buffers: tuple[int, ...],
    ) -> None:
        self.relid, self.gpadl, self.channel = relid, gpadl, channel
        self.data: Final = slot.memory[data_offset:]
        self.data_gpfn: Final = slot.gpfn + data_offset // PAGE_BYTES
        self.slot: Final = slot
        self.fds: Final = fds
        self.sets_flag: Final = sets_flag  # its interrupts do: by the broker's route
        self.vp: Final = vp  # that they went to when it was opened
        self.empties: bool = True  # its pages, on the way out; not where another guest may still be in them
        self.buffers: Final = buffers  # GPADLs of parts of the data area, in its order
        self._opener = opener

    def move_interrupts(self, vp: int) -> None:
        """Have the host's interrupts go to another of our VPs; traffic may go on. Raises VmbusError."""
        self._opener.move_interrupts(self, vp)

    def close(self) -> None:
        """Close the channel and give its pages back. Whoever waits on it gets RingClosed. May be called twice."""
        self._opener.close_channel(self)

    def __enter__(self) -> "GuestChannel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
