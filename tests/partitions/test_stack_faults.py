"""Every fault of the control plane: one guest's real bus, client against server, on a hypervisor that is kept simple.

Each strikes, has the effect that it is there for, and the bus goes on once it is healed.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final
from uuid import UUID

import pytest
import trio

from bus import channel_events as events
from bus.channel_message_codec import ChannelMessageType
from bus.channel_messages import STATUS_SUCCESS
from bus.memory import PAGE_BYTES
from bus.packets import GpaRange
from bus.protocol_errors import RemoteProtocolError
from partitions.faults.stack_agent import StackAgent
from partitions.machine_plan import AttachmentPlan
from partitions.stack.complaints import COMPLAINTS_PER_SECOND
from partitions.stack.guest_bus import GuestBus
from partitions.stack.saved_state import SavedState
from partitions.stack.served_channel import stop_all
from partitions.stack.stack_resources import RootResources
from runtime.abi import Route
from runtime.chaos.faults.catalogue import FAULTS
from runtime.chaos.faults.knobs import Knobs
from runtime.chaos.faults.orders import FaultRefused, Order
from runtime.chaos.faults.stack_kinds import STACK_KINDS
from tests.partitions.kept_machine import (
    DEVICES,
    GUEST,
    PATIENCE_S,
    RINGS_PAGES,
    ROOT,
    SLOT_GPFN,
    Guest,
    Hypercalls,
    Kept,
)

ALWAYS: Final = Knobs()

_PLAN: Final = AttachmentPlan("disk0", 3 * PAGE_BYTES, Route.DIRECT, "block")
_T = ChannelMessageType
BOOT: Final = [
    _T.VERSION_RESPONSE,
    _T.OFFERCHANNEL,
    _T.ALLOFFERS_DELIVERED,
    _T.GPADL_CREATED,
    _T.OPENCHANNEL_RESULT,
]


class StayingGuest(Guest):
    """Opens its disk whenever it is offered, and lets go of it when it is taken away. Nonsense it drops."""

    def __init__(self, kept: Kept) -> None:
        self.posted: list[ChannelMessageType] = []  # to it
        self.nonsense = 0
        super().__init__(kept)

    @property
    def opened(self) -> int:
        """Times."""
        return sum(isinstance(one, events.Opened) and one.status == STATUS_SUCCESS for one in self.heard)

    def take(self) -> None:
        while self._kept.taken < len(self._kept.posted):
            payload = self._kept.posted[self._kept.taken]
            self._kept.taken += 1
            with contextlib.suppress(ValueError):
                self.posted.append(_T(int.from_bytes(payload[:4], "little")))
            try:
                self._send(self._client.receive(payload))
            except RemoteProtocolError:
                self.nonsense += 1

    def _go_on(self, output: events.Output) -> None:
        client = self._client
        match output:
            case events.Connected():
                self._send(client.request_offers())
            case events.Offered(offer):
                self._relid = offer.relid
                rings = GpaRange.contiguous(SLOT_GPFN, RINGS_PAGES * PAGE_BYTES)
                self._send(client.create_gpadl(offer.relid, [rings])[1])
            case events.GpadlCreated(gpadl, 0):
                self._send(client.open(self._relid, gpadl, RINGS_PAGES // 2))
            case events.Rescinded(relid, True):
                self._send(client.close(relid))


class Stay:
    """One guest, its bus, and the agent that breaks it."""

    def __init__(self, kept: Kept, nursery: trio.Nursery) -> None:
        self._kept, self._saved = kept, SavedState(memoryview(kept.saved))
        self._saved.format()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.resources = RootResources(
            Hypercalls(kept, None),
            ROOT,
            memoryview(bytearray(PAGE_BYTES)),
            nursery,
            lambda kind, **fields: self.events.append((kind, fields)),
            lambda: self._saved.save({"guests": [self.bus.to_state()], "received": {}}),
            self._saved.record,
            self._saved.seam,
        )
        self.bus = GuestBus(self.resources, GUEST, "guest", 1)
        self.agent = StackAgent(self.resources, lambda: [self.bus])
        self.bus.connect()
        self.bus.offer(UUID(int=1), DEVICES["disk0"], _PLAN)
        self.guest = StayingGuest(kept)
        self._last = 0

    def arm(self, kind: str, target: str = "guest", knobs: Knobs = ALWAYS, **parameters: Any) -> int:
        self._last += 1
        settled = FAULTS[kind].settle(parameters)
        self.agent.inject(Order(self._last, kind, target, settled, knobs, seed=3))
        return self._last

    def fired(self, number: int) -> int:
        return self.agent.counts()[number].fired

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(PATIENCE_S):
            while not condition():
                self.step()
                await trio.sleep(0.0005)

    def step(self) -> None:
        self.guest.take()
        if self._kept.to_root:
            self.bus.receive(self._kept.to_root.popleft())

    async def quiet(self, steps: int = 40) -> None:
        """So many steps, whatever happens: more than any message needs on its way, however slow the host is."""
        for _ in range(steps):
            self.step()
            await trio.sleep(0.0005)

    async def opened(self, times: int = 1) -> None:
        await self.until(lambda: self.guest.opened >= times)

    def logged(self, kind: str) -> int:
        return sum(one == kind for one, _ in self.events)


def stay(script: Callable[[Stay], Any]) -> None:
    """Run it, and stop the channels' threads whatever happens."""

    async def run() -> None:
        with contextlib.closing(Kept()) as kept:
            async with trio.open_nursery() as nursery:
                one = Stay(kept, nursery)
                try:
                    await script(one)
                    one.agent.heal(None)
                    await one.quiet()
                    assert one.resources.channel_faults is None  # nobody asks at a message any more
                finally:
                    stop_all(one.bus.workers())
                nursery.cancel_scope.cancel()

    trio.run(run)


def test_without_a_fault_a_guest_boots_like_this() -> None:
    async def script(one: Stay) -> None:
        await one.opened()
        assert one.guest.posted == BOOT

    stay(script)


def test_a_lost_answer_leaves_the_guest_waiting_and_asking_again_helps() -> None:
    async def script(one: Stay) -> None:
        number = one.arm("channel-message-drop", message="VERSION_RESPONSE", knobs=Knobs(times=1))
        await one.quiet()
        assert one.guest.posted == []
        assert one.fired(number) == 1
        one.guest = StayingGuest(one._kept)  # its driver is loaded again
        await one.opened()

    stay(script)


def test_a_request_is_lost_in_its_own_direction() -> None:
    async def script(one: Stay) -> None:
        wrong_way = one.arm("channel-message-drop", message="REQUESTOFFERS", direction="to")
        number = one.arm("channel-message-drop", message="REQUESTOFFERS", direction="from")
        await one.quiet()
        assert one.guest.posted == [_T.VERSION_RESPONSE]
        assert (one.fired(wrong_way), one.fired(number)) == (0, 1)

    stay(script)


def test_a_request_that_comes_twice_is_refused_once_and_does_no_harm() -> None:
    async def script(one: Stay) -> None:
        number = one.arm("channel-message-duplicate", message="OPENCHANNEL", direction="from")
        await one.opened()
        assert one.fired(number) == 1
        assert one.logged("vmbus.protocol_error") == 1
        assert one.logged("vmbus.channel_opened") == 1

    stay(script)


def test_a_delayed_message_holds_up_all_that_is_behind_it() -> None:
    async def script(one: Stay) -> None:
        number = one.arm("channel-message-delay", message="OFFERCHANNEL", delay_ms=60_000)
        await one.until(lambda: one.fired(number) == 1)
        await one.quiet()
        assert one.guest.posted == [_T.VERSION_RESPONSE]
        one.agent.heal(number)  # what it held goes at once
        await one.opened()
        assert one.guest.posted == BOOT

    stay(script)


def test_a_message_that_is_late_comes_by_itself() -> None:
    async def script(one: Stay) -> None:
        one.arm("channel-message-delay", message="OPENCHANNEL", direction="from", delay_ms=10)
        await one.opened()

    stay(script)


def test_a_reordered_message_comes_behind_the_next() -> None:
    async def script(one: Stay) -> None:
        one.arm("channel-message-reorder", message="OFFERCHANNEL", delay_ms=60_000, knobs=Knobs(times=1))
        await one.opened()
        assert one.guest.posted[1:3] == [_T.ALLOFFERS_DELIVERED, _T.OFFERCHANNEL]

    stay(script)


def test_a_corrupt_message_is_another_one_and_only_this_bus_suffers() -> None:
    async def script(one: Stay) -> None:
        number = one.arm("channel-message-corrupt", direction="from")
        await one.quiet()
        assert one.fired(number) >= 1
        await one.until(lambda: one.logged("vmbus.protocol_error") + len(one.guest.posted) >= 1)
        one.agent.heal(number)
        one.guest = StayingGuest(one._kept)
        await one.opened()

    stay(script)


def test_a_device_that_is_taken_away_comes_again_and_is_opened_again() -> None:
    async def script(one: Stay) -> None:
        await one.opened()
        number = one.arm("rescind", for_ms=10)
        assert one.fired(number) == 1
        with pytest.raises(FaultRefused, match="no such device"):
            one.arm("rescind")
        await one.opened(2)
        assert one.guest.posted[len(BOOT)] is _T.RESCIND_CHANNELOFFER
        assert one.bus.devices()[0]["state"] == "open"

    stay(script)


def test_healing_gives_a_device_back_at_once() -> None:
    async def script(one: Stay) -> None:
        await one.opened()
        number = one.arm("rescind", device="disk0", for_ms=60_000)
        await one.until(lambda: one.bus.devices()[0]["state"] == "withheld")
        one.agent.heal(number)
        await one.opened(2)

    stay(script)


def test_a_device_that_is_taken_away_while_it_is_opened_does_not_stay_half_open() -> None:
    async def script(one: Stay) -> None:
        number = one.arm("rescind-during-open", for_ms=10, knobs=Knobs(times=1))
        await one.opened()
        await one.until(lambda: one.bus.devices()[0]["state"] == "open")
        assert one.fired(number) == 1
        assert _T.RESCIND_CHANNELOFFER in one.guest.posted
        assert one.guest.posted.index(_T.RESCIND_CHANNELOFFER) < len(BOOT)
        assert len(one.bus.workers()) == 1

    stay(script)


def test_an_offer_that_is_late_comes_behind_all_offers() -> None:
    async def script(one: Stay) -> None:
        number = one.arm("offer-late", delay_ms=10)
        await one.opened()
        assert one.guest.posted[1:3] == [_T.ALLOFFERS_DELIVERED, _T.OFFERCHANNEL]
        assert one.fired(number) == 1

    stay(script)


def test_an_offer_that_comes_twice_is_one_offer() -> None:
    async def script(one: Stay) -> None:
        number = one.arm("offer-twice")
        await one.opened()
        assert one.guest.posted[1:3] == [_T.OFFERCHANNEL, _T.OFFERCHANNEL]
        assert one.guest.nonsense == 1
        assert one.guest.opened == 1
        assert one.fired(number) == 1

    stay(script)


@pytest.mark.parametrize("kind", ["forge-relid", "forge-gpadl"])
def test_forged_messages_are_refused_and_change_nothing(kind: str) -> None:
    async def script(one: Stay) -> None:
        await one.opened()
        before, posted = one.bus.to_state(), list(one.guest.posted)
        number = one.arm(kind, rate=500)
        await one.until(lambda: one.fired(number) >= 20)
        told, fired = one.logged("vmbus.protocol_error"), one.fired(number)
        assert min(fired, COMPLAINTS_PER_SECOND) <= told <= fired  # after a pause many are forged at once
        assert one.logged("fault.forgery_accepted") == 0
        assert one.bus.to_state() == before
        assert one.guest.posted == posted

    stay(script)


def test_the_root_floods_the_console_until_it_is_healed_and_nobody_else_does() -> None:
    async def script(one: Stay) -> None:
        with pytest.raises(FaultRefused, match="only the root"):
            one.arm("console-flood")
        number = one.arm("console-flood", target="root", rate=1_000)
        await one.until(lambda: one.fired(number) >= 5)
        one.agent.heal(number)
        await one.quiet()
        noise = one.logged("root.noise")
        await one.quiet()
        assert one.logged("root.noise") == noise

    stay(script)


def test_what_is_aimed_at_nobody_is_refused() -> None:
    async def script(one: Stay) -> None:
        with pytest.raises(FaultRefused, match="no partition of ours"):
            one.arm("channel-message-drop", target="nobody")

    stay(script)


def _names() -> Iterator[str]:
    with open(__file__) as source:
        text = source.read()
    yield from (kind.name for kind in STACK_KINDS if f'"{kind.name}"' not in text)


def test_every_kind_of_the_stacks_has_a_test_here() -> None:
    assert list(_names()) == []
