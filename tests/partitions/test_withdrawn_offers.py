"""A device that is taken away while its guest has not yet let go of what was taken away before."""

import contextlib
import itertools
from typing import Final
from uuid import UUID

import pytest
import trio

from partitions.stack.guest_bus import GuestBus
from tests.partitions.kept_machine import _PLAN, DEVICES, Kept
from tests.partitions.test_take_over_of_a_removal import Passive, new_bus

_STEPS: Final = ("offer", "withdraw", "remove", "settle")
_AFTER: Final = {  # what the guest's operator sees in the end, by what was seen before
    "offer": {"absent": "offered"},
    "withdraw": {"offered": "failed"},
    "remove": {"offered": "absent", "failed": "absent"},
    "settle": {},
}
_OFFERED: Final = {"offer": {"offered", "failed"}}  # plug and play does not offer twice what is attached


def _carry_out(bus: GuestBus, step: str) -> None:
    match step:
        case "offer":
            bus.offer(UUID(int=1), DEVICES["disk0"], _PLAN)
        case "withdraw":  # its driver failed for good, or its errors were too many
            bus.withdraw("disk0", "no more")
        case "remove":  # an operator's wish
            bus.remove("disk0")


@pytest.mark.parametrize("count", [3, 4, 5])
def test_what_is_taken_away_twice_is_taken_away_once(count: int) -> None:
    """Every order of offers, failures and removals, the guest letting go between any two of them, or not."""

    async def live() -> None:
        async with trio.open_nursery() as nursery:
            for steps in itertools.product(_STEPS, repeat=count):
                with contextlib.closing(Kept()) as kept:
                    _check(kept, nursery, steps)

    trio.run(live)


def _check(kept: Kept, nursery: trio.Nursery, steps: tuple[str, ...]) -> None:
    guest, bus = Passive(kept), new_bus(kept, nursery, [])
    bus.connect()

    def settle() -> None:
        guest.take()
        while kept.to_root:
            bus.receive(kept.to_root.popleft())
            guest.take()

    settle()
    expected = "absent"
    for step in ("offer", "settle", *steps):
        if expected in _OFFERED.get(step, ()):
            continue
        if step == "settle":
            settle()
        else:
            _carry_out(bus, step)
        expected = _AFTER[step].get(expected, expected)
    settle()
    rows = bus.devices()
    assert len(rows) == (expected != "absent"), (steps, rows)
    if rows:
        assert (rows[0]["state"] == "failed") is (expected == "failed"), (steps, rows)
    assert len(bus.to_state()["offers"]) == (expected == "offered"), steps
