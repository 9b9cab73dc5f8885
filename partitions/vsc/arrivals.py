"""Devices that come and go while a guest runs, as its bus tells of them."""

import threading
from collections import Counter, deque
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from bus import guids
from bus.channel_messages import OfferChannel, OfferFlags
from partitions.custom.wire import CUSTOM_INTERFACE
from partitions.serial.wire import SERIAL_INTERFACE

CHANGES_KEPT_MAX: Final = 256  # a program that does not ask misses the oldest

_KINDS: Final = {
    guids.SCSI: "disk",
    guids.NETWORK: "net",
    CUSTOM_INTERFACE: "custom",
    SERIAL_INTERFACE: "serial",
}


@dataclass(frozen=True, slots=True)
class DeviceChange:
    """A device is there, or is not there any more."""

    arrived: bool
    kind: str  # "disk", "net", "custom", "serial"; of others the interface's GUID
    instance: UUID
    name: str | None = None  # where this guest knows it: the name is not on the wire


class Arrivals:
    """What has changed since the first offers. Guarded by the bus's own condition."""

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._offers: dict[int, OfferChannel] = {}
        self._changes: deque[DeviceChange] = deque(maxlen=CHANGES_KEPT_MAX)
        self.rescinds: Final[Counter[int]] = Counter()  # by relid, which a new offer may have again

    def offered(self, offer: OfferChannel, *, first: bool) -> None:
        """With the condition held. `first`: it was there when we came."""
        if offer.flags & OfferFlags.HV_SOCK or offer.sub_channel_index:
            return  # a connection, or more of a device that is there
        self._offers[offer.relid] = offer
        if not first:
            self._changes.append(_change(True, offer))

    def rescinded(self, relid: int) -> None:
        """With the condition held."""
        self.rescinds[relid] += 1
        if (offer := self._offers.pop(relid, None)) is not None:
            self._changes.append(_change(False, offer))

    def take(self, seconds_max: float) -> list[DeviceChange]:
        """What nobody has taken yet, oldest first; waits for the first one. Empty: none came in that time."""
        with self._changed:
            self._changed.wait_for(lambda: self._changes, seconds_max)
            changes = list(self._changes)
            self._changes.clear()
        return changes

    def wait_for(self, instance: UUID, seconds_max: float) -> bool:
        """Until it is offered. False: not in that time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._is_here(instance), seconds_max)

    def is_here(self, instance: UUID) -> bool:
        with self._changed:
            return self._is_here(instance)

    def _is_here(self, instance: UUID) -> bool:
        return any(offer.instance == instance for offer in self._offers.values())


def _change(arrived: bool, offer: OfferChannel) -> DeviceChange:
    return DeviceChange(arrived, _KINDS.get(offer.interface, str(offer.interface)), offer.instance)
