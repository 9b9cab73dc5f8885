"""Asynchronous drivers in a root, which has a trio loop itself: what a predecessor left is served, disks are closed."""

import mmap
import os
from contextlib import closing

import pytest
import trio

from bus.memory import PAGE_BYTES
from bus.native import RingClosed
from partitions.sdk.own_loop import OwnLoop
from partitions.sdk.pump import AsyncPump, RawPacket, Reply
from partitions.storage.backends import BackendError
from tests.partitions.storage_pair import guest_end, host_end

RING_BYTES = 4 * PAGE_BYTES
REQUESTS = 5


class Replayed:
    """A ring with requests in it, and a pump to serve them."""

    def __init__(self) -> None:
        memory = mmap.mmap(-1, 2 * (PAGE_BYTES + RING_BYTES))
        self._bells = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        self.guest = guest_end(memory, RING_BYTES, self._bells[0], self._bells[1])
        self.host = host_end(memory, RING_BYTES, self._bells[0], self._bells[1], "block")
        self.held = 0
        for number in range(REQUESTS):
            self.guest.send(bytes([number]), number + 1, completion=True)

    def hold(self) -> None:
        self.held += 1

    def let_go(self) -> None:
        self.held -= 1

    def drain(self) -> None:
        AsyncPump(self.host, self.execute, self.hold, self.let_go, _too_large).drain()

    async def execute(self, packet: RawPacket) -> Reply:
        await trio.sleep(0.001)
        if packet[4][:1] == b"\xff":
            raise RuntimeError("on purpose")
        return Reply(packet[4][:1].upper())

    def close(self) -> None:
        self.guest.close()
        self.host.close()
        for bell in self._bells:
            os.close(bell)


def _too_large(payload: bytes) -> Reply:
    raise AssertionError


@pytest.mark.parametrize("in_a_loop", [False, True])
def test_what_waits_is_served_whether_or_not_a_loop_runs_here(in_a_loop: bool) -> None:
    async def take_over(replayed: Replayed) -> None:
        replayed.drain()

    with closing(Replayed()) as replayed:
        if in_a_loop:
            trio.run(take_over, replayed)
        else:
            replayed.drain()
        assert replayed.held == 0
        assert not replayed.host.has_work
        replies = [replayed.guest.receive_batch(1, 0)[0] for _ in range(REQUESTS)]
        assert [(reply[2], reply[4][:1]) for reply in replies] == [
            (n + 1, bytes([n])) for n in range(REQUESTS)
        ]


def test_what_fails_there_fails_here_and_is_not_given_back() -> None:
    async def take_over(replayed: Replayed) -> None:
        replayed.guest.send(b"\xff", REQUESTS + 1, completion=True)
        with pytest.raises(RuntimeError, match="on purpose"):
            replayed.drain()
        assert replayed.held == 1  # whoever comes next has to know
        assert replayed.host.has_work
        replayed.host.close()
        with pytest.raises(RingClosed):
            replayed.drain()

    with closing(Replayed()) as replayed:
        trio.run(take_over, replayed)


def test_a_loop_of_its_own_is_called_from_threads_with_and_without_one() -> None:
    """A root that ends closes its disks in its own loop, and an asynchronous one flushes then."""
    loop = OwnLoop("test")

    async def double(number: int) -> int:
        await trio.sleep(0)
        if number < 0:
            raise BackendError(5, "no such number")
        return 2 * number

    async def from_a_loop() -> int:
        return loop.run(double, 2)

    assert loop.run(double, 1) == 2
    assert trio.run(from_a_loop) == 4
    with pytest.raises(BackendError, match="no such number"):
        loop.run(double, -1)
    assert loop.run(double, 3) == 6  # what failed cost one call
