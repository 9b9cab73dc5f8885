"""The measured loop, the same for every transport: a client that exchanges, and the answers that its server gives.

Each exchange is timed by itself; two of them share one look at the clock. Latencies are those of plain requests, whose
reply is the request. Every CHECK_EVERY-th is a checked one: it is new, and its reply says how many requests the server
has answered and what the CRC of this one is under a key that only the two ends know. So a transport that answers by
itself, drops, repeats, or brings only a part of the bytes is found out.

Partitions use this module too.
"""

import os
import struct
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bus.native import Histogram, crc32c, monotonic_ns

CHECK_EVERY: Final = 64
PAYLOAD_BYTES_MIN: Final = 32
PAYLOAD_BYTES_MAX: Final = 1 << 20
WARM_UP_NS: Final = 10_000_000
LOOK_NS_MAX: Final = 5_000_000  # how long a batch may last: how late the end may be seen
OVERTIME: Final = 2.0  # an open loop that cannot keep up is ended after so many times what it was to last
_PLAIN: Final = 0  # first byte of a request
_CHECKED: Final = 1
_ANSWER: Final = struct.Struct("<QQ")  # of a checked request: how many were answered; its keyed CRC
_SLEEP_NS_MIN: Final = 250_000  # a shorter wait for the next request's time spins
_WAKES_LATE_NS: Final = 120_000  # what a sleep may take too long; the rest spins
_KEY_MASK: Final = 0xFFFF_FFFF

Exchange = Callable[[bytes], bytes]


class WrongReply(Exception):
    """The transport did not do what it was measured at. One line."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One sample, as the client saw it."""

    latency: Histogram  # ns; in an open loop since the intended start
    exchanges: int  # all of them, checked ones too
    seconds: float


def make_answer(key: int) -> Callable[[bytes], bytes]:
    """The server's part: a function that makes the reply to each request. A function, not a method: it is in the path.

    Args:
        key: which the client has too.
    """
    count = 0

    def answer(request: bytes) -> bytes:
        nonlocal count
        count += 1
        if not request or request[0] == _PLAIN:
            return request
        return _ANSWER.pack(count, crc32c(request, key)) + bytes(request[_ANSWER.size :])

    return answer


class Client:
    """The client's part, over any exchange."""

    def __init__(self, exchange: Exchange, payload_bytes: int, key: int) -> None:
        if not PAYLOAD_BYTES_MIN <= payload_bytes <= PAYLOAD_BYTES_MAX:
            raise ValueError(
                f"{payload_bytes} bytes: {PAYLOAD_BYTES_MIN} to {PAYLOAD_BYTES_MAX} can be exchanged"
            )
        self._exchange, self._key, self._size = exchange, key & _KEY_MASK, payload_bytes
        self._plain = bytes([_PLAIN]) + os.urandom(payload_bytes - 1)
        self._sent = 0
        self._batch = 1

    def check(self) -> None:
        """One checked exchange. Raises WrongReply."""
        request = bytes([_CHECKED]) + os.urandom(self._size - 1)
        reply = self._exchange(request)
        self._sent += 1
        if len(reply) != self._size:
            raise WrongReply(f"a reply of {len(reply)} bytes to a request of {self._size}")
        count, crc = _ANSWER.unpack_from(reply)
        if crc != crc32c(request, self._key) or reply[_ANSWER.size :] != request[_ANSWER.size :]:
            raise WrongReply("a reply does not carry the server's answer to the bytes of its request")
        if count != self._sent:
            raise WrongReply(f"the server answered {count} requests, and {self._sent} were sent")

    def warm_up(self) -> None:
        """And learn how many exchanges fit between two looks at the end."""
        self.check()
        unused, begin = Histogram(), monotonic_ns()
        while (now := monotonic_ns()) - begin < WARM_UP_NS:
            self._run_batch(unused)
            took = max(monotonic_ns() - now, 1)
            self._batch = max(1, min(2 * self._batch, CHECK_EVERY - 1, self._batch * LOOK_NS_MAX // took))

    def closed(self, seconds: float) -> Measured:
        """Each request as soon as the last reply is there."""
        latency, sent = Histogram(), self._sent
        begin = monotonic_ns()
        end = begin + int(seconds * 1e9)
        while True:
            self._run_batch(latency)
            if monotonic_ns() >= end:
                break
            if self._sent % CHECK_EVERY >= CHECK_EVERY - self._batch:
                self.check()
        self.check()
        return Measured(latency, self._sent - sent, (monotonic_ns() - begin) / 1e9)

    def _run_batch(self, latency: Histogram) -> None:
        exchange, plain, now = self._exchange, self._plain, monotonic_ns
        times: list[int] = []
        add, count = times.append, self._batch
        reply = b""
        before = now()
        for _ in range(count):
            reply = exchange(plain)
            after = now()
            add(after - before)
            before = after
        self._sent += count
        if reply != plain:
            raise WrongReply("a reply is not its request's bytes")
        latency.record_many(array("Q", times))

    def open(self, seconds: float, rate_per_s: float) -> Measured:
        """Each request at its own time, whatever became of the one before; its latency counts from that time.

        A transport that stalls makes all requests late that were due meanwhile, and each of them shows it. If it cannot
        keep up, it is given up after OVERTIME: requests that never began have waited until then at least.
        """
        latency, exchange, plain, now = Histogram(), self._exchange, self._plain, monotonic_ns
        sent, count, interval_ns = self._sent, max(int(seconds * rate_per_s), 1), 1e9 / rate_per_s
        begin = now()
        give_up = begin + int(max(count * interval_ns, seconds * 1e9) * OVERTIME)
        begun = 0
        while begun < count:
            intended = begin + int(begun * interval_ns)
            _wait_until(intended)
            if begun % CHECK_EVERY == CHECK_EVERY - 1:
                self.check()
            elif exchange(plain) != plain:
                raise WrongReply("a reply is not its request's bytes")
            else:
                self._sent += 1
            done = now()
            latency.record(done - intended)
            begun += 1
            if done > give_up:
                break
        ended = now()
        for index in range(begun, count):
            latency.record(max(ended - begin - int(index * interval_ns), 0))
        self.check()
        return Measured(latency, self._sent - sent, (ended - begin) / 1e9)


def _wait_until(at_ns: int) -> None:
    left = at_ns - monotonic_ns()
    if left > _SLEEP_NS_MIN:
        time.sleep((left - _WAKES_LATE_NS) / 1e9)
    while monotonic_ns() < at_ns:
        pass
