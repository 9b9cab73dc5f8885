"""A guest's stream sockets: connect to the host's programs and to other guests, and listen.

with partition.connect_stream("host", 5000) as stream:
    stream.send_all(b"hello")
    stream.send_eof()
    answer = stream.receive_some(4096)

with partition.listen_stream(5000) as listener:
    while stream := listener.accept(timeout_s=60): ...
"""

import contextlib
import threading
import time
from collections import deque
from itertools import count
from typing import Final
from uuid import UUID

from bus.byte_pipe import decode_piece, encode_piece, ring_bytes_of
from bus.channel_messages import OfferChannel
from bus.guids import vsock_service
from bus.native import RingClosed, RingCorrupt
from bus.packets import PacketError, PacketType
from bus.protocol_errors import LocalProtocolError
from partitions.streams.wire import (
    END,
    LINGER_S,
    PIECE_BYTES_MAX,
    is_for_listener,
    is_stream,
    service_of,
    silo_of,
)
from partitions.vsc.channel import GuestChannel
from partitions.vsc.conversation import VmbusError
from partitions.vsc.vmbus import VmbusGuest

HOST: Final = "host"
RING_BYTES: Final = 128 << 10
BACKLOG: Final = 16  # connections that nobody has accepted yet; further ones are not opened
CONNECT_S: Final = 10.0
READ_PACKETS: Final = 16
SEND_BYTES_MAX: Final = 64 << 10  # made packets of at a time
FIRST_LOCAL_PORT: Final = 1 << 30
_NS_PER_S: Final = 1_000_000_000
_RING_SLACK_BYTES: Final = 16  # so much of a ring a packet can never have
_LOOK_S: Final = 0.5
_INBAND: Final = int(PacketType.INBAND)


class StreamError(Exception):
    """Base of what a stream raises."""


class StreamRefused(StreamError):
    """Nobody listens there, or takes no more."""


class StreamReset(StreamError):
    """The other side went away in the middle, or the root did. What was not received is lost."""


class StreamTimeout(StreamError):
    """A time that was given is over."""


class Stream:
    """A connection. One thread may send while another receives.

    Raises, from what waits: StreamReset; StreamTimeout.
    """

    def __init__(self, opened: GuestChannel, ring_bytes: int = RING_BYTES) -> None:
        self._opened, self._channel = opened, opened.channel
        self.channel: Final = opened.channel
        self._ring_bytes = ring_bytes
        self._piece_bytes = min(PIECE_BYTES_MAX, ring_bytes // 2)  # two fit into a ring
        self._next_id = 1
        self._received = bytearray()
        self._at_end = self._sent_end = self._is_closed = False
        self.bytes_sent = self.bytes_received = 0

    # -- out

    def send_some(self, data: bytes, timeout_s: float | None = None) -> int:
        """How many bytes were taken: at least one, of any."""
        return self._send(data, _deadline(timeout_s), whole=False)

    def send_all(self, data: bytes, timeout_s: float | None = None) -> None:
        """StreamTimeout: `bytes_sent` says how far it came."""
        self._send(data, _deadline(timeout_s), whole=True)

    def _send(self, data: bytes, deadline: int | None, *, whole: bool) -> int:
        if self._sent_end:
            raise StreamError("the end of this direction was sent")
        taken = 0
        for start in range(0, len(data), SEND_BYTES_MAX):
            part = data[start : start + SEND_BYTES_MAX]
            pieces = [part[at : at + self._piece_bytes] for at in range(0, len(part), self._piece_bytes)]
            packets = [encode_piece(piece) for piece in pieces]
            while packets:
                if not (count := self._put(packets)):
                    if taken and not whole:
                        return taken
                    self._wait_for_room(ring_bytes_of(len(pieces[0])), deadline)
                    continue
                sent = sum(map(len, pieces[:count]))
                taken += sent
                self.bytes_sent += sent
                del packets[:count], pieces[:count]
        return taken

    def send_eof(self, timeout_s: float | None = None) -> None:
        """No more is sent. What the other side sends can still be received."""
        if self._sent_end:
            return
        deadline = _deadline(timeout_s)
        while not self._put([END]):
            self._wait_for_room(ring_bytes_of(0), deadline)
        self._sent_end = True

    def _put(self, packets: list[bytes]) -> int:
        """How many of them the ring has room for."""
        try:
            count = self._channel.send_many(packets, self._next_id)
        except (RingClosed, RingCorrupt) as error:
            raise StreamReset(str(error)) from error
        self._next_id += count
        return count

    def _wait_for_room(self, ring_bytes: int, deadline: int | None) -> None:
        try:
            if not self._channel.wait_writable(ring_bytes, _left(deadline)):
                raise StreamTimeout("the other side takes nothing in")
        except (RingClosed, RingCorrupt) as error:
            raise StreamReset(str(error)) from error

    # -- in

    def receive_some(self, limit: int = 65_536, timeout_s: float | None = None) -> bytes:
        """At least one byte and at most `limit`; b"": the other side has sent its last."""
        deadline = _deadline(timeout_s)
        while not self._received and not self._at_end:
            try:
                packets = self._channel.receive_batch(READ_PACKETS, _left(deadline))
            except (RingClosed, RingCorrupt) as error:
                raise StreamReset(str(error)) from error
            if not packets:
                raise StreamTimeout("nothing came")
            self._take(packets)
        if len(self._received) <= limit:
            data, self._received = bytes(self._received), bytearray()
        else:
            data = bytes(memoryview(self._received)[:limit])
            del self._received[: len(data)]
        self.bytes_received += len(data)
        return data

    def _take(self, packets: list[tuple[int, int, int, bytes, bytes]]) -> None:
        try:
            for kind, _, _, _, payload in packets:
                if kind != _INBAND or self._at_end:
                    raise PacketError(f"packet type {kind}, or bytes behind the end")
                data = decode_piece(payload)
                self._received += data
                self._at_end = not data
        except PacketError as error:
            self._received.clear()  # a reset is for good: whoever reads on finds neither bytes nor an end
            self._at_end = False
            self.abort()
            raise StreamReset(f"what no stream says: {error}") from error
        with contextlib.suppress(RingClosed):  # taken away meanwhile: what came, came
            self._channel.release()

    # -- the end

    def close(self) -> None:
        """Both directions. What was sent is handed over first, as far as it is taken within LINGER_S."""
        if self._is_closed:
            return
        with contextlib.suppress(StreamError, RingClosed, RingCorrupt):
            self.send_eof(LINGER_S)
            self._channel.wait_writable(self._ring_bytes - _RING_SLACK_BYTES, int(LINGER_S * _NS_PER_S))
        self.abort()

    def abort(self) -> None:
        """At once; the other side sees a reset unless our end was sent."""
        if not self._is_closed:
            self._is_closed = True
            self._opened.close()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


class Listener:
    """Of one service. Closing it closes what nobody has accepted."""

    def __init__(self, streams: "Streams", service: UUID, backlog: int) -> None:
        self._streams, self.service, self.backlog = streams, service, backlog
        self.waiting: deque[Stream] = deque()

    def accept(self, timeout_s: float | None = None) -> Stream:
        """The next connection. StreamTimeout; StreamError: it is closed, or the bus is lost."""
        return self._streams.accept(self, timeout_s)

    def close(self) -> None:
        self._streams.forget(self)
        while self.waiting:
            self.waiting.popleft().abort()

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Streams:
    """Of one guest, on its bus. A thread opens what is offered to its listeners, as soon as there is one."""

    def __init__(self, vmbus: VmbusGuest) -> None:
        self._vmbus = vmbus
        self._ports = count(FIRST_LOCAL_PORT + time.monotonic_ns() % FIRST_LOCAL_PORT)
        self._listeners: dict[UUID, Listener] = {}  # with the bus's condition held
        self._seen: set[int] = set()  # relids of offers that were dealt with
        self._thread: threading.Thread | None = None

    def connect(self, target: str, service: int | UUID, timeout_s: float = CONNECT_S) -> Stream:
        """To a program of the host ("host") or a partition. StreamRefused, StreamTimeout."""
        wanted, endpoint = service_of(service), vsock_service(next(self._ports) & 0xFFFF_FFFF)
        silo = None if target == HOST else silo_of(target)
        vmbus = self._vmbus
        try:
            vmbus._do(lambda: vmbus._client.connect_stream(endpoint, wanted, silo))
        except LocalProtocolError as error:
            raise StreamRefused(str(error)) from error
        offer: list[OfferChannel] = []

        def answered() -> bool:
            found = (one for one in vmbus._client.offers if is_stream(one) and one.instance == endpoint)
            offer[:] = list(found)[:1]
            return bool(offer) or endpoint in vmbus.refused_streams

        with vmbus._changed:
            try:
                vmbus._wait_until(answered, "a stream", timeout_s)
            except VmbusError as error:
                raise StreamTimeout(f"{target}, service {service}: {error}") from error
            finally:
                vmbus.refused_streams.discard(endpoint)
        if not offer:
            raise StreamRefused(f"nobody takes connections at service {service} of {target}")
        return self._open(offer[0])

    def _open(self, offer: OfferChannel) -> Stream:
        try:
            opened = self._vmbus.open_channel(offer, ring_bytes=RING_BYTES, data_bytes=0)
        except VmbusError as error:
            raise StreamRefused(str(error)) from error
        return Stream(opened)

    def listen(self, service: int | UUID, backlog: int = BACKLOG) -> Listener:
        """StreamError: this guest listens there already."""
        listener = Listener(self, service_of(service), backlog)
        with self._vmbus._changed:
            if listener.service in self._listeners:
                raise StreamError(f"service {service} is listened to already")
            self._listeners[listener.service] = listener
        if self._thread is None:
            self._thread = threading.Thread(target=self._open_offers, name="streams", daemon=True)
            self._thread.start()
        return listener

    def forget(self, listener: Listener) -> None:
        with self._vmbus._changed:
            self._listeners.pop(listener.service, None)
            self._vmbus._changed.notify_all()

    def accept(self, listener: Listener, timeout_s: float | None) -> Stream:
        vmbus = self._vmbus
        with vmbus._changed:

            def ready() -> bool:
                is_closed = self._listeners.get(listener.service) is not listener
                return bool(listener.waiting) or is_closed or vmbus._lost is not None

            if not vmbus._changed.wait_for(ready, timeout_s):
                raise StreamTimeout("nobody has connected")
            if not listener.waiting:
                raise StreamError("the listener is closed, or the bus lost")
            return listener.waiting.popleft()

    # -- the thread

    def _open_offers(self) -> None:
        vmbus = self._vmbus
        while True:
            with vmbus._changed:
                vmbus._changed.wait_for(lambda: self._next() is not None or vmbus._lost is not None, _LOOK_S)
                if vmbus._lost is not None:
                    return
                if (found := self._next()) is None:
                    self._seen &= {offer.relid for offer in vmbus._client.offers}
                    continue
                offer, listener = found
                self._seen.add(offer.relid)
            try:
                stream = self._open(offer)
            except (StreamRefused, OSError):  # taken away again, or no pages are left
                continue
            with vmbus._changed:
                if self._listeners.get(listener.service) is listener:
                    listener.waiting.append(stream)
                    vmbus._changed.notify_all()
                    continue
            stream.abort()

    def _next(self) -> tuple[OfferChannel, Listener] | None:
        """With the condition held."""
        for offer in self._vmbus._client.offers:
            if offer.relid in self._seen or not is_for_listener(offer):
                continue
            listener = self._listeners.get(offer.interface)
            if listener is not None and len(listener.waiting) < listener.backlog:
                return offer, listener
        return None


def _deadline(timeout_s: float | None) -> int | None:
    return None if timeout_s is None else time.monotonic_ns() + int(timeout_s * _NS_PER_S)


def _left(deadline: int | None) -> int:
    """-1: as long as it takes."""
    return -1 if deadline is None else max(deadline - time.monotonic_ns(), 0)
