"""What a root was cut off in, by its planned replacement, and what fails again and again in its successor: nobody else
sees, or overwrites, what was done to the device before it has been done again, and nobody waits for ever."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import cast

import pytest

from bus.native import PAGE_BYTES
from bus.seam import Seam
from partitions.stack.back_off import WORKER_FAILURES_MAX
from partitions.stack.channel_ports import Doorbells
from partitions.stack.saved_state import RECORD_BYTES
from partitions.stack.served_channel import RingPlacement, ServedChannel, WorkerEnd, replay_in_order, stop_all
from partitions.storage._blockio import DeviceLock
from partitions.storage.backends import MemoryBackend
from partitions.storage.disk import Disk
from partitions.storage.vsp import StorageVsp
from runtime.abi import Route
from tests.partitions.storage_pair import Pair, connected

EXECUTING_AT = 8
BLOCK = 4096
PATIENCE_S = 20.0
A_MOMENT_S = 0.15
DISK_BYTES = 16 * BLOCK


def comes_true(condition: Callable[[], bool]) -> bool:
    ends = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < ends:
        time.sleep(0.002)
    return condition()


class MoodyBackend(MemoryBackend):
    """Writes of `cut_off` stop after the write and before the answer; those of `fails` fail there, so many times."""

    def __init__(self) -> None:
        super().__init__(DISK_BYTES)
        self.cut_off = self.fails = -1  # an offset
        self.failures = 0
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.log: list[tuple[int, int]] = []  # offset, first byte; of what was written by Python

    def first_byte(self, block: int) -> int:
        found = bytearray(BLOCK)
        self.readv([memoryview(found)], block * BLOCK)
        return found[0]

    def writev(self, views: object, offset: int) -> None:
        super().writev(views, offset)  # type: ignore[arg-type]
        self.log.append((offset, views[0][0]))  # type: ignore[index]
        if offset == self.cut_off:
            self.begun.set()
            assert self.go_on.wait(PATIENCE_S)
        if offset == self.fails and self.failures:
            self.failures -= 1
            raise ZeroDivisionError("a defect")


@dataclass
class Machine:
    """Guests on channels of one disk, whose root comes and goes."""

    backend: MoodyBackend
    pairs: list[Pair]
    disks: list[Disk]
    records: list[memoryview]
    plain: bool  # guest 1 is served by C
    channels: list[ServedChannel] = field(default_factory=list)
    ends: list[tuple[int, WorkerEnd]] = field(default_factory=list)

    def attach(self) -> None:
        """Another root: it knows the rings and the records."""
        lock = DeviceLock()
        self.channels = []
        for number, (pair, record) in enumerate(zip(self.pairs, self.records, strict=True)):
            fast = self.plain and number == 1

            def open_service(served: ServedChannel, pair: Pair = pair, fast: bool = fast) -> StorageVsp:
                gpa_map, record = pair.gpa_map, served.record
                return StorageVsp(
                    served.channel, gpa_map, self.backend, serial="pair", lock=lock, record=record, fast=fast
                )

            rings = memoryview(pair.memory)[: 2 * (PAGE_BYTES + pair.ring_bytes)]
            self.channels.append(
                ServedChannel(
                    Doorbells(1, Route.DIRECT, os.dup(pair.host_wait_fd), os.dup(pair.wait_fd)),
                    RingPlacement(rings, 1 + pair.ring_bytes // PAGE_BYTES),
                    "block",
                    memoryview(bytearray(PAGE_BYTES)),
                    record,
                    Seam(),
                    open_service,
                )
            )

    def replay(self) -> None:
        replay_in_order((one.was_executing, one.replay) for one in self.channels)

    def start(self) -> None:
        for number, channel in enumerate(self.channels):
            channel.start(f"worker{number}", lambda end, number=number: self.ends.append((number, end)))  # type: ignore[misc]

    def write(self, guest: int, block: int, byte: int) -> None:
        buffer = self.disks[guest].allocate(BLOCK)
        buffer.view[:] = bytes([byte]) * BLOCK
        self.disks[guest].submit_write(block * BLOCK, buffer)

    def stop(self) -> None:
        stop_all(self.channels)
        for channel in self.channels:
            channel.release()

    def waits_for_answers(self, guests: int, *, first: int = 0) -> None:
        disks = self.disks[first:guests]

        def done() -> bool:
            for disk in disks:
                disk.poll()
            return not any(disk.in_flight for disk in disks)

        assert comes_true(done)


@contextmanager
def machine(guests: int, *, plain: bool = False) -> Iterator[Machine]:
    """All guests are set up and idle; no root runs."""
    with ExitStack() as stack:
        backend = stack.enter_context(MoodyBackend())
        records = [memoryview(bytearray(RECORD_BYTES)) for _ in range(guests)]
        pairs = [stack.enter_context(connected(backend, record=record)) for record in records]
        disks = [Disk(pair.guest, pair.data, pair.data_gpfn, timeout_s=PATIENCE_S) for pair in pairs]
        for pair in pairs:
            pair.end()
        made = Machine(backend, pairs, disks, records, plain)
        made.attach()
        try:
            yield made
        finally:
            backend.go_on.set()
            made.stop()


@pytest.mark.parametrize("plain", [False, True], ids=["python", "c"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_what_a_stop_cuts_off_nobody_overwrites_before_the_successor_did_it_again(
    order: tuple[int, int], plain: bool
) -> None:
    """Guest 0's write is done and not answered; guest 1's, of the same block, waits for the device."""
    with machine(2, plain=plain) as world:
        backend = world.backend
        world.replay()
        world.start()
        backend.cut_off = 0
        world.write(0, 0, 1)
        assert backend.begun.wait(PATIENCE_S)
        world.write(1, 0, 2)
        time.sleep(A_MOMENT_S)
        stopping = threading.Thread(target=stop_all, args=([world.channels[number] for number in order],))
        stopping.start()
        assert comes_true(lambda: all(channel.channel.is_closed for channel in world.channels))
        time.sleep(A_MOMENT_S)
        backend.go_on.set()
        stopping.join(PATIENCE_S)
        assert not stopping.is_alive()
        assert backend.first_byte(0) == 1, "a neighbour was let in between execution and answer"
        assert [record[EXECUTING_AT] for record in world.records] == [1, 0]
        backend.cut_off = -1
        for channel in world.channels:
            channel.release()
        world.attach()
        world.replay()
        world.start()
        world.waits_for_answers(2)
        assert backend.log[:2] == [(0, 1), (0, 1)], "the successor does it again, and before all others"
        assert backend.first_byte(0) == 2


class Between:
    """Stands between two channels that are stopped, and takes its time, while the first one's request goes on."""

    def __init__(self, go_on: threading.Event) -> None:
        self._go_on = go_on

    def halt(self) -> None:
        self._go_on.set()
        time.sleep(A_MOMENT_S)

    def dismiss(self) -> None: ...
    def stop(self, patience_s: float) -> bool:
        return True


@pytest.mark.parametrize("plain", [False, True], ids=["python", "c"])
def test_who_is_stopped_later_does_not_get_the_device_meanwhile(plain: bool) -> None:
    with machine(2, plain=plain) as world:
        world.replay()
        world.start()
        world.backend.cut_off = 0
        world.write(0, 0, 1)
        assert world.backend.begun.wait(PATIENCE_S)
        world.write(1, 0, 2)
        time.sleep(A_MOMENT_S)
        first, second = world.channels
        stop_all([first, cast(ServedChannel, Between(world.backend.go_on)), second])
        assert world.backend.first_byte(0) == 1, "let in between execution and answer"
        assert [record[EXECUTING_AT] for record in world.records] == [1, 0]


@contextmanager
def in_time(work: Callable[[], None]) -> Iterator[None]:
    """Run it aside: what would block for ever is to fail the test, not to hang it."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "the take-over waits for ever"
    yield


@pytest.mark.parametrize("failures", [1, WORKER_FAILURES_MAX - 1])
def test_what_a_predecessor_had_begun_is_tried_again_before_all_others_until_it_is_done(
    failures: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with machine(3) as world:
        backend = world.backend
        for guest in range(3):
            world.write(guest, 0, 1 + guest)
            world.write(guest, 1 + guest, 1 + guest)
        world.records[1][EXECUTING_AT] = 1
        world.attach()
        backend.fails, backend.failures = 2 * BLOCK, failures  # its second request
        with in_time(world.replay):
            assert world.channels[1].back_off.failures == failures
        first = backend.log[: 2 + failures]
        assert first == [(0, 2)] + [(2 * BLOCK, 2)] * (1 + failures), "others came in between"
        assert not any(record[EXECUTING_AT] for record in world.records)
        world.start()
        world.waits_for_answers(3)
        assert world.ends == []
        assert capsys.readouterr().err.count("ZeroDivisionError: a defect") == failures, "not in silence"


def test_a_predecessors_request_that_never_gets_better_costs_its_own_channel_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And once others were let at the device nobody ever executes it again."""
    with machine(2) as world:
        backend = world.backend
        world.write(0, 0, 1)
        world.write(1, 0, 2)
        world.records[0][EXECUTING_AT] = 1
        world.attach()
        backend.fails, backend.failures = 0, WORKER_FAILURES_MAX
        with in_time(world.replay):
            assert backend.log == [(0, 1)] * WORKER_FAILURES_MAX + [(0, 2)]
        world.start()
        world.waits_for_answers(2, first=1)
        assert comes_true(lambda: world.ends != [])
        assert world.ends == [(0, WorkerEnd(True, "the service failed: ZeroDivisionError: a defect"))]
        world.stop()
        world.attach()
        with in_time(world.replay):
            assert len(backend.log) == WORKER_FAILURES_MAX + 1, "executed again behind a neighbour's back"
        world.start()
        assert comes_true(lambda: len(world.ends) == 2)
        assert world.ends[1][0] == 0
        assert world.ends[1][1].failed
        assert "a defect" in capsys.readouterr().err


def test_one_that_had_begun_nothing_and_fails_is_left_to_its_worker(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It holds the device while it rests, and the main thread does not wait for that; nor do other devices."""
    with machine(3) as world:
        backend = world.backend
        for guest in range(3):
            world.write(guest, guest, 1 + guest)
        backend.fails, backend.failures = 0, 3
        with in_time(world.replay):
            assert backend.log == [(0, 1)], "one try, and nobody after it"
        assert world.records[0][EXECUTING_AT] == 1
        world.start()
        world.waits_for_answers(3)
        assert backend.log[:4] == [(0, 1)] * 4, "a neighbour came in between"
        assert world.channels[0].back_off.failures == 3
        assert world.ends == []
        assert capsys.readouterr().err.count("ZeroDivisionError: a defect") == 3
