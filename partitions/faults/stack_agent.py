"""Carries out the faults of a stack's control plane: it has the stack's buses, and time.

A bus asks at each message if anything is armed at all. What only a fault does to a bus is done here, with its insides:
a device that is taken away, a message that was held, a message that its guest never sent.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from bus import channel_messages as messages
from bus.channel_message_codec import ChannelMessage
from bus.channel_messages import MAX_CHANNELS
from partitions.faults.channel_faults import HARMS, ChannelFaults, Direction
from partitions.stack.guest_bus import GuestBus
from partitions.stack.offers import Withheld
from partitions.stack.stack_resources import RootResources
from runtime.chaos.faults.knobs import Trigger
from runtime.chaos.faults.orders import Counts, FaultRefused, Order

CONSOLE_LINE: Final = "a line of noise, on purpose " * 4
_NS_PER_MS: Final = 1_000_000
_NS_PER_S: Final = 1_000_000_000


@dataclass(slots=True)
class _Armed:
    """One that is not the filter's."""

    order: Order
    trigger: Trigger


class StackAgent:
    """A FaultAgent. In the stack's trio task."""

    def __init__(self, resources: RootResources, guests: Callable[[], Iterable[GuestBus]]) -> None:
        self._resources, self._guests = resources, guests
        self._channel: Final = ChannelFaults(resources.now_ns)
        self._channel.rescind = self._rescind_opening
        self._channel.held = self._wait_for_due
        self._armed: dict[int, _Armed] = {}
        self._due_ns: int | None = None  # when somebody will look at what is held

    # -- the agent

    def inject(self, order: Order) -> None:
        """Raises FaultRefused."""
        if order.kind == "console-flood":
            if order.target != self._resources.name:
                raise FaultRefused(f"only the root floods the console; the target is {self._resources.name}")
        elif (guest := self._guest(order.target)) is None:
            raise FaultRefused(f"no partition of ours is named {order.target!r}; see: partvisor list")
        elif order.kind == "rescind":
            self._rescind_now(guest, order)
            return
        if order.kind in HARMS or order.kind == "rescind-during-open":
            self._channel.arm(order)
            self._resources.channel_faults = self._channel
            return
        self._armed[order.number] = armed = _Armed(order, Trigger(order.knobs, order.seed))
        self._resources.nursery.start_soon(self._repeat, armed)

    def heal(self, number: int | None) -> None:
        for healed in list(self._armed) if number is None else [number]:
            armed = self._armed.pop(healed, None)
            if armed is not None and armed.order.kind == "rescind":
                self._offer_again(armed.order)
        self._channel.disarm(number)
        self._rest()

    def counts(self) -> Mapping[int, Counts]:
        own = {
            number: Counts(armed.trigger.passes, armed.trigger.fired) for number, armed in self._armed.items()
        }
        return {**own, **self._channel.counts()}

    def _guest(self, name: str) -> GuestBus | None:
        """The newest of that name."""
        return max(
            (guest for guest in self._guests() if guest.name == name),
            key=lambda guest: guest.partition,
            default=None,
        )

    def _rest(self) -> None:
        if self._channel.is_idle:
            self._resources.channel_faults = None

    # -- devices that are taken away

    def _rescind_now(self, guest: GuestBus, order: Order) -> None:
        armed = _Armed(order, Trigger(order.knobs, order.seed))
        relid = self._relid(guest, str(order.parameters["device"]))
        if relid is None:
            raise FaultRefused(
                f"{order.target} has no such device at the moment; see: partvisor show {order.target}"
            )
        self._armed[order.number] = armed
        if armed.trigger.strikes():
            self._take_away(guest, relid, order)

    def _rescind_opening(self, order: Order, relid: int) -> None:
        guest = self._guest(order.target)
        if guest is not None and guest._offers[relid].name not in guest._withheld:
            self._take_away(guest, relid, order)

    @staticmethod
    def _relid(guest: GuestBus, device: str) -> int | None:
        for relid, offer in guest._offers.items():
            if device in ("", offer.name) and offer.name not in guest._withheld:
                return relid
        return None

    def _take_away(self, guest: GuestBus, relid: int, order: Order) -> None:
        due_ns = self._resources.now_ns() + int(order.parameters["for_ms"]) * _NS_PER_MS
        guest._withhold(relid, Withheld(guest._offers[relid], f"{order.kind}, on purpose", due_ns))

    def _offer_again(self, order: Order) -> None:
        guest = self._guest(order.target)
        for withheld in guest._withheld if guest is not None else ():
            if withheld.reason == f"{order.kind}, on purpose":
                assert guest is not None
                guest._withheld.offer_again(withheld)

    # -- messages that are held

    def _wait_for_due(self) -> None:
        """Somebody looks when the first of them is due, and no earlier one does already."""
        due_ns = self._channel.earliest_ns
        if due_ns is not None and (self._due_ns is None or due_ns < self._due_ns):
            self._due_ns = due_ns
            self._resources.nursery.start_soon(self._look_later, due_ns)

    async def _look_later(self, due_ns: int) -> None:
        await self._resources.sleep(max(due_ns - self._resources.now_ns(), 0) / _NS_PER_S)
        if self._due_ns is not None and self._due_ns < due_ns:
            return  # somebody else looks sooner, and again
        self._due_ns = None
        for (name, direction), payload in self._channel.due():
            if (guest := self._guest(name)) is None:
                continue
            if direction is Direction.FROM_GUEST:
                guest.take(payload)
            else:
                guest._outbox.put(payload)
                guest._start_posting()
        self._wait_for_due()
        self._rest()

    # -- what goes on by itself

    async def _repeat(self, armed: _Armed) -> None:
        while self._armed.get(armed.order.number) is armed:
            if armed.order.kind == "console-flood":
                if armed.trigger.strikes():
                    self._resources.log("root.noise", line=CONSOLE_LINE, number=armed.trigger.fired)
            elif (guest := self._guest(armed.order.target)) is not None and armed.trigger.strikes():
                payload = _forged(armed.order.kind, guest, armed.trigger).encode()
                if guest.take(payload):
                    self._resources.log(
                        "fault.forgery_accepted",
                        name=guest.name,
                        fault=armed.order.kind,
                        message=payload.hex(),
                    )
            await self._resources.sleep(1 / int(armed.order.parameters["rate"]))


def _forged(kind: str, guest: GuestBus, trigger: Trigger) -> ChannelMessage:
    while (relid := 1 + trigger.draw(MAX_CHANNELS)) in guest._offers:
        pass
    gpadl = 0xF0_0000 + trigger.draw(1 << 16)  # guests count theirs from 1
    if kind == "forge-gpadl" and guest._offers:
        relids = sorted(guest._offers)
        relid = relids[trigger.draw(len(relids))]
        forged: tuple[ChannelMessage, ...] = (
            messages.GpadlTeardown(relid, gpadl),
            messages.GpadlBody(1, gpadl, bytes(8)),
        )
    else:
        forged = (
            messages.CloseChannel(relid),
            messages.RelidReleased(relid),
            messages.GpadlTeardown(relid, gpadl),
            messages.OpenChannel(relid, relid, gpadl, 0, 1),
        )
    return forged[trigger.draw(len(forged))]
