"""In what order a new driver process goes on with what its predecessor left (docs/recovery.md says why)."""

import random
from collections import deque
from typing import Any, cast

import pytest

from partitions.drivers.messages import (
    Begin,
    DriverMessage,
    End,
    Opened,
    Ready,
    Serve,
    ServeFlags,
    decode_driver_message,
)
from partitions.drivers.process import Driver, tick_s
from partitions.drivers.table import DriverTable
from runtime.hypervisor.heartbeat import TAKE_OVER_MS_MAX


@pytest.mark.parametrize("hang_ms", [100, 1_000, 5_000, 39_999, 60_000, 3_600_000])
def test_a_driver_renews_its_promise_in_time_also_the_one_that_was_made_for_it(hang_ms: int) -> None:
    """The hypervisor makes it when it hears that the process runs, which may be after the process's own first one."""
    assert 0 < 2 * tick_s(hang_ms) < min(hang_ms, TAKE_OVER_MS_MAX) / 1000


class _Served:
    """A channel whose predecessor was, or was not, in the middle of a batch."""

    def __init__(self, number: int, was_executing: bool, log: list[tuple[str, int]]) -> None:
        self._number, self._log, self.was_executing = number, log, was_executing

    def replay(self) -> bool:
        self._log.append(("replay", self._number))
        return True

    def start(self, name: str, on_end: object) -> None:
        self._log.append(("start", self._number))


class _Device:
    def settled(self, first: bool) -> None:
        pass


class _Faults:
    """Those that a predecessor had armed: none may hit what is replayed."""

    def __init__(self, log: list[tuple[str, int]]) -> None:
        self._log = log

    def look(self) -> None:
        assert len([step for step, _ in self._log if step == "replay"]) == len(
            [step for step, _ in self._log if step == "attach"]
        )


class _Attached:
    def __init__(self, serve: Serve, served: _Served) -> None:
        self.serve, self.served = serve, served


def serve(number: int) -> Serve:
    return Serve(number, 2, 1, number, ServeFlags(0), "block", 8, 4, 0x100, ())


@pytest.mark.parametrize("seed", range(20))
def test_who_was_executing_is_replayed_first_and_nothing_is_served_before_all_are_replayed(seed: int) -> None:
    rng, log = random.Random(seed), list[tuple[str, int]]()
    numbers = rng.sample(range(1, 100), rng.randrange(1, 8))
    executing = set(rng.sample(numbers, 1)) if seed else set()

    class Process(Driver):
        def __init__(self) -> None:
            self._table, self._channels = DriverTable(generation=3), {}
            self._waiting: deque[bytes] = deque()
            self._device = cast(Any, _Device())
            self._faults = cast(Any, _Faults(log))
            self._born_ns = self._died_at = 0

        def _promise(self) -> None:
            log.append(("promise", 0))

        def _attach(self, serve: Serve) -> Any:
            log.append(("attach", serve.number))
            return _Attached(serve, _Served(serve.number, serve.number in executing, log))

    process = Process()
    told: list[DriverMessage] = [Begin(3), *map(serve, numbers), End(3)]
    for message in told:
        process._perform(process._table.receive(message))
    replayed = [number for step, number in log if step == "replay"]
    assert sorted(replayed) == sorted(numbers)
    assert set(replayed[: len(executing)]) == executing
    in_order = [step for step in ("attach", "replay", "start") for _ in numbers]
    assert [step for step, _ in log] == [*in_order, "promise"], "from here on a hang is found in hang_ms"
    said = [decode_driver_message(payload) for payload in process._waiting]
    assert isinstance(said[-1], Ready), "the stack hears of it when all are served"
    assert {one.number for one in said[:-1] if isinstance(one, Opened)} == set(numbers)
