"""The storage VSP of a disk whose driver is asynchronous, and such a driver for those that call it.

As StorageVsp, from one thread; but reads and writes overlap. The device is held while any is under way, and replies
leave in the order of the requests, so that what a successor finds in the ring is what nobody was told of.
"""

import threading
from collections.abc import Sequence
from typing import Final

import trio

from bus.native import Channel, GpaMap, RingClosed, RingError
from bus.packets import PacketFlags, PacketType
from bus.seam import Seam, Step
from partitions.sdk.block import AsyncBlockDriver, BlockDriver
from partitions.sdk.own_loop import OwnLoop
from partitions.sdk.pump import AsyncPump, RawPacket, Reply
from partitions.storage._blockio import DeviceLock
from partitions.storage.backends import BackendError, BlockBackend
from partitions.storage.executor import BadPages, Executor, Work
from partitions.storage.queues import ONLY_QUEUE, Queue, SubChannelRequests
from partitions.storage.session import load_session, save_session
from partitions.storage.target import Discard, Flush, Outcome, Read, Refuse, Write

_EXECUTING_AT: Final = 8  # bus/native/endpoint.h, struct endpoint_journal
_SESSION: Final = slice(16, 20)  # of a channel's record


class AsyncStorageVsp:
    """One opening of one storage channel. A DeviceHolder."""

    def __init__(
        self,
        channel: Channel,
        gpa_map: GpaMap,
        driver: AsyncBlockDriver,
        *,
        serial: str,
        lock: DeviceLock,
        record: memoryview,
        seam: Seam,
        queue: Queue = ONLY_QUEUE,
    ) -> None:
        """As StorageVsp."""
        self._driver, self._lock, self._record, self._seam = driver, lock, record, seam
        self._executor = Executor(
            Called(driver), gpa_map.views, serial=serial, saved=load_session(record[_SESSION]), queue=queue
        )
        self.sub_channel_requests = SubChannelRequests(self._executor.session)
        self._channel = channel
        self._pump = AsyncPump(channel, self._execute, self._hold, self._all_replied, _too_large)
        self._holds_device = self._replays = False
        self.dropped = 0

    @property
    def waits_for_guest(self) -> bool:
        return self._pump.waits_for_guest

    def serve(self, stop: threading.Event) -> None:
        """Until the channel is closed on our side. Raises RingCorrupt: the guest broke the ring."""
        try:
            self._pump.run(stop)
        except RingClosed:
            pass  # who closed it lets the device go
        except RingError:
            self.let_go()
            raise

    def replay(self) -> None:
        """What the ring holds at this moment. Ends where the device is held no more."""
        self._replays = self._executor.session.replaying = True
        try:
            self._pump.drain()
        except RingClosed:
            raise
        except RingError:
            self.let_go()
            raise
        finally:
            self._replays = self._executor.session.replaying = False
        self._record[_EXECUTING_AT] = 0  # not after a failure: whoever comes next has to know
        self.let_go()

    async def _execute(self, packet: RawPacket) -> Reply:
        kind, flags, _, extra, payload = packet
        if kind not in (PacketType.INBAND, PacketType.GPA_DIRECT):
            self.dropped += 1
            return Reply(None)
        answer = await self._carry_out(extra, payload)
        self._executor.session.replaying = False
        self._seam.passing(Step.EXECUTE)
        save_session(self._record[_SESSION], self._executor.session)
        self.sub_channel_requests.look()
        return Reply(answer if flags & PacketFlags.COMPLETION_REQUESTED else None)

    async def _carry_out(self, extra: bytes, payload: bytes) -> bytes:
        executor = self._executor
        begun = executor.begin(extra, payload)
        if isinstance(begun, bytes):
            return begun
        outcome: Outcome | Refuse | BadPages
        try:
            await self._drive(begun)
            outcome = executor.carried_out(begun.action, begun.pages)
        except (BackendError, BadPages) as error:
            outcome = executor.refusal(begun, error)
        return executor.finish(begun, outcome)

    async def _drive(self, work: Work) -> None:
        driver, views = self._driver, self._executor.views_for
        match work.action:
            case Read(offset, length):
                await driver.readv(views(work.pages, length, write=True), offset)
            case Write(offset, length, durable):
                await driver.writev(views(work.pages, length, write=False), offset)
                if durable:
                    await driver.flush()
            case Flush():
                await driver.flush()
            case Discard(ranges):
                for offset, length in ranges:
                    await driver.discard(offset, length)

    # -- the device

    def _hold(self) -> None:
        if not self._holds_device:
            self._lock.__enter__()
            if self._channel.is_closed:  # who had it before us may have let it go in the middle of a request
                self._lock.__exit__(None, None, None)
                raise RingClosed("closed before the device was ours")
            self._holds_device = True
        self._record[_EXECUTING_AT] = 1

    def _all_replied(self) -> None:
        if not self._replays:
            self._record[_EXECUTING_AT] = 0
            self.let_go()

    def inherit(self, failed: object) -> None:
        assert isinstance(failed, AsyncStorageVsp)
        self._holds_device, failed._holds_device = failed._holds_device, False

    def let_go(self) -> None:
        if self._holds_device:
            self._holds_device = False
            self._lock.__exit__(None, None, None)

    def statistics(self) -> dict[str, int]:
        return self._executor.counters.statistics(self.dropped, {})


def _too_large(payload: bytes) -> Reply:
    raise AssertionError("a completion of 64 bytes fits every ring")


class _SameDisk:
    """What a driver says of its disk, said by who stands before it."""

    _driver: AsyncBlockDriver

    @property
    def size_bytes(self) -> int:
        return self._driver.size_bytes

    @property
    def block_bytes(self) -> int:
        return self._driver.block_bytes

    @property
    def read_only(self) -> bool:
        return self._driver.read_only


class ThreadedMedium(_SameDisk, AsyncBlockDriver):
    """A medium whose calls block, each in a thread: of a disk whose driver is asynchronous, while a fault is armed.

    The driver is then called in its other loop. Who is cancelled leaves the thread to itself.
    """

    def __init__(self, driver: AsyncBlockDriver, medium: BlockBackend) -> None:
        super().__init__(driver.context)
        self._driver, self._medium = driver, medium
        self.can_discard = driver.can_discard

    async def readv(self, views: Sequence[memoryview], offset: int) -> None:
        await trio.to_thread.run_sync(self._medium.readv, views, offset, abandon_on_cancel=True)

    async def writev(self, views: Sequence[memoryview], offset: int) -> None:
        await trio.to_thread.run_sync(self._medium.writev, views, offset, abandon_on_cancel=True)

    async def flush(self) -> None:
        await trio.to_thread.run_sync(self._medium.flush, abandon_on_cancel=True)

    async def discard(self, offset: int, length: int) -> None:
        await trio.to_thread.run_sync(self._medium.discard, offset, length, abandon_on_cancel=True)


class Called(_SameDisk, BlockDriver):
    """A BlockBackend on an asynchronous driver: each call blocks until it is done, in a loop of its own."""

    def __init__(self, driver: AsyncBlockDriver) -> None:
        super().__init__(driver.context)
        self._driver = driver
        self.can_discard = driver.can_discard
        self._loop: OwnLoop | None = None

    @property
    def _own_loop(self) -> OwnLoop:
        if self._loop is None:
            self._loop = OwnLoop(self._driver.context.name)
        return self._loop

    def readv(self, views: Sequence[memoryview], offset: int) -> None:
        self._own_loop.run(self._driver.readv, views, offset)

    def writev(self, views: Sequence[memoryview], offset: int) -> None:
        self._own_loop.run(self._driver.writev, views, offset)

    def flush(self) -> None:
        self._own_loop.run(self._driver.flush)

    def discard(self, offset: int, length: int) -> None:
        self._own_loop.run(self._driver.discard, offset, length)

    def close(self) -> None:
        self._driver.close()
