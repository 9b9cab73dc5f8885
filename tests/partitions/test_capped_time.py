"""A stack asks what its children with a cap have had as long as there are any, and tells drivers that serve them."""

from collections.abc import Awaitable, Callable
from functools import wraps
from types import SimpleNamespace
from typing import Any, cast

import trio
import trio.testing

from bus.native import ServiceBudget
from bus.yielded_time import QUIET_INTERVAL_MS, USE_INTERVAL_MS
from partitions.drivers.instructions import Instructions
from partitions.drivers.messages import DriverMessage, Serve, ServeFlags, Used
from partitions.drivers.openings import Openings, Standing
from partitions.drivers.partition import DriverPartition
from partitions.drivers.phase import Phase
from partitions.drivers.process import Driver
from partitions.drivers.table import DriverTable
from partitions.stack.capped_time import CappedTime
from partitions.stack.channel_host import Opening
from partitions.stack.service_budgets import ServiceBudgets
from partitions.stack.vmbus_ports import DRIVER_MESSAGE
from runtime.abi import WHOLE_PROCESSOR, HvStatus, HypercallCode, HypercallError

CAPPED, FREE = 2, 3
CAP = WHOLE_PROCESSOR // 10


def on_a_clock_of_ours(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    @wraps(test)
    def run() -> None:
        trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))

    return run


class Hypervisor:
    """Knows of CAPPED, which has `pace` of a second a second."""

    def __init__(self, pace: float) -> None:
        self.pace, self.asked = pace, list[float]()
        self.error: HypercallError | None = None

    def capped_time(self) -> dict[int, int]:
        self.asked.append(trio.current_time())
        if self.error is not None:
            raise self.error
        return {CAPPED: int(trio.current_time() * 1e9 * self.pace)}


class World:
    def __init__(self, nursery: trio.Nursery, pace: float) -> None:
        self.caps = {CAPPED: CAP, FREE: WHOLE_PROCESSOR}
        self.budgets = ServiceBudgets(lambda child, code: self.caps[child])
        self.hypervisor = Hypervisor(pace)
        self.capped = CappedTime(
            cast(Any, self.hypervisor),
            self.budgets,
            nursery,
            lambda: int(trio.current_time() * 1e9),
            trio.sleep,
        )

    def add(self, child: int) -> None:
        self.budgets.add(child, 1)
        self.capped.look()

    def charged_ns(self) -> int:
        return int(self.budgets.of(CAPPED).statistics()["served_ns"])


@on_a_clock_of_ours
async def test_nobody_is_asked_while_nobody_has_a_cap_and_one_asks_for_all() -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery, pace=0)
        world.add(FREE)
        await trio.sleep(1)
        assert world.hypervisor.asked == []
        world.add(CAPPED)
        world.capped.look()
        await trio.sleep(1)
        gaps = {
            round(b - a, 6) for a, b in zip(world.hypervisor.asked, world.hypervisor.asked[1:], strict=False)
        }
        assert gaps == {QUIET_INTERVAL_MS / 1000}
        world.budgets.remove(CAPPED)
    assert not world.capped._is_following  # the nursery is empty: it has ended


@on_a_clock_of_ours
async def test_what_is_had_elsewhere_is_taken_off_until_the_cap_is_gone_and_again_with_the_next() -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery, pace=0.01)
        for _ in range(2):
            world.caps[CAPPED] = CAP
            world.add(CAPPED)
            before_ns = world.charged_ns()
            await trio.sleep(1)
            assert (
                0.8e7 < world.charged_ns() - before_ns <= 1e7
            )  # a hundredth; what came before is not counted
            world.caps[CAPPED] = WHOLE_PROCESSOR
            world.budgets.look()
            await trio.sleep(1)
        busy = [b - a for a, b in zip(world.hypervisor.asked, world.hypervisor.asked[1:], strict=False)]
        assert min(busy) * 1000 >= USE_INTERVAL_MS - 0.001


@on_a_clock_of_ours
async def test_a_hypervisor_that_does_not_say_costs_nobody_anything() -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery, pace=0.01)
        world.hypervisor.error = HypercallError(
            HypercallCode.GET_PARTITION_PROPERTY_EX, HvStatus.UNKNOWN_PROPERTY
        )
        world.add(CAPPED)
    assert len(world.hypervisor.asked) == 1
    assert world.charged_ns() == 0


def test_a_driver_is_told_of_guests_that_it_serves_and_of_no_more_than_it_takes_in() -> None:
    told, waiting = list[DriverMessage](), list[bytes]()
    instructions = object.__new__(Instructions)
    instructions._outbox = cast(Any, waiting)
    instructions.tell = cast(Any, told.append)  # type: ignore[method-assign]
    driver = object.__new__(DriverPartition)
    driver._instructions, driver._openings, driver.phase = instructions, Openings(), Phase.SERVING
    serve = Serve(7, CAPPED, 1, 1, ServeFlags(0), "block", 8, 4, 0x100, ())
    driver._openings.go_on(Standing(cast(Any, None), 1, Opening(7, 1, 9), serve))
    driver._tell_time_had(CAPPED, 17)
    driver._tell_time_had(FREE, 18)
    assert told == [Used(CAPPED, 17)]
    waiting.append(b"not taken yet")
    driver._tell_time_had(CAPPED, 19)
    waiting.clear()
    driver.phase = Phase.RESTING
    driver._tell_time_had(CAPPED, 20)
    assert len(told) == 1


def test_a_driver_takes_off_what_it_is_told_of_a_guest_and_of_nobody_else() -> None:
    """Also one that it has no channel of any more."""
    payloads = [Used(CAPPED, 999).encode(), Used(FREE, 10**9).encode()]
    driver = object.__new__(Driver)
    driver._vp = cast(
        Any, SimpleNamespace(take_messages=lambda sint: [(DRIVER_MESSAGE, 0, each) for each in payloads])
    )
    driver._table, driver._budgets = DriverTable(1), {CAPPED: ServiceBudget(CAP)}
    driver._receive()
    assert driver._budgets[CAPPED].statistics()["served_ns"] == 999
    assert list(driver._budgets) == [CAPPED]
