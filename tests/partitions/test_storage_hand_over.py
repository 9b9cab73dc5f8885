"""A request that C began and Python has to finish: until it is answered nobody sees, or overwrites, what it did.

The disk's file is shorter than the disk and sealed, so a write across its end is a short one, and the retry fails.
"""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from partitions.guests.verified import Plan
from partitions.storage._blockio import DeviceLock, Server
from partitions.storage.backends import DescriptorBackend, MemoryBackend
from partitions.storage.disk import Disk
from partitions.storage.errors import DiskCommandError
from partitions.storage.vsp import StorageVsp
from runtime.chaos.blocks import BLOCK_BYTES
from runtime.chaos.checker import check
from runtime.chaos.history import History
from runtime.chaos.verdict import summary
from tests.bus.ring_pair import READ_INDEX, WRITE_INDEX
from tests.partitions.mortal_storage import load
from tests.partitions.storage_pair import Pair, connected, host_end

FILE_BLOCKS = 4  # that there are
BLOCKS = 6  # that the disk says it has
EXECUTING_AT = 8
PATIENCE_S = 20.0
A_MOMENT_S = 0.15  # in which a neighbour that nobody stops is long done


@contextmanager
def short_disk(there: int = FILE_BLOCKS, blocks: int = BLOCKS) -> Iterator[DescriptorBackend]:
    descriptor = os.memfd_create("short", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, there * BLOCK_BYTES)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    with DescriptorBackend(descriptor, blocks * BLOCK_BYTES) as backend:
        yield backend


@dataclass
class HeldUp:
    """The fast path, with a stop between C's return and Python's next step wherever C began something."""

    real: Server
    armed: bool = False
    begun: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def serve(self, timeout_ns: int) -> bool:
        left = self.real.serve(timeout_ns)
        if left and self.armed:
            self.begun.set()
            assert self.go_on.wait(PATIENCE_S)
        return left

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


@dataclass
class Neighbours:
    """Two guests on two channels of one disk; the first one's server can be stopped at the hand-over."""

    pairs: list[Pair]
    disks: list[Disk]
    held_up: HeldUp
    record: memoryview


@contextmanager
def neighbours() -> Iterator[Neighbours]:
    record = memoryview(bytearray(64))
    with ExitStack() as stack:
        backend, lock = stack.enter_context(short_disk()), DeviceLock()
        pairs = [stack.enter_context(connected(backend, lock=lock, record=mine)) for mine in (record, None)]
        held_up = HeldUp(cast(Server, pairs[0].vsp._fast))
        pairs[0].vsp._fast = cast(Server, held_up)
        disks = [Disk(pair.guest, pair.data, pair.data_gpfn, timeout_s=PATIENCE_S) for pair in pairs]
        held_up.armed = True
        try:
            yield Neighbours(pairs, disks, held_up, record)
        finally:
            held_up.go_on.set()


def content(byte: int, blocks: int = 1) -> bytes:
    return bytes([byte]) * (blocks * BLOCK_BYTES)


def test_what_was_begun_is_not_seen_and_not_overwritten_before_it_is_done() -> None:
    with neighbours() as both:
        first, second = both.disks
        buffer = first.allocate(4 * BLOCK_BYTES)
        buffer.view[:] = content(1, 4)
        ticket = first.submit_write(2 * BLOCK_BYTES, buffer)  # two blocks of it are there
        assert both.held_up.begun.wait(PATIENCE_S)
        seen: list[bytes] = []
        done = threading.Event()

        def neighbour() -> None:
            seen.append(second.read(2 * BLOCK_BYTES, BLOCK_BYTES))
            second.write(2 * BLOCK_BYTES, content(2))
            done.set()

        thread = threading.Thread(target=neighbour)
        thread.start()
        assert not done.wait(A_MOMENT_S), "let in while a request was half done"
        assert both.record[EXECUTING_AT] == 1, "a successor would not know"
        both.held_up.go_on.set()
        thread.join(PATIENCE_S)
        with pytest.raises(DiskCommandError):
            first.wait(ticket)
        assert seen == [content(1)], "what C began is done as a whole, also where it fails"
        assert second.read(2 * BLOCK_BYTES, BLOCK_BYTES) == content(2), "acknowledged, and taken back"
        assert both.record[EXECUTING_AT] == 0


def test_what_was_answered_before_is_published_and_the_guest_is_told() -> None:
    """Also where the bell may ring only later: the first write's answer comes though the second one is held up."""
    with neighbours() as both:
        disk = both.disks[0]
        buffer = disk.allocate(4 * BLOCK_BYTES)
        good = disk.submit_write(0, buffer, BLOCK_BYTES)
        bad = disk.submit_write(2 * BLOCK_BYTES, buffer)
        assert both.held_up.begun.wait(PATIENCE_S)
        assert both.pairs[0].guest.has_work or good.done
        both.held_up.go_on.set()
        disk.wait(good)
        with pytest.raises(DiskCommandError):
            disk.wait(bad)


@pytest.mark.parametrize("trick", ["takes its request back", "takes the room back", "breaks its ring"])
def test_no_guest_keeps_the_device_by_what_it_does_in_between(trick: str) -> None:
    with neighbours() as both:
        pair, disk = both.pairs[0], both.disks[0]
        buffer = disk.allocate(4 * BLOCK_BYTES)
        disk.submit_write(2 * BLOCK_BYTES, buffer)
        assert both.held_up.begun.wait(PATIENCE_S)
        to_guest = 4096 + pair.ring_bytes  # the header of the ring of answers
        if trick == "takes its request back":
            pair.memory[WRITE_INDEX : WRITE_INDEX + 4] = pair.memory[READ_INDEX : READ_INDEX + 4]
        elif trick == "takes the room back":
            end = int.from_bytes(pair.memory[to_guest + WRITE_INDEX : to_guest + WRITE_INDEX + 4], "little")
            full = (end + 8) % pair.ring_bytes
            pair.memory[to_guest + READ_INDEX : to_guest + READ_INDEX + 4] = full.to_bytes(4, "little")
        else:
            begin = 4096 + int.from_bytes(pair.memory[READ_INDEX : READ_INDEX + 4], "little")
            pair.memory[begin : begin + 8] = b"\xff" * 8
        both.held_up.go_on.set()
        both.disks[1].write(0, content(2))
        assert both.disks[1].read(0, BLOCK_BYTES) == content(2)


@pytest.mark.parametrize("plain", [True, False])
def test_a_guest_whose_doorbell_blocks_who_rings_it_stops_its_own_server_alone(plain: bool) -> None:
    """It shares the open file: it can make it blocking, and fill it. Whoever rings must not hold the device."""
    lock = DeviceLock()
    with (
        MemoryBackend(BLOCKS * BLOCK_BYTES) as backend,
        connected(backend, lock=lock) as hostile,
        connected(backend, lock=lock) as other,
    ):
        disks = [
            Disk(pair.guest, pair.data, pair.data_gpfn, timeout_s=PATIENCE_S) for pair in (hostile, other)
        ]
        buffer = disks[0].allocate(BLOCK_BYTES)
        assert hostile.guest.arm()
        os.set_blocking(hostile.wait_fd, True)
        with suppress(BlockingIOError):
            os.eventfd_write(hostile.wait_fd, 2**64 - 2)
        if plain:
            disks[0].submit_write(0, buffer)
        else:
            disks[0].submit_flush()
        waited = time.monotonic()
        while not hostile.guest.has_work:
            assert time.monotonic() - waited < PATIENCE_S
        disks[1].write(0, content(2))
        disks[1].flush()
        assert disks[1].read(0, BLOCK_BYTES) == content(2)
        os.set_blocking(hostile.wait_fd, False)


def test_two_channels_over_short_writes_are_one_disk(tmp_path: Path) -> None:
    """Under load, and dense: two blocks, and every write of both of them is a short one. (That nobody comes in between
    is for the test above to show: by chance it happens too rarely.)"""
    histories: dict[int, History] = {}
    with short_disk(1, 2) as backend:
        lock = DeviceLock()

        def guest(seed: int) -> None:
            mix = {"read": 50, "write": 50, "flush": 0, "discard": 0}
            plan = Plan.from_args(
                {"seed": seed, "blocks": 2, "blocks_max": 2, "depth": 8, "operations": 2000, "mix": mix}
            )
            with connected(backend, data_pages=64, ring_pages=16, lock=lock) as pair:
                disk = Disk(pair.guest, pair.data, pair.data_gpfn)
                histories[seed] = load(disk, plan, tmp_path / f"history{seed}")[1]

        threads = [threading.Thread(target=guest, args=(seed,)) for seed in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    verdict = check(list(histories.values()))
    assert verdict.failed > 100
    assert verdict.passed, summary(verdict)


def test_a_replay_that_fails_keeps_the_mark_and_the_device_until_the_whole_batch_is_done() -> None:
    """Of three requests that a predecessor may have executed the second one fails; then a next service does all."""
    record, lock = memoryview(bytearray(64)), DeviceLock()
    with MemoryBackend(BLOCKS * BLOCK_BYTES) as backend, connected(backend, lock=lock) as pair:
        disk = Disk(pair.guest, pair.data, pair.data_gpfn)
        pair.end()
        buffer = disk.allocate(BLOCK_BYTES)
        for block in range(3):
            disk.submit_write(block * BLOCK_BYTES, buffer)
        record[EXECUTING_AT] = 1
        channel = host_end(pair.memory, pair.ring_bytes, pair.host_wait_fd, pair.wait_fd, "adaptive", record)
        services = [
            StorageVsp(channel, pair.gpa_map, backend, saved=pair.vsp.snapshot(), lock=lock, record=record)
            for _ in range(2)
        ]
        entered, answers = threading.Event(), iter([True, False])
        answer = services[0]._answer

        def enter() -> None:
            with lock:
                entered.set()

        thread = threading.Thread(target=enter)

        def fails_once(packet_type: int, flags: int, extra_header: bytes, payload: bytes) -> bytes | None:
            if not next(answers):
                raise ZeroDivisionError("a defect")
            thread.start()  # a neighbour who comes while the first of them is executed
            return answer(packet_type, flags, extra_header, payload)

        services[0]._answer = fails_once  # type: ignore[method-assign]
        with pytest.raises(ZeroDivisionError):
            services[0].replay()
        assert not entered.wait(A_MOMENT_S)
        assert record[EXECUTING_AT] == 1
        channel.close()
        channel = host_end(pair.memory, pair.ring_bytes, pair.host_wait_fd, pair.wait_fd, "adaptive", record)
        services[1]._channel = channel
        services[1].inherit(services[0])
        services[1].replay()
        assert entered.wait(PATIENCE_S)
        thread.join()
        assert record[EXECUTING_AT] == 0
        assert disk.poll() == 3
        channel.close()
