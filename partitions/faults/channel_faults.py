"""Channel messages on their way between one stack and its guests, and what armed faults make of them.

Pure: who owns the buses asks it for each message, and hands on what it gives back, now or when it is due.
"""

import struct
from collections.abc import Callable
from enum import StrEnum
from typing import Final

from bus.channel_message_codec import ChannelMessageType
from runtime.chaos.faults.filters import Filter, Harm, flip_a_bit
from runtime.chaos.faults.knobs import Trigger
from runtime.chaos.faults.orders import Counts, Order
from runtime.chaos.faults.stack_kinds import ANY_MESSAGE

HARMS: Final = {
    "channel-message-drop": Harm.DROP,
    "channel-message-duplicate": Harm.DUPLICATE,
    "channel-message-delay": Harm.DELAY,
    "channel-message-reorder": Harm.REORDER,
    "channel-message-corrupt": Harm.CORRUPT,
    "offer-late": Harm.ASIDE,
    "offer-twice": Harm.DUPLICATE,
}
_OFFERS: Final = frozenset({"offer-late", "offer-twice"})
_TYPE: Final = struct.Struct("<I")


class Direction(StrEnum):
    TO_GUEST = "to"
    FROM_GUEST = "from"


Way = tuple[str, Direction]  # the guest's name


class ChannelFaults:
    """All such faults of one stack."""

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns
        self._filter: Final[Filter[Way, bytes]] = Filter(flip_a_bit)
        self._openings: dict[int, tuple[Order, Trigger]] = {}  # whose channels are rescinded while they open
        self.rescind: Callable[[Order, int], None] = lambda order, relid: None  # carries that out
        self.held: Callable[[], None] = lambda: None  # something waits for its time: see `earliest_ns`

    def arm(self, order: Order) -> None:
        if order.kind == "rescind-during-open":
            self._openings[order.number] = order, Trigger(order.knobs, order.seed)
            return
        if order.kind in _OFFERS:
            direction, wanted = Direction.TO_GUEST, ChannelMessageType.OFFERCHANNEL.name
        else:
            direction = Direction(str(order.parameters["direction"]))
            wanted = str(order.parameters["message"])
        number = None if wanted == ANY_MESSAGE else ChannelMessageType[wanted]
        way = order.target, direction

        def matches(key: Way, payload: bytes) -> bool:
            if key != way or len(payload) < _TYPE.size:
                return False
            return number is None or _TYPE.unpack_from(payload)[0] == number

        self._filter.arm(order, HARMS[order.kind], matches)

    def disarm(self, number: int | None) -> None:
        """What it held is due at once."""
        for armed in list(self._openings) if number is None else [number]:
            self._openings.pop(armed, None)
        self._filter.disarm(number)
        self.held()

    def counts(self) -> dict[int, Counts]:
        openings = {
            number: Counts(trigger.passes, trigger.fired) for number, (_, trigger) in self._openings.items()
        }
        return {**openings, **self._filter.counts()}

    @property
    def is_idle(self) -> bool:
        return not self._openings and self._filter.is_idle

    # -- the seams

    def passing(self, guest: str, direction: Direction, payload: bytes) -> list[bytes]:
        """What goes on in its place, now."""
        before = self._filter.earliest_ns
        passed = self._filter.passing((guest, direction), payload, self._now_ns())
        if self._filter.earliest_ns != before:
            self.held()
        return passed

    def opening(self, guest: str, relid: int) -> None:
        """OPENCHANNEL was taken, and the guest has not been told."""
        for order, trigger in self._openings.values():
            if order.target == guest and trigger.strikes():
                self.rescind(order, relid)

    def due(self) -> list[tuple[Way, bytes]]:
        return self._filter.due(self._now_ns())

    @property
    def earliest_ns(self) -> int | None:
        return self._filter.earliest_ns
