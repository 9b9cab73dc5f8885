"""What `Partition.open_net` gives, whatever is between the guest and the switch."""

from collections.abc import Sequence
from typing import Protocol

from partitions.net.frames import Frame


class NetAdapter(Protocol):
    """One thread. NetClosedError, from every method that talks to the server: it is gone, for good."""

    link_up: bool

    @property
    def mac(self) -> bytes: ...
    @property
    def mtu(self) -> int:
        """Bytes of a frame behind its Ethernet header."""

    @property
    def in_flight(self) -> int:
        """What was handed over and is not completed: sections, or messages."""

    def send(self, frames: Sequence[Frame], timeout_s: float | None = None) -> int:
        """Hand frames over; how many: all, unless `timeout_s` passed while there was no room for the next.

        ValueError: a frame is too short or too long; those in front of it were sent.
        """

    def receive(self, limit: int = 256, timeout_s: float | None = None) -> list[bytes]:
        """Frames that came in, at most `limit`; waits for the first. Empty: `timeout_s` is over."""

    def flush(self, timeout_s: float | None = None) -> None:
        """Until the server has completed all that was sent. NetTimeoutError."""

    def fileno(self) -> int:
        """For who waits for other things beside frames: readable, while armed, when there may be some to receive."""

    def arm(self) -> bool:
        """Before such a wait. False: do not wait, there may be some already."""

    def disarm(self) -> None:
        """After it."""

    def close(self) -> None:
        """Take no frames any more."""

    def statistics(self) -> dict[str, int]: ...
