"""What is armed on one device in this process, and the channels to it that have to know.

While nothing is, its servers have no trace of any of this: they are opened on the real channel, pages and medium. What
is armed or healed first or last has each worker begin again with another server, as after a failure
(partitions.stack.served_channel), so a request that was under way may be executed twice.
"""

import threading
import weakref
from collections.abc import Iterable
from typing import Final, cast

from bus.native import Channel, GpaMap
from partitions.faults.armed import Armed
from partitions.faults.faulty_channel import FaultyChannel, Withheld
from partitions.faults.faulty_medium import FaultyMedium
from partitions.faults.faulty_pages import FaultyPages
from partitions.faults.page_stalls import PageStalls
from partitions.faults.ring_words import RingWords
from partitions.stack.served_channel import ServedChannel
from runtime.chaos.faults.ring_kinds import RING_KINDS
from runtime.chaos.faults.storage_kinds import STORAGE_KINDS

_RING: Final = frozenset(kind.name for kind in RING_KINDS)
_STORAGE: Final = frozenset(kind.name for kind in STORAGE_KINDS)


class DeviceFaults:
    """Orders come from one thread; servers of channels are opened, and ask, from theirs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ring: tuple[Armed, ...] = ()
        self.stalls: Final = PageStalls()
        self._served: weakref.WeakKeyDictionary[ServedChannel, Withheld] = weakref.WeakKeyDictionary()

    # -- who opens servers

    def ends_for(self, served: ServedChannel, pages: GpaMap) -> tuple[Channel, GpaMap]:
        """What a service of that channel is to be opened on, now."""
        with self._lock:
            withheld = self._served.setdefault(
                served, Withheld()
            )  # before the look: who arms looks afterwards
            is_faulty = bool(self._ring)
        if not is_faulty:
            return served.channel, pages
        channel = FaultyChannel(served.channel, RingWords(served.rings), self, withheld)
        served.undo = channel.undo
        return cast(Channel, channel), cast(GpaMap, FaultyPages(pages, self))

    def opened(self, served: ServedChannel) -> None:
        """A service was, and the channel is as it left it. What was kept back before is due."""
        with self._lock:
            withheld = None if self._ring else self._served.get(served)
        if withheld is not None:
            withheld.publish(served.channel.send_completion)

    # -- who carries orders out

    def arm(self, armed: Armed, medium: FaultyMedium | None) -> None:
        before = self._manner(medium)
        if armed.kind in _RING:
            with self._lock:
                self._ring = (*self._ring, armed)
        elif armed.kind in _STORAGE and medium is not None:
            medium.arm(armed)
        self._change_from(before, medium)

    def heal(self, number: int, medium: FaultyMedium | None) -> None:
        before = self._manner(medium)
        with self._lock:
            healed = [armed for armed in self._ring if armed.order.number == number]
            self._ring = tuple(armed for armed in self._ring if armed not in healed)
        for armed in healed:
            armed.healed.set()
        self.stalls.end()
        if medium is not None:
            medium.heal(number)
        kept = any(armed.kind == "ring-lost" for armed in healed)
        self._change_from(None if kept else before, medium)

    def _manner(self, medium: FaultyMedium | None) -> tuple[bool, bool]:
        return bool(self._ring), medium is not None and not medium.is_idle

    def _change_from(self, before: tuple[bool, bool] | None, medium: FaultyMedium | None) -> None:
        if self._manner(medium) != before:
            with self._lock:
                served = list(self._served)
            for one in served:
                one.change_service()

    # -- faulty_channel.Faults

    def struck(self, kinds: Iterable[str]) -> list[Armed]:
        with self._lock:
            return [armed for armed in self._ring if armed.kind in kinds and armed.trigger.strikes()]
