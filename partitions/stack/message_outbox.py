"""Messages on their way to one port: posted in order, as fast as the other side takes them."""

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import trio

from runtime.abi import HvStatus, HypercallError
from runtime.hypercalls.caller import HypercallPort

_NOT_NOW: Final = (
    HvStatus.INSUFFICIENT_BUFFERS,
    HvStatus.INVALID_SYNIC_STATE,
)  # the other side is slow, or still booting
_FIRST_PAUSE_MS: Final = 0.5
_PAUSE_MS_MAX: Final = 50.0


class MessageOutbox:
    """What is put in is posted when `flush` is called; nobody is held up by a slow reader."""

    def __init__(
        self,
        hypercalls: HypercallPort,
        nursery: trio.Nursery,
        connection: int,
        message_type: int,
        sleep: Callable[[float], Awaitable[None]] = trio.sleep,
    ) -> None:
        self._call, self._nursery, self._sleep = hypercalls, nursery, sleep
        self._connection, self._type = connection, message_type
        self._waiting: deque[bytes] = deque()
        self._draining = False
        self.posted = 0  # ever, by us and our predecessors

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, payload: bytes) -> None:
        self._waiting.append(payload)

    def clear(self) -> None:
        self._waiting.clear()

    def to_state(self) -> list[bytes]:
        return list(self._waiting)

    def adopt(self, waiting: Iterable[bytes], posted: int) -> None:
        """Those of a predecessor that it had not posted, of which there were `posted` in all."""
        self._waiting.extend(waiting)
        self.posted = posted

    def flush(self) -> None:
        if not self._draining and not self._post():
            self._draining = True
            self._nursery.start_soon(self._drain)

    def _post(self) -> bool:
        """Until the other side's buffers are full. True: nothing is left."""
        while self._waiting:
            try:
                self._call.post_message(self._connection, self._type, self._waiting[0])
            except HypercallError as error:
                if error.status in _NOT_NOW:
                    return False
                self._waiting.clear()  # the other side, or its port, is gone
            else:
                self._waiting.popleft()
                self.posted += 1
        return True

    async def _drain(self) -> None:
        """Try again, ever more patiently."""
        pause_ms = _FIRST_PAUSE_MS
        while not self._post():
            await self._sleep(pause_ms / 1000)
            pause_ms = min(pause_ms * 2, _PAUSE_MS_MAX)
        self._draining = False
