"""What became of every interrupt that a port was sent.

    sent = merged + suppressed + delivered + pending

`pending` are messages that wait for a slot; an event never waits. By the direct route nobody sends through us, so
nothing is counted here: the rings' own counters tell.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class InterruptCounts:
    """Of one port, or of one of the routes to it."""

    sent: int = 0  # accepted: a refused call sends nothing
    merged: int = 0  # found its flag set, or shared the interrupt of the message before it
    suppressed: int = 0  # flag or slot written, and no interrupt, because the SINT is masked or polled
    delivered: int = 0  # an interrupt of its own

    def add(self, other: InterruptCounts) -> None:
        self.sent += other.sent
        self.merged += other.merged
        self.suppressed += other.suppressed
        self.delivered += other.delivered

    def count(self, *, fresh: bool, loud: bool) -> None:
        """One event, or one message that went into its slot.

        Args:
            fresh: the receiver has not been told already.
            loud: its SINT may interrupt.
        """
        if not loud:
            self.suppressed += 1
        elif fresh:
            self.delivered += 1
        else:
            self.merged += 1
