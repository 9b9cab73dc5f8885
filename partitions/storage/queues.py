"""Several queues of one disk: the channel that is offered, and sub-channels of it that the guest asks for.

The first queue is an ordinary channel. A guest asks on it for sub-channels (CREATE_SUB_CHANNELS), and their offers
follow: the same interface and instance, with an index from 1. Each has rings, an interrupt and a thread of its own on
the same backend. Between queues there is no order; a flush on any of them covers what had been answered on all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from partitions.storage.protocol import ChannelProperties
from partitions.storage.session import Session


@dataclass(frozen=True, slots=True)
class Queue:
    """Which of a disk's channels one is."""

    queues: int = 1  # of the disk
    index: int = 0  # 0: the primary

    def begin(self, max_transfer_bytes: int, saved: Mapping[str, object] | None) -> Session:
        """Its session, or the predecessor's that is `saved`. Raises SnapshotError."""
        properties = ChannelProperties(self.queues - 1, self.queues > 1, max_transfer_bytes)
        if self.index:
            return Session.of_sub_channel(properties)  # there was never anything to be agreed upon on it
        return Session(properties) if saved is None else Session.restore(properties, saved)


ONLY_QUEUE: Final = Queue()


class SubChannelRequests:
    """What a guest has asked for on a primary, for whoever can make offers. One thread: that of its service."""

    def __init__(self, session: Session) -> None:
        self._session, self._told = session, 0
        self._ask: Callable[[int], None] = lambda count: None

    def tell(self, ask: Callable[[int], None]) -> None:
        """`ask(count)` from now on, each time that more are wanted; and now, if a predecessor may not have."""
        self._ask = ask
        self.look()

    def look(self) -> None:
        """Behind each answer: so a guest that asks again and again is heard once."""
        if self._session.sub_channels > self._told:
            self._told = self._session.sub_channels
            self._ask(self._told)
