"""The thread of a channel whose driver is asynchronous: several requests are under way, replies leave in their order.

Packets that a doorbell announced are taken together, and executed one after the other by one task, a link of a chain.
Where a link waits in its driver, the next link goes on with what is behind it. So a driver that does not wait costs no
task switch a packet, and one that waits has up to IN_FLIGHT_MAX requests.

A packet is released when it and all before it have their replies: who takes over finds the others in the ring.
"""

import threading
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import trio

from bus.native import Channel, RingFull
from bus.packets import DESCRIPTOR_BYTES, TRAILER_BYTES

IN_FLIGHT_MAX: Final = 64  # of one channel: taken from its ring, and not replied to
TURN_MAX: Final = 256  # packets of one channel, before others are let at the driver
_BREATH: Final = 64  # packets of one link without a look at what else may run
_FULL_POLL_S: Final = 0.001
_LOOK_S: Final = 0.0005  # how late a request may be seen that comes while others are under way

RawPacket = tuple[int, int, int, bytes, bytes]


@dataclass(frozen=True, slots=True)
class Reply:
    payload: bytes | None  # None: its sender wants none
    mark: int = 0


@dataclass(eq=False, slots=True)
class _Job:
    packet: RawPacket
    reply: Reply | None = None


class AsyncPump:
    """Of one channel. `run` and `drain` belong to one thread."""

    def __init__(
        self,
        channel: Channel,
        execute: Callable[[RawPacket], Awaitable[Reply]],
        hold: Callable[[], None],
        let_go: Callable[[], None],
        too_large: Callable[[bytes], Reply],
    ) -> None:
        """All of these are called in that thread; what they raise ends it.

        Args:
            hold: before requests get under way. Blocks while somebody else has the driver.
            let_go: when all have their replies.
            too_large: what is replied in the place of what no ring of this size can take.
        """
        self._channel, self._execute, self._too_large = channel, execute, too_large
        self._hold, self._let_go = hold, let_go
        self._order: deque[_Job] = deque()  # taken and not released
        self._waiting: deque[_Job] = deque()  # of those, not begun
        self._has_next = False  # a link was started and has not begun
        self._taken = 0  # in this turn
        self._publishing = False
        self._failure: Exception | None = None
        self.waits_for_guest = False

    def run(self, stop: threading.Event) -> None:
        """Until the channel is closed: RingClosed. What is under way is cancelled, and the driver not let go of."""
        self._start(lambda: self._watch(stop))

    def drain(self) -> None:
        """What the ring holds now, and nothing else.

        Blocks like `run`, and yet in a thread: a root that takes over calls it in a trio loop, and no thread has two.
        """
        with ThreadPoolExecutor(1, "drain") as thread:
            thread.submit(self._start, self._take_once).result()

    def _start(self, main: Callable[[], Awaitable[None]]) -> None:
        self._order.clear()
        self._waiting.clear()
        self._has_next, self._publishing, self._failure, self._taken = False, False, None, 0
        trio.run(self._main, main)
        if self._failure is not None:
            raise self._failure

    async def _main(self, main: Callable[[], Awaitable[None]]) -> None:
        self._idle = trio.Event()
        async with trio.open_nursery() as self._nursery:
            try:
                await main()
            except Exception as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._nursery.cancel_scope.cancel()

    async def _take_once(self) -> None:
        self._take()
        await self._link()

    async def _watch(self, stop: threading.Event) -> None:
        """A ring that is not empty rings no doorbell, and it is not while anything is under way: then we look again."""
        while not stop.is_set():
            if self._may_take:
                self._take()
                if self._waiting:
                    self._begin_link()
            if self._order:
                with trio.move_on_after(_LOOK_S):
                    await self._idle.wait()
            elif self._channel.arm():
                await trio.lowlevel.wait_readable(self._channel.fileno())
                self._channel.disarm()
            else:
                self._channel.disarm()

    @property
    def _may_take(self) -> bool:
        return len(self._order) < IN_FLIGHT_MAX and self._taken < TURN_MAX

    def _take(self) -> None:
        packets = self._channel.receive_batch(IN_FLIGHT_MAX - len(self._order), 0)
        if packets and not self._order:
            self._idle = trio.Event()
            self._hold()
        jobs = [_Job(packet) for packet in packets]
        self._taken += len(jobs)
        self._order.extend(jobs)
        self._waiting.extend(jobs)

    # -- a link of the chain

    def _begin_link(self) -> None:
        if not self._has_next:
            self._has_next = True
            self._nursery.start_soon(self._link)

    async def _link(self) -> None:
        self._has_next = False
        begun = 0
        try:
            while self._waiting:
                job = self._waiting.popleft()
                if self._waiting:
                    self._begin_link()  # for when this one waits
                job.reply = await self._execute(job.packet)
                await self._publish()
                begun += 1
                if begun % _BREATH == 0:
                    await trio.lowlevel.checkpoint()
        except Exception as error:  # the driver's, or the channel is closed or broken
            self._fail(error)

    async def _publish(self) -> None:
        """All replies whose turn it is. One task at a time does it for all."""
        if self._publishing:
            return
        self._publishing = True
        while self._order and (reply := self._order[0].reply) is not None:
            await self._answer(reply, self._order[0].packet[2])
            self._order.popleft()
        self._publishing = False
        if not self._order:
            self._taken = 0
            self._let_go()
            self._idle.set()

    async def _answer(self, reply: Reply, identity: int) -> None:
        while True:
            try:
                self._channel.answer(reply.payload, identity, reply.mark)
            except RingFull:
                await self._wait_for_room(reply.payload or b"")
            except ValueError:  # no ring of this size ever takes it
                reply = self._too_large(reply.payload or b"")
            else:
                return

    async def _wait_for_room(self, payload: bytes) -> None:
        """Until the guest takes replies in."""
        needed = DESCRIPTOR_BYTES + len(payload) + TRAILER_BYTES
        self.waits_for_guest = True
        try:
            while not self._channel.wait_writable(needed, 0):
                await trio.sleep(_FULL_POLL_S)
        finally:
            self.waits_for_guest = False
