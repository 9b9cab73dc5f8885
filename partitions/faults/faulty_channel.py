"""A channel's serving end that breaks its rings as the armed faults say. In the place of `Channel`, while any is armed.

A service that is handed one takes its requests singly, in Python, so that each is a pass of the seam; a service that is
not handed one never knows that there is such a thing.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol, cast

from bus.native import Channel, RingClosed, RingFull
from bus.packets import PacketType
from partitions.faults.armed import Armed
from partitions.faults.ring_words import (
    BAD_FLAGS,
    BAD_TYPE,
    FLAGS,
    INTERRUPT_MASK,
    LENGTH,
    OFFSET,
    PENDING_SEND,
    READ_INDEX,
    TYPE,
    WRITE_INDEX,
    Ring,
    RingWords,
)

RawPacket = tuple[int, int, int, bytes, bytes]
_FIELDS: Final = {"type": TYPE, "offset": OFFSET, "length": LENGTH, "flags": FLAGS}
_INDEXES: Final = {"ring-bad-write-index": WRITE_INDEX, "ring-bad-read-index": READ_INDEX}
_REQUEST_KINDS: Final = frozenset(
    {"ring-bad-request-header", "ring-flip-request", "ring-double-fetch", "ring-not-drained"}
)
_GARBAGE_BYTES: Final = 64
_ID_BITS: Final = 55  # an id that no client gives: they count upwards from small numbers
_U32: Final = 1 << 32
_NEVER_FREE_BYTES: Final = 8  # of a ring: a full one would look like an empty one

_Send = Callable[[bytes, int], None]


class Faults(Protocol):
    """Those of one device, for the channels to it."""

    def struck(self, kinds: Iterable[str]) -> list[Armed]:
        """One pass for each armed one of these kinds; those that strike."""


class Withheld:
    """Completions of one channel that are to come when the fault is healed."""

    def __init__(self) -> None:
        self._completions: deque[tuple[bytes, int]] = deque()

    def keep(self, payload: bytes, identity: int) -> None:
        self._completions.append((payload, identity))

    def publish(self, send: Callable[[bytes, int], None]) -> None:
        """As many as there is room for."""
        with contextlib.suppress(RingFull):
            while self._completions:
                send(*self._completions[0])
                self._completions.popleft()


class FaultyChannel:
    """What services use of `Channel`, faulty; the rest is the channel's own."""

    def __init__(self, channel: Channel, words: RingWords, faults: Faults, withheld: Withheld) -> None:
        self.beneath: Final = channel
        self._words, self._faults, self._withheld = words, faults, withheld
        self._last: tuple[bytes, int] | None = None  # completion
        self._pinned: dict[tuple[Ring, int], tuple[int, int]] = {}  # words that stay bad: how, what they were

    def __getattr__(self, name: str) -> Any:
        return getattr(self.beneath, name)

    # -- taking

    def receive_batch(self, max_packets: int, timeout_ns: int = -1) -> list[RawPacket]:
        if max_packets == 0:
            return []
        self._break_indexes()
        if not self.beneath.wait_readable(timeout_ns):
            return []
        self._pin()  # once more: the guest may have written its own since
        at = self._words.next_request(self.beneath.held)
        with contextlib.ExitStack() as while_taking:
            for armed in self._faults.struck(_REQUEST_KINDS):
                match armed.kind:
                    case "ring-bad-request-header":
                        self._words.spoil_head(at, _FIELDS[str(armed.order.parameters["field"])])
                    case "ring-flip-request":
                        self._words.flip(at, armed.trigger)
                    case "ring-double-fetch":
                        field = str(armed.order.parameters["field"])
                        while_taking.enter_context(self._words.to_and_fro(at, field))
                    case "ring-not-drained":
                        self._wait(armed)
            return self.beneath.receive_batch(1, 0)

    def reply_and_receive(
        self, payload: bytes | None, transaction_id: int, timeout_ns: int = -1
    ) -> tuple[int, int, int, bytes] | None:
        if payload is not None:
            self.send_completion(payload, transaction_id, ring=False)
        self.release()
        for kind, flags, identity, extra, body in self.receive_batch(1, timeout_ns):
            return kind, flags, identity, extra + body
        return None

    def release(self) -> None:
        self.beneath.release()
        self._pin()

    def _break_indexes(self) -> None:
        """Before each look, for a bad index is bad until somebody has seen it."""
        for armed in self._faults.struck(_INDEXES):
            ring: Ring = "requests" if armed.order.parameters["ring"] == "requests" else "completions"
            word = _INDEXES[armed.kind]
            if (ring, word) not in self._pinned:
                bad = self._words.bad_index(ring, word, str(armed.order.parameters["value"]))
                self._pinned[ring, word] = bad, self._words.load(ring, word)
        self._pin()

    def _pin(self) -> None:
        for (ring, word), (bad, _) in self._pinned.items():
            if (there := self._words.load(ring, word)) != bad:
                self._pinned[ring, word] = bad, there
                self._words.store(ring, word, bad)

    def undo(self) -> None:
        """Before anybody attaches to the rings again: whoever writes an index goes on from what stands there."""
        pinned, self._pinned = self._pinned, {}
        for (ring, word), (bad, true) in pinned.items():
            if self._words.load(ring, word) == bad:
                self._words.store(ring, word, true)

    def _wait(self, armed: Armed) -> None:
        armed.wait_until_healed(lambda: self.beneath.is_closed)
        if self.beneath.is_closed:
            raise RingClosed("closed while nothing was taken")

    # -- publishing

    def send_completion(self, payload: bytes, transaction_id: int, ring: bool = True) -> None:
        def send(payload: bytes, identity: int) -> None:
            self.beneath.send_completion(payload, identity, ring=ring)

        self._complete(send, bytes(payload), transaction_id)

    def answer(self, payload: bytes | None, transaction_id: int, mark: int = 0) -> None:
        if payload is None:
            self.beneath.answer(None, transaction_id)
            return
        sent = False

        def send(payload: bytes, identity: int) -> None:
            nonlocal sent
            if sent:  # one more than there were requests
                self.beneath.send_completion(payload, identity)
            else:
                self.beneath.answer(payload, identity, mark)
                sent = True

        self._complete(send, bytes(payload), transaction_id)
        if not sent:
            self.beneath.answer(None, transaction_id)

    def _complete(self, send: _Send, payload: bytes, identity: int) -> None:
        """What comes in addition comes behind: what is before it in the ring says to a successor what was answered."""
        struck = self._faults.struck(_REPLY_KINDS)
        for armed in struck:
            match armed.kind:
                case "ring-flip-completion":
                    payload = _flipped(payload, armed)
                case "ring-delayed":
                    armed.healed.wait(armed.delay_s)
                case "ring-mask-stuck":
                    self._words.store("completions", INTERRUPT_MASK, 1)
                case "ring-lost":
                    self._withheld.keep(payload, identity)
        kinds = {armed.kind: armed for armed in struck}
        if "ring-lost" not in kinds:
            if (bad := kinds.get("ring-bad-completion-header")) is not None:
                self._send_badly(bad, payload, identity)
            else:
                send(payload, identity)
        with contextlib.suppress(RingFull):
            for armed in struck:
                self._add(armed, payload, identity)
        self._last = payload, identity
        self._pin()

    def _send_badly(self, armed: Armed, payload: bytes, identity: int) -> None:
        kind, flags = (
            (BAD_TYPE, 0)
            if armed.order.parameters["field"] == "type"
            else (int(PacketType.COMPLETION), BAD_FLAGS)
        )
        self.beneath.send_raw(kind, flags, b"", payload, identity)

    def _add(self, armed: Armed, payload: bytes, identity: int) -> None:
        channel = self.beneath
        match armed.kind:
            case "ring-twice":
                channel.send_completion(payload, identity)
            case "ring-replayed-id" if self._last is not None:
                channel.send_completion(*self._last)
            case "ring-unknown-id":
                channel.send_completion(payload, (1 << _ID_BITS) + armed.trigger.draw(1 << _ID_BITS))
            case "ring-unsolicited":
                channel.send(bytes(armed.trigger.draw(256) for _ in range(_GARBAGE_BYTES)))
            case "ring-pending-size":
                self._words.store("completions", PENDING_SEND, self._wanted_room(armed))
            case "ring-index-storm":
                self._storm(armed)

    def _wanted_room(self, armed: Armed) -> int:
        """Every other time anything; in between just what the guest makes when it takes this answer, so it rings."""
        if armed.trigger.draw(2):
            return armed.trigger.draw(_U32)
        return self._words.size("completions") - _NEVER_FREE_BYTES

    def _storm(self, armed: Armed) -> None:
        """Through the two words that are ours and that the guest reads. They end as they were."""
        words = self._words
        ours: tuple[tuple[Ring, int], ...] = (("completions", WRITE_INDEX), ("requests", READ_INDEX))
        were = [words.load(*one) for one in ours]
        for _ in range(int(armed.order.parameters["writes"])):
            for one in ours:
                words.store(*one, armed.trigger.draw(_U32))
        for one, value in zip(ours, were, strict=True):
            words.store(*one, value)


_REPLY_KINDS: Final = frozenset(
    {
        "ring-index-storm",
        "ring-bad-completion-header",
        "ring-flip-completion",
        "ring-replayed-id",
        "ring-unknown-id",
        "ring-twice",
        "ring-unsolicited",
        "ring-lost",
        "ring-delayed",
        "ring-mask-stuck",
        "ring-pending-size",
    }
)


def beneath(channel: Channel) -> Channel:
    """For C, which knows no other."""
    return cast(Channel, getattr(channel, "beneath", channel))


def _flipped(payload: bytes, armed: Armed) -> bytes:
    if not payload:
        return payload
    spoilt = bytearray(payload)
    spoilt[armed.trigger.draw(len(spoilt))] ^= 1 << armed.trigger.draw(8)
    return bytes(spoilt)
