"""The server of one channel of a custom device whose driver is asynchronous, and the same for who calls it."""

import threading

from bus.native import Channel, GpaMap, RingClosed
from partitions.custom.packets import Taker
from partitions.custom.serving import check_reply, error_of, lock_of, too_long
from partitions.custom.wire import Mark
from partitions.sdk.custom import AsyncCustomDriver, CustomDriver
from partitions.sdk.own_loop import OwnLoop
from partitions.sdk.pump import AsyncPump, RawPacket, Reply
from partitions.storage.backends import BackendError


class AsyncCustomVsp:
    """One opening of one channel. `serve` runs in one thread; `statistics` may be read from any."""

    def __init__(
        self, channel: Channel, gpa_map: GpaMap, driver: AsyncCustomDriver, lock: threading.Lock
    ) -> None:
        """`lock`: the driver's, where several channels are opened to it."""
        channel.exact_lengths()
        self._driver = driver.opened()
        self._lock = lock_of(self._driver, driver, lock)
        self._holds = False
        self._taker = Taker(gpa_map)
        self._pump = AsyncPump(channel, self._execute, self._hold, self.let_go, _too_large)

    @property
    def waits_for_guest(self) -> bool:
        return self._pump.waits_for_guest

    def replay(self) -> None:
        """Nothing that others have to wait for: `serve` finds in the ring what has no reply."""

    def serve(self, stop: threading.Event) -> None:
        """Until the channel is closed. Raises RingCorrupt: the guest broke the ring."""
        try:
            self._pump.run(stop)
        except RingClosed:
            return
        finally:
            self.let_go()

    def _hold(self) -> None:
        if self._lock is not None:
            self._lock.acquire()
            self._holds = True

    def let_go(self) -> None:
        if self._holds and self._lock is not None:
            self._holds = False
            self._lock.release()

    async def _execute(self, packet: RawPacket) -> Reply:
        taken = self._taker.take(*packet)
        reply: bytes | BackendError = b""
        if taken.request is not None:
            try:
                reply = check_reply(await self._driver.serve(taken.request))
            except BackendError as error:
                reply = error
        payload, mark = taken.answer(reply)
        return Reply(payload if taken.wants_reply else None, mark)

    def statistics(self) -> dict[str, int]:
        return {"requests": self._taker.requests, "dropped": self._taker.dropped}


def _too_large(payload: bytes) -> Reply:
    return Reply(error_of(too_long(len(payload))), Mark.ERROR)


class Called(CustomDriver):
    """An asynchronous driver for those that call it, one request at a time each; in a loop of its own."""

    def __init__(self, driver: AsyncCustomDriver, loop: OwnLoop | None = None) -> None:
        super().__init__(driver.context)
        self._driver, self._loop = driver, loop or OwnLoop(driver.context.name)

    def opened(self) -> CustomDriver:
        opened = self._driver.opened()
        return self if opened is self._driver else Called(opened, self._loop)

    def answer(self, request: bytes) -> bytes:
        return self._loop.run(self._driver.serve, request)
