"""A guest's end of one of the three channels: messages out, messages in, what makes no sense counted."""

import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from bus.native import Channel, RingClosed, RingCorrupt, RingFull
from bus.packets import DESCRIPTOR_BYTES, PacketType
from partitions.display.display_error import DisplayError

ANSWER_S_MAX: Final = 30.0  # for any one answer of the host; a root that is being replaced answers late
_NS_PER_S: Final = 1_000_000_000
_INBAND: Final = int(PacketType.INBAND)
_ROOM_BYTES: Final = DESCRIPTOR_BYTES + 4096 + 8  # more than any message of ours takes of a ring

MessageT = TypeVar("MessageT")
KindT = TypeVar("KindT")


class DisplayClosedError(Exception):
    """The channel is gone, or its host does not answer, or has refused. The text says which."""


class Conversation(Generic[MessageT]):
    """One thread uses it."""

    def __init__(self, channel: Channel, decode: Callable[[bytes], MessageT]) -> None:
        self._channel, self._decode = channel, decode
        self.sent = 0  # messages; its number is a packet's id
        self.malformed = 0

    def send(self, message: bytes) -> None:
        """Waits for room. DisplayClosedError."""
        try:
            while True:
                try:
                    self._channel.send(message, self.sent + 1)
                    self.sent += 1
                    return
                except RingFull:
                    if not self._channel.wait_writable(_ROOM_BYTES, int(ANSWER_S_MAX * _NS_PER_S)):
                        raise DisplayClosedError("the host does not read") from None
        except (RingClosed, RingCorrupt) as error:
            raise DisplayClosedError(str(error)) from error

    def next(self, timeout_s: float | None = None) -> MessageT | None:
        """What the host says. None: nothing, for so long. DisplayClosedError."""
        deadline = None if timeout_s is None else time.monotonic_ns() + int(timeout_s * _NS_PER_S)
        while True:
            left = -1 if deadline is None else max(deadline - time.monotonic_ns(), 0)
            try:
                packets = self._channel.receive_batch(1, left)
                if not packets:
                    return None
                kind, _, _, _, payload = packets[0]
                self._channel.release()
            except (RingClosed, RingCorrupt) as error:
                raise DisplayClosedError(str(error)) from error
            if kind == PacketType.COMPLETION:
                continue
            try:
                if kind != _INBAND:
                    raise DisplayError(f"packet type {kind}")
                return self._decode(payload)
            except DisplayError:
                self.malformed += 1

    def wait_for(self, kind: type[KindT], aside: Callable[[MessageT], None] = lambda message: None) -> KindT:
        """The next message of that kind; what comes before it goes to `aside`. DisplayClosedError."""
        deadline = time.monotonic() + ANSWER_S_MAX
        while (left := deadline - time.monotonic()) > 0:
            message = self.next(left)
            if isinstance(message, kind):
                return message
            if message is not None:
                aside(message)
        raise DisplayClosedError(f"the host did not send its {kind.__name__} within {ANSWER_S_MAX:.0f} s")
