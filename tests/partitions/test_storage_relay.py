"""A disk that is passed on: a server whose bytes are behind another server, and guests of it who must not notice."""

import errno
import random
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest

from bus.memory import PAGE_BYTES
from partitions.storage._blockio import DeviceLock
from partitions.storage.backends import BlockBackend, MemoryBackend
from partitions.storage.disk import Disk
from partitions.storage.errors import DiskClosedError, DiskCommandError, DiskError
from partitions.storage.passed_on import DATA_BYTES, RELAY_SLOT_BYTES, RELAY_SLOTS, VscBackend
from partitions.storage.protocol import Operation, Packet, ScsiRequest
from partitions.storage.requests import Ticket
from tests.partitions.storage_guest import FailingBackend
from tests.partitions.storage_pair import Pair, connected
from tests.partitions.test_storage_twins import (
    EVERY_CHANGE,
    OPCODES,
    Ask,
    Twins,
)

PASSING_PAGES = DATA_BYTES // PAGE_BYTES
TIMEOUT_S = 20
PATIENCE_NS = 20_000_000_000


def passed_on(pair: Pair) -> VscBackend:
    return VscBackend(Disk(pair.guest, pair.data, pair.data_gpfn))


def disk_of(pair: Pair) -> Disk:
    return Disk(pair.guest, pair.data, pair.data_gpfn, timeout_s=TIMEOUT_S)


# -- the same as without


class RelayedTwins(Twins):
    """One server on a relay to the server of a memory disk, and one in Python on a memory disk."""

    def first(self, stack: ExitStack, **shape: Any) -> Pair:
        passing = passed_on(stack.enter_context(connected(self.disks[0], data_pages=PASSING_PAGES)))
        return stack.enter_context(connected(passing, relay=passing.relay, **shape))


@pytest.fixture(scope="module")
def twins() -> Iterator[RelayedTwins]:
    with ExitStack() as stack:
        yield RelayedTwins(stack)


@pytest.mark.parametrize("opcode", OPCODES)
@pytest.mark.parametrize("change", EVERY_CHANGE)
def test_a_disk_behind_a_relay_answers_as_one_in_place(twins: RelayedTwins, opcode: int, change: str) -> None:
    relayed, direct = twins.ask(EVERY_CHANGE[change](Ask(opcode)))
    assert relayed == direct


def test_the_ordinary_goes_by_the_relay_and_the_rest_does_not(twins: RelayedTwins) -> None:
    assert twins.through_c(Ask(OPCODES[0]))
    assert not twins.through_c(replace(Ask(OPCODES[0]), flags=0x08))


@pytest.mark.parametrize(("seed", "fast"), [(1, True), (2, True), (3, True), (4, False)])
def test_two_guests_of_one_relay_keep_their_halves_of_the_disk(seed: int, fast: bool) -> None:
    """Reads, writes and flushes of all sizes, many in flight, from two threads; each half against a model."""
    size = 2 << 20
    with ExitStack() as stack:
        disk = stack.enter_context(MemoryBackend(size))
        above = stack.enter_context(connected(disk, data_pages=PASSING_PAGES))
        passing, lock = passed_on(above), DeviceLock()
        relay = passing.relay if fast else None
        pairs = [
            stack.enter_context(connected(passing, data_pages=256, lock=lock, relay=relay)) for _ in range(2)
        ]
        models = [bytearray(size // 2) for _ in pairs]
        failures: list[BaseException] = []

        def play(pair: Pair, model: bytearray, base: int, rng: random.Random) -> None:
            try:
                play_on(disk_of(pair), model, base, rng, 400)
            except BaseException as error:
                failures.append(error)

        threads = [
            threading.Thread(target=play, args=(pair, model, base, random.Random(10 * seed + base)))
            for pair, model, base in zip(pairs, models, (0, size // 2), strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()
        assert failures == [], f"seed {seed}"
        content = bytearray(size)
        disk.readv([memoryview(content)], 0)
        assert content == models[0] + models[1], f"seed {seed}"


def play_on(disk: Disk, model: bytearray, base: int, rng: random.Random, operations: int) -> None:
    """Requests in flight never touch the same blocks, so that each one's result is known when it is sent."""
    flying: deque[tuple[Ticket, Any, int, int, bytes | None]] = deque()

    def end_oldest() -> None:
        ticket, buffer, start, length, expected = flying.popleft()
        disk.wait(ticket)
        if expected is not None:
            assert buffer.view[:length] == expected, f"[{start}, {start + length})"
        buffer.release()

    for _ in range(operations):
        largest = rng.choice([1, 8, 128, 256])  # the last two: as much as a slot holds, and more
        length = 512 * rng.randint(1, largest)
        start = 512 * rng.randrange((len(model) - length) // 512 + 1)
        while flying and (
            len(flying) >= 12
            or any(start < at + size and at < start + length for _, _, at, size, _ in flying)
            or disk.pool.longest_run_bytes < length
        ):
            end_oldest()
        buffer = disk.allocate(length)
        if rng.random() < 0.5:
            data = rng.randbytes(length)
            buffer.view[:length] = data
            model[start : start + length] = data
            durable = rng.random() < 0.1
            ticket = disk.submit_write(base + start, buffer, length, durable=durable)
            flying.append((ticket, buffer, start, length, None))
        else:
            buffer.view[:length] = bytes([0xEE]) * length
            ticket = disk.submit_read(base + start, buffer, length)
            flying.append((ticket, buffer, start, length, bytes(model[start : start + length])))
        if rng.random() < 0.02:
            disk.flush()
    while flying:
        end_oldest()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("writing", [False, True])
def test_an_error_of_the_medium_arrives_as_the_medium_told_it(number: int, writing: bool) -> None:
    def fail(disk: Disk, backend: FailingBackend) -> DiskCommandError:
        backend.number = number
        with pytest.raises(DiskCommandError) as caught:
            disk.write(0, bytes(4096)) if writing else disk.read(0, 4096)
        backend.number = 0
        return caught.value

    # Without a descriptor: the server in C would read past the failing methods.
    class Slow(FailingBackend):
        @property
        def descriptor(self) -> None:
            return None

    direct, behind = Slow(), Slow()
    with direct, behind, connected(direct) as pair, connected(behind, data_pages=PASSING_PAGES) as above:
        passing = passed_on(above)
        with connected(passing, relay=passing.relay) as below:
            wanted, found = fail(disk_of(pair), direct), fail(disk_of(below), behind)
            assert (found.errno, found.sense, found.srb_status) == (
                wanted.errno,
                wanted.sense,
                wanted.srb_status,
            )
            assert below.vsp.statistics()["requests"] > 0


# -- when what is above stands still, ends, or lies


@contextmanager
def stalled(disk: BlockBackend) -> Iterator[tuple[Pair, VscBackend, DeviceLock]]:
    """A passed-on disk whose server above can be made to stand still: by taking the lock."""
    lock = DeviceLock()
    with connected(disk, data_pages=PASSING_PAGES, lock=lock) as above:
        yield above, passed_on(above), lock


@pytest.mark.parametrize("next_one_flushes", [True, False])
def test_a_guest_that_leaves_while_the_server_above_stands_still_holds_nobody_up(
    next_one_flushes: bool,
) -> None:
    """Its requests end later, and in no page of its own; another guest goes on with the same relay."""
    with MemoryBackend(1 << 20) as disk, stalled(disk) as (_, passing, lock):
        disk.writev([memoryview(b"A" * 4096)], 0)
        device = DeviceLock()
        with ExitStack() as leaving:
            first = leaving.enter_context(connected(passing, relay=passing.relay, lock=device))
            quick = disk_of(first)
            buffer = quick.allocate(4096)
            buffer.view[:] = b"z" * 4096
            lock.__enter__()
            try:
                quick.submit_read(0, buffer)
                time.sleep(0.05)  # it is on its way above
                leaving.close()  # asserts that the server's thread has ended
                pages, data = bytes(first.data), first.data
                del first, quick, buffer  # the next server may stand where this one stood
            finally:
                lock.__exit__()
        with connected(passing, relay=passing.relay, lock=device) as second:
            other = disk_of(second)
            if next_one_flushes:  # not by the relay; it must leave the relay's answer to the relay
                other.flush()
            for _ in range(3 * RELAY_SLOTS):  # round all slots
                assert other.read(0, 4096) == b"A" * 4096
        assert data == pages
        assert passing._disk.statistics()["unknown_ids"] == 0


def test_requests_fail_where_the_channel_above_is_closed() -> None:
    with (
        MemoryBackend(1 << 20) as disk,
        stalled(disk) as (above, passing, lock),
        connected(passing, relay=passing.relay) as below,
    ):
        client = disk_of(below)
        lock.__enter__()
        try:
            tickets = [client.submit_read(0, client.allocate(4096)) for _ in range(4)]
            time.sleep(0.05)
            above.guest.close()
            for ticket in tickets:
                with pytest.raises(DiskCommandError) as caught:
                    client.wait(ticket)
                assert caught.value.errno == errno.EIO
        finally:
            lock.__exit__()
        with pytest.raises(DiskError):  # and what comes later
            client.read(0, 4096)


def test_a_server_above_that_lies_is_not_believed() -> None:
    """Answers to nothing, answers twice, too little data, senses of 255 bytes: the guest sees one answer a request."""
    with MemoryBackend(1 << 20) as disk, connected(disk, data_pages=PASSING_PAGES) as above:
        passing = passed_on(above)
        above.end()  # from here on we are the server
        host = replace_server(above)
        with connected(passing, relay=passing.relay) as below:
            client = disk_of(below)
            ticket = client.submit_read(0, client.allocate(4096))
            ((_, _, identity, _, payload),) = host.receive_batch(1, PATIENCE_NS)
            request = ScsiRequest.parse(Packet.parse(payload).body)
            for wrong in (identity + 1, 0xFFFF, identity | 1 << 40, 7):
                host.send_completion(answer(request), wrong)
            host.send_completion(b"\1" * 8, identity)  # too short to be one
            host.send_completion(answer(request, transfer_bytes=512), identity)
            host.send_completion(answer(request), identity)  # a second time
            host.release()
            with pytest.raises(DiskCommandError) as caught:
                client.wait(ticket)
            assert caught.value.errno == errno.EIO
            assert client.statistics()["unknown_ids"] == 0

            below.guest.send_raw(9, 1, *replace(Ask(0x28), gpfn=below.data_gpfn, sense_length=18).packet(), 5)
            ((_, _, identity, _, payload),) = host.receive_batch(1, PATIENCE_NS)
            liar = bytearray(answer(request, srb_status=0x84, scsi_status=2))
            liar[21] = 255  # the sense's length
            host.send_completion(bytes(liar), identity)
            host.release()
            ((_, _, _, _, payload),) = below.guest.receive_batch(1, PATIENCE_NS)
            assert Packet.parse(payload).body[9] == 18  # the sense's length: as much as was asked for
        host.close()


def answer(request: ScsiRequest, **changes: Any) -> bytes:
    good: dict[str, Any] = {"srb_status": 1, "scsi_status": 0, "transfer_bytes": request.transfer_bytes}
    body = request._replace(**(good | changes), sense_length=0, cdb_or_sense=b"")
    return Packet(Operation.COMPLETE_IO, 0, 0, body.build()).build()


def replace_server(pair: Pair) -> Any:
    from tests.partitions.storage_pair import host_end

    return host_end(pair.memory, pair.ring_bytes, pair.host_wait_fd, pair.wait_fd, "adaptive")


def test_a_relay_needs_whole_slots_in_memory_of_its_own() -> None:
    from partitions.storage._blockio import Relay

    with MemoryBackend(1 << 20) as disk, connected(disk) as above:
        for memory, slot_bytes, block_bytes in (
            (bytearray(RELAY_SLOT_BYTES - 1), RELAY_SLOT_BYTES, 512),
            (bytearray(0), RELAY_SLOT_BYTES, 512),
            (bytearray(4096), 4095, 512),
            (bytearray(4096), 0, 512),
            (bytearray(4096), 4096, 0),
            (bytearray(4096 * 257), 4096, 512),
        ):
            with pytest.raises(ValueError, match="slot"):
                Relay(above.guest, memoryview(memory), 0x2000, slot_bytes, block_bytes)
        with pytest.raises(BufferError):
            Relay(above.guest, memoryview(bytes(4096)), 0x2000, 4096, 512)
        above.guest.close()
        with pytest.raises(Exception, match="closed"):
            Relay(above.guest, memoryview(bytearray(4096)), 0x2000, 4096, 512)
        with pytest.raises(DiskClosedError):
            disk_of(above)
