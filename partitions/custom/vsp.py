"""The server of one channel of a custom device, from one thread.

Order, as everywhere: take requests, have them served, publish each reply with the release of its request. A successor
finds in the ring what had no reply yet, and serves that, perhaps a second time: to the driver a request comes at least
once, to the guest its reply comes once.
"""

import contextlib
import threading
from collections.abc import Sequence
from typing import Final

from bus.native import Channel, GpaMap, RingClosed, RingFull
from bus.packets import DESCRIPTOR_BYTES, TRAILER_BYTES
from partitions.custom.packets import COMPLETION_REQUESTED, GPA_DIRECT, IN_BAND, Taken, Taker, fill
from partitions.custom.serving import (
    BATCH_MAX,
    check_reply,
    error_of,
    is_single,
    lock_of,
    serve_batch,
    too_long,
)
from partitions.custom.wire import REQUEST_BYTES_MAX, Mark, encode_length
from partitions.sdk.custom import CustomDriver
from partitions.storage.backends import BackendError

STOP_POLL_NS: Final = 100_000_000  # how late `stop` may be seen where nobody closes the channel


class CustomVsp:
    """One opening of one channel. `serve` runs in one thread; `statistics` may be read from any."""

    def __init__(
        self, channel: Channel, gpa_map: GpaMap, driver: CustomDriver, lock: "threading.Lock | None" = None
    ) -> None:
        """`lock`: the driver's, where several channels are opened to it."""
        channel.exact_lengths()
        self._channel = channel
        self._driver = driver.opened()
        self._lock = lock_of(self._driver, driver, lock or threading.Lock())
        self._taker = Taker(gpa_map)
        self.waits_for_guest = False

    def replay(self) -> None:
        """Nothing that others have to wait for: `serve` finds in the ring what has no reply."""

    def serve(self, stop: threading.Event) -> None:
        """Until `stop` is set or the channel is closed. Raises RingCorrupt: the guest broke the ring."""
        try:
            if is_single(self._driver):
                self._serve_singly(stop)
            else:
                self._serve_batches(stop)
        except RingClosed:
            return

    def _serve_singly(self, stop: threading.Event) -> None:
        """One request at a time, by the shortest way there is: what is short here is what an exchange costs."""
        reply_and_receive, answer, lock = self._channel.reply_and_receive, self._driver.answer, self._lock
        taker = self._taker
        reply: bytes | None = None
        identity = 0
        while True:
            try:
                packet = reply_and_receive(reply, identity, STOP_POLL_NS)
            except (RingFull, ValueError):
                if not self._publish(reply or b"", Mark.PLAIN, identity, stop):
                    return
                reply = None
                continue
            reply = None
            if packet is None:
                if stop.is_set():
                    return
                continue
            kind, flags, identity, data = packet
            if kind == IN_BAND and flags & COMPLETION_REQUESTED:
                request, room = data, REQUEST_BYTES_MAX
            elif kind == GPA_DIRECT and data == taker.header and flags & COMPLETION_REQUESTED:
                request, room = b"".join(taker.views), taker.room  # the pages of the last one, and full
            elif self._answer(taker.take_joined(*packet), stop):
                continue
            else:
                return
            taker.requests += 1
            try:
                if lock is None:
                    reply = answer(request)
                else:
                    with lock:
                        reply = answer(request)
                if type(reply) is not bytes or len(reply) > room:
                    raise too_long(len(check_reply(reply)))
            except BackendError as error:
                reply = None
                if not self._publish(error_of(error), Mark.ERROR, identity, stop):
                    return
                continue
            if kind != IN_BAND:
                fill(taker.views, reply)
                reply = b"" if len(reply) == room else encode_length(len(reply))

    def _answer(self, taken: Taken, stop: threading.Event) -> bool:
        """Any one packet. False: as `_publish`."""
        reply: bytes | BackendError = b""
        if taken.request is not None:
            try:
                with self._lock or contextlib.nullcontext():
                    reply = check_reply(self._driver.answer(taken.request))
            except BackendError as error:
                reply = error
        payload, mark = taken.answer(reply)
        return self._publish(payload if taken.wants_reply else None, mark, taken.identity, stop)

    def _serve_batches(self, stop: threading.Event) -> None:
        while not stop.is_set():
            packets = self._channel.receive_batch(BATCH_MAX, STOP_POLL_NS)
            taken = [self._taker.take(*packet) for packet in packets]
            requests = [one.request for one in taken if one.request is not None]
            replies = iter(self._serve(requests)) if requests else iter(())
            for one in taken:
                payload, mark = one.answer(b"" if one.request is None else next(replies))
                if not self._publish(payload if one.wants_reply else None, mark, one.identity, stop):
                    return

    def _serve(self, requests: list[bytes]) -> Sequence[bytes | BackendError]:
        with self._lock or contextlib.nullcontext():
            return serve_batch(self._driver, requests)

    def _publish(self, payload: bytes | None, mark: int, identity: int, stop: threading.Event) -> bool:
        """The reply to the oldest request that has none. False: told to stop while the guest left no room for it."""
        while True:
            try:
                self._channel.answer(payload, identity, mark)
            except RingFull:
                if not self._wait_for_room(len(payload or b""), stop):
                    return False
            except ValueError:  # no ring of this size ever takes it
                payload, mark = error_of(too_long(len(payload or b""))), Mark.ERROR
            else:
                return True

    def _wait_for_room(self, payload_bytes: int, stop: threading.Event) -> bool:
        """Until the guest takes replies in. False: told to stop first."""
        self.waits_for_guest = True
        try:
            needed = DESCRIPTOR_BYTES + payload_bytes + TRAILER_BYTES
            while not self._channel.wait_writable(needed, STOP_POLL_NS):
                if stop.is_set():
                    return False
        finally:
            self.waits_for_guest = False
        return True

    def statistics(self) -> dict[str, int]:
        return {"requests": self._taker.requests, "dropped": self._taker.dropped}
