"""The stack's end of a driver partition, with roots and drivers that die at any moment."""

import os
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, cast

import pytest
import trio
import trio.testing

from bus.channel_messages import STATUS_FAILURE
from bus.memory import PAGE_BYTES, MemorySlot
from partitions.drivers import messages
from partitions.drivers.openings import Standing
from partitions.drivers.partition import DriverPartition
from partitions.drivers.phase import Phase
from partitions.drivers.server_partition import ServerPartition
from partitions.drivers.state import STATE_PAGES
from partitions.stack.back_off import DRIVER_FAILURES_MAX
from partitions.stack.channel_host import Opening
from partitions.stack.stack_resources import RootResources
from runtime.abi import ExitStatus, HvStatus, HypercallCode, HypercallError, MapFlags
from runtime.hypercalls.caller import HypercallPort, MappedSlot

DRIVER: Final = 2
KILLED: Final = ExitStatus(None, 9)
TABLE: Final = {
    "name": "disk0",
    "kind": "disk",
    "backend": "memory",
    "path": None,
    "size": 1 << 20,
    "read_only": False,
    "block_bytes": 512,
}
MACHINE: Final = {"driver_memory": 8 << 20, "hang_ms": 1000, "stuck_ms": 5000}


class Died(BaseException):
    """This root is dead."""


@dataclass
class Kept:
    """What the hypervisor holds, and the driver's processes."""

    state: MemorySlot = field(default_factory=lambda: MemorySlot.create(STATE_PAGES, 0, "state"))
    saved: dict[str, Any] | None = None
    program: int = 0  # the generation in it
    alive: int | None = None  # the generation of the process
    exit_status: ExitStatus | None = None
    processes: list[int] = field(default_factory=list)  # generations, of all that ever were
    told: deque[bytes] = field(default_factory=deque)
    deaths: int = 0

    def kill(self) -> None:
        if self.alive is not None:
            self.alive, self.exit_status = None, KILLED
            self.deaths += 1


class Calls(HypercallPort):
    """A root's. `passes` counts the moments at which it can die."""

    def __init__(self, kept: Kept, dies_at: int | None) -> None:
        self._kept, self._dies_at, self.passes = kept, dies_at, 0

    def pass_by(self) -> None:
        self.passes += 1
        if self.passes == self._dies_at:
            raise Died

    @contextmanager
    def _call(self, code: HypercallCode, refused: HvStatus | None = None) -> Iterator[None]:
        self.pass_by()
        if refused is not None:
            raise HypercallError(code, refused)
        yield
        self.pass_by()

    def __getattribute__(self, name: str) -> Any:
        if name in ("set_privileges", "set_property", "deposit", "initialize", "create_vp", "map_gpa_pages"):
            return lambda *_, **__: None
        if name in ("create_port", "connect_port", "disconnect_port", "delete_port"):
            return lambda *_, **__: None
        return super().__getattribute__(name)

    def create_partition(self) -> int:
        return DRIVER

    def map_partition_pages(self, *_: object, **__: object) -> list[MappedSlot]:
        fd = os.dup(self._kept.state.fd)
        return [MappedSlot(0, 0, STATE_PAGES, MapFlags.READ, fd)]

    def claim_gpa_pages(self, gpfn: int, pages: int) -> list[MappedSlot]:
        return self.map_partition_pages()

    def set_program(self, *arguments: Any, **_: object) -> None:
        with self._call(HypercallCode.SET_PARTITION_PROPERTY_EX):
            self._kept.program = arguments[3]["args"]["generation"]

    def start_vp(self, partition: int, vp: int = 0) -> None:
        kept = self._kept
        running = HvStatus.INVALID_VP_STATE if kept.alive is not None else None
        with self._call(HypercallCode.START_VIRTUAL_PROCESSOR, running):
            kept.alive, kept.exit_status = kept.program, None
            kept.processes.append(kept.program)
            kept.told.clear()

    def get_exit_status(self, partition: int) -> ExitStatus | None:
        with self._call(HypercallCode.GET_PARTITION_PROPERTY):
            return self._kept.exit_status

    def post_message(self, connection: int, message_type: int, payload: bytes) -> None:
        with self._call(HypercallCode.POST_MESSAGE):
            self._kept.told.append(payload)


def live(kept: Kept, life: Callable[[DriverPartition], None], dies_at: int | None = None) -> int | None:
    """One root. At how many moments it could have died; None: it did."""
    calls, driver = Calls(kept, dies_at), cast(DriverPartition, None)

    def save() -> None:
        calls.pass_by()
        kept.saved = driver.to_state()
        calls.pass_by()

    died = False

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            driver_of(nursery)
            await trio.testing.wait_all_tasks_blocked()
            life(driver)
            nursery.cancel_scope.cancel()

    def driver_of(nursery: trio.Nursery) -> None:
        nonlocal driver
        resources = RootResources(
            calls,
            1,
            memoryview(bytearray(PAGE_BYTES)),
            nursery,
            lambda kind, **fields: None,
            save,
            lambda number: memoryview(bytearray(64)),
            cast(Any, None),
        )
        driver = DriverPartition(resources, TABLE, MACHINE)
        if kept.saved is None:
            driver.create()
            kept.saved = driver.to_state()
        else:
            driver.adopt_state(kept.saved)
            driver.resume()

    try:
        trio.run(main)
    except* Died:
        died = True
    return None if died else calls.passes


def answer(kept: Kept, driver: DriverPartition) -> None:
    """What the process does: hears all that stands, and says that it is ready."""
    told = [messages.decode_driver_message(payload) for payload in kept.told]
    if kept.alive is not None and messages.End(kept.alive) in told:
        driver.receive(messages.Ready(kept.alive, 0, 0, 1, 2, 3, 4).encode())


@pytest.fixture
def kept() -> Iterator[Kept]:
    machine = Kept()
    yield machine
    machine.state.close()


def lose_one(kept: Kept) -> Callable[[DriverPartition], None]:
    def life(driver: DriverPartition) -> None:
        answer(kept, driver)
        kept.kill()
        driver.look()
        answer(kept, driver)

    return life


def test_wherever_a_root_dies_that_restarts_a_driver_one_death_counts_as_one(kept: Kept) -> None:
    """Never two processes, none twice with one number; and the next root ends up with a driver that serves."""

    def settle(driver: DriverPartition) -> None:
        answer(kept, driver)
        assert driver.phase is Phase.SERVING
        assert driver.inspect()["failures"] <= 1

    live(kept, lambda driver: answer(kept, driver))
    dies_at = 0
    while True:
        dies_at += 1
        kept.saved = cast(dict[str, Any], kept.saved) | {"back_off": [0, None]}
        if live(kept, lose_one(kept), dies_at) is not None:
            break

        live(kept, settle)
        assert kept.alive == kept.processes[-1]
        assert kept.processes == sorted(set(kept.processes))
    assert dies_at > 10


@pytest.mark.parametrize("seed", range(30))
def test_roots_and_drivers_that_die_in_any_order_leave_one_that_serves_or_one_that_failed(
    kept: Kept, seed: int
) -> None:
    rng = random.Random(seed)
    live(kept, lambda driver: answer(kept, driver))

    def life(driver: DriverPartition) -> None:
        for _ in range(rng.randrange(3)):
            if rng.random() < 0.5:
                kept.kill()
            driver.look()
            answer(kept, driver)

    for _ in range(rng.randrange(1, 8)):
        live(kept, life, rng.choice((None, rng.randrange(1, 30))))

    def settle(driver: DriverPartition) -> None:
        driver.look()
        answer(kept, driver)
        failures = driver.inspect()["failures"]
        assert failures <= kept.deaths
        if failures <= 1:
            assert driver.phase is Phase.SERVING
        else:  # it may be resting
            assert driver.phase in (Phase.SERVING, Phase.RESTING, Phase.FAILED)
            assert (driver.phase is Phase.FAILED) == (failures >= DRIVER_FAILURES_MAX)

    live(kept, settle)
    assert kept.processes == sorted(set(kept.processes))


class _Guest:
    """Its bus, as far as a driver's end matters to it."""

    partition, name = 3, "guest"

    def __init__(self) -> None:
        self.opened_with: list[tuple[int, int]] = []
        self.withdrawn: list[str] = []

    def opened(self, relid: int, number: int, status: int) -> None:
        self.opened_with.append((number, status))

    def withdraw(self, device: str, reason: str) -> None:
        self.withdrawn.append(device)


def test_a_driver_that_failed_for_good_is_withdrawn_from_all_guests_also_by_the_next_root(kept: Kept) -> None:
    """Whoever waits for an answer, an open or a request, is told rather than left."""
    guest = _Guest()

    def fail(driver: DriverPartition) -> None:
        host = driver.make_host(cast(Any, guest))
        serve = messages.Serve(7, 3, 1, 1, messages.ServeFlags(0), "block", 8, 4, 0x100, ())
        driver.begin_serving(Standing(host, 1, Opening(7, 1, 9), serve))
        for _ in range(DRIVER_FAILURES_MAX):
            kept.kill()
            driver.look()
            if driver.phase is Phase.RESTING:  # no time passes here
                driver._restart()
        assert driver.phase is Phase.FAILED
        assert not driver.gives_service
        assert guest.opened_with == [(7, STATUS_FAILURE)]
        assert guest.withdrawn == ["disk0"]

    live(kept, fail)
    assert kept.deaths == DRIVER_FAILURES_MAX

    def look_on(driver: DriverPartition) -> None:
        assert driver.phase is Phase.FAILED
        driver.make_host(cast(Any, guest))
        driver.resume()
        assert guest.withdrawn == ["disk0"] * 2
        assert kept.alive is None

    live(kept, look_on)


def test_a_server_that_asks_for_channels_of_a_client_without_any_changes_nothing(kept: Kept) -> None:
    """Its word comes from another partition: the stack must not fall over it."""

    def ask(driver: DriverPartition) -> None:
        server = ServerPartition(driver.stack, TABLE, MACHINE)
        server.attach_client(3, "guest", "disk0", 0)
        (client,) = server._clients
        server.receive(messages.Asked(client.opening.number, 3).encode())
        assert client.state == "opening"
        server.receive(messages.Opened(client.opening.number, 0).encode())
        assert client.state == "open"

    live(kept, ask)
