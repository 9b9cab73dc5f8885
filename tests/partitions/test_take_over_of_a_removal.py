"""A root may die while a guest lets go of a device that was taken away: its successor has no trace of it."""

import contextlib
from typing import Any
from uuid import UUID

import trio

from bus import channel_events as events
from bus.memory import PAGE_BYTES
from partitions.stack.guest_bus import GuestBus
from partitions.stack.saved_state import SLOT_PAGES, SavedState
from partitions.stack.stack_resources import RootResources
from tests.partitions.kept_machine import _PLAN, DEVICES, GUEST, ROOT, Guest, Hypercalls, Kept


class Passive(Guest):
    """It is offered a disk, and opens none."""

    def _go_on(self, output: events.Output) -> None:
        if isinstance(output, events.Connected):
            self._send(self._client.request_offers())


def new_bus(kept: Kept, nursery: trio.Nursery, states: list[dict[str, Any]]) -> GuestBus:
    saved = SavedState(memoryview(bytearray(SLOT_PAGES * PAGE_BYTES)))
    saved.format()
    resources = RootResources(
        Hypercalls(kept, None),
        ROOT,
        memoryview(bytearray(PAGE_BYTES)),
        nursery,
        lambda kind, **fields: None,
        lambda: states.append(bus.to_state()),
        saved.record,
        saved.seam,
    )
    bus = GuestBus(resources, GUEST, "guest", 1)
    return bus


def test_what_a_guest_had_let_go_of_is_not_there_after_any_save() -> None:
    """Each state that was saved while a disk went is taken over: every offer in it is one that its server knows."""
    states: list[dict[str, Any]] = []

    async def live(kept: Kept) -> None:
        guest = Passive(kept)
        async with trio.open_nursery() as nursery:
            bus = new_bus(kept, nursery, states)
            bus.connect()
            bus.offer(UUID(int=1), DEVICES["disk0"], _PLAN)

            def settle() -> None:
                guest.take()
                while kept.to_root:
                    bus.receive(kept.to_root.popleft())
                    guest.take()

            settle()
            assert len(bus.devices()) == 1
            bus.remove("disk0")
            settle()
            assert bus.to_state()["offers"] == []
            for state in states:
                successor = new_bus(kept, nursery, [])
                successor.take_over(state, DEVICES, {"disk0": _PLAN})
                offers = successor.to_state()["offers"]
                assert all(successor._server.channel_state(relid) is not None for relid, *_ in offers)
                successor.devices()

    with contextlib.closing(Kept()) as kept:
        trio.run(live, kept)
    assert len(states[-1]["offers"]) == 1, "the last save is before the offer is forgotten"
