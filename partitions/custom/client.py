"""The guest's end of a custom device: the same calls over rings and over messages. One thread."""

import errno
from collections.abc import Sequence
from typing import Final, Protocol

from bus.memory import PAGE_BYTES, PFN_BYTES
from bus.native import Channel, RingClosed, RingError, RingFull
from bus.packets import PacketType
from partitions.custom.wire import (
    REQUEST_BYTES_MAX,
    CustomClosedError,
    CustomError,
    decode_error,
    decode_length,
    encode_length,
)

REPLY_BYTES_MIN: Final = 4096  # so much room there always is for a reply
IN_BAND_BYTES_MAX: Final = 16 << 10  # what `exchange` sends through the ring itself
_RING_SHARE: Final = 4  # and at most this part of it
_MARK_SHIFT: Final = 11  # of a completion's flags: see `Channel.exact_lengths`
_BATCH: Final = 64
_PFNS_KEPT: Final = 256  # page lists, of so many lengths and places
_COMPLETION: Final = int(PacketType.COMPLETION)


class Custom(Protocol):
    """What `Partition.open_custom` gives. CustomClosedError: the device is gone for good."""

    def exchange(self, request: bytes, reply_bytes_max: int = 0) -> bytes:
        """Send, and wait for the reply.

        Args:
            request: at most 256 KiB.
            reply_bytes_max: there is room for as much as the request has, for 4 KiB, or for this, whichever is most.

        Raises:
            CustomError: the device's refusal; EMSGSIZE: its reply has no room.
            ValueError: too many bytes; nothing was sent.
        """

    def exchange_in_band(self, request: bytes) -> bytes:
        """As `exchange`, through the rings whatever its size. ValueError: larger than the ring can ever take."""

    def exchange_pages(self, request: bytes) -> bytes:
        """As `exchange`, in pages of our own that the device reads and writes, whatever its size."""

    def exchange_batch(
        self, requests: Sequence[bytes], reply_bytes_max: int = 0
    ) -> list[bytes | CustomError]:
        """As many exchanges at once as there is room for; the replies in the order of the requests."""


def room_for(request: bytes, reply_bytes_max: int) -> int:
    """ValueError: too many bytes either way."""
    if len(request) > REQUEST_BYTES_MAX or reply_bytes_max > REQUEST_BYTES_MAX:
        raise ValueError(
            f"{len(request)} bytes, {reply_bytes_max} for the reply: at most {REQUEST_BYTES_MAX} can be exchanged"
        )
    return max(len(request), reply_bytes_max, REPLY_BYTES_MIN)


def check_room(reply: bytes, room_bytes: int) -> bytes:
    if len(reply) > room_bytes:
        raise CustomError(
            errno.EMSGSIZE, f"the reply has {len(reply)} bytes, and there is room for {room_bytes}"
        )
    return reply


def plain(flags: int, payload: bytes) -> bytes:
    """The payload of a completion. CustomError: it says so."""
    if flags >> _MARK_SHIFT:
        raise decode_error(payload)
    return payload


class RingCustom:
    """Over a channel."""

    def __init__(self, channel: Channel, ring_bytes: int, data: memoryview, data_gpfn: int) -> None:
        """`data`: pages of ours that the server was lent; the first is page `data_gpfn`."""
        channel.exact_lengths()
        self.channel: Final = channel
        self._channel, self._data, self._gpfn = channel, data, data_gpfn
        self._call = channel.exchange
        self._in_band_max = min(IN_BAND_BYTES_MAX, ring_bytes // _RING_SHARE)
        self._next_id = 0
        self._pfns: dict[tuple[int, int], bytes] = {}

    def exchange(self, request: bytes, reply_bytes_max: int = 0) -> bytes:
        room = room_for(request, reply_bytes_max)
        if room <= self._in_band_max:
            return check_room(self.exchange_in_band(request), room)
        return self._exchange_pages(request, room)

    def exchange_in_band(self, request: bytes) -> bytes:
        self._next_id = number = self._next_id + 1
        try:
            return self._call(request, number)
        except RingClosed as error:
            raise CustomClosedError(str(error)) from error
        except RingFull:
            raise
        except RingError:  # not the plain answer: it is still there
            try:
                return self._receive(number)
            except RingClosed as error:
                raise CustomClosedError(str(error)) from error

    def _receive(self, number: int) -> bytes:
        """The payload of the completion of that id. CustomError: it says so. RingClosed."""
        while True:
            packet = self._channel.receive()
            assert packet is not None  # no timeout was given
            kind, flags, identity, payload = packet
            if kind == _COMPLETION and identity == number:
                break  # any other is an answer that came twice
        self._channel.release()
        return plain(flags, payload) if flags else payload

    def exchange_pages(self, request: bytes) -> bytes:
        return self._exchange_pages(request, len(request) or 1)

    def _exchange_pages(self, request: bytes, room: int) -> bytes:
        self._next_id = number = self._next_id + 1
        try:
            self._send_pages(request, 0, room, number)
            payload = self._receive(number)
        except RingClosed as error:
            raise CustomClosedError(str(error)) from error
        return bytes(self._data[: decode_length(payload, room) if payload else room])

    def _send_pages(self, request: bytes, offset: int, room: int, number: int) -> None:
        length = len(request)
        if offset + room > len(self._data):
            raise ValueError(f"{room} bytes, and the channel has {len(self._data) - offset} for data")
        self._data[offset : offset + length] = request
        if (pfns := self._pfns.get((offset, room))) is None:
            pfns = self._page_numbers(offset, room)
        said = b"" if length == room else encode_length(length)
        self._channel.send_gpa_direct(said, 0, room, pfns, number)

    def _taken(self, offset: int, payload: bytes, room: int) -> bytes:
        return bytes(self._data[offset : offset + decode_length(payload, room)])

    def _page_numbers(self, offset: int, length: int) -> bytes:
        first, count = self._gpfn + offset // PAGE_BYTES, -(-length // PAGE_BYTES)
        pfns = b"".join(number.to_bytes(PFN_BYTES, "little") for number in range(first, first + count))
        if len(self._pfns) >= _PFNS_KEPT:
            self._pfns.clear()
        self._pfns[offset, length] = pfns
        return pfns

    def exchange_batch(
        self, requests: Sequence[bytes], reply_bytes_max: int = 0
    ) -> list[bytes | CustomError]:
        return _Batch(self, requests, reply_bytes_max).run()


class _Batch:
    """One call of `exchange_batch`: what is on its way, and where each of them has its pages."""

    def __init__(self, custom: RingCustom, requests: Sequence[bytes], reply_bytes_max: int) -> None:
        self._custom, self._channel = custom, custom._channel
        self._requests = requests
        self._rooms = [room_for(request, reply_bytes_max) for request in requests]
        self._first_id = custom._next_id + 1
        custom._next_id += len(requests)
        self._replies: list[bytes | CustomError | None] = [None] * len(requests)
        self._offsets: dict[int, int] = {}  # of those in pages that are on their way, by index
        self._free_at = 0  # where the next one's pages begin

    def run(self) -> list[bytes | CustomError]:
        sent = received = 0
        try:
            while received < len(self._requests):
                while sent < len(self._requests) and self._send(sent):
                    sent += 1
                for kind, flags, number, _, payload in self._channel.receive_batch(_BATCH):
                    index = number - self._first_id
                    if kind == _COMPLETION and 0 <= index < sent and self._replies[index] is None:
                        self._replies[index] = self._decode(index, flags, payload)
                        received += 1
                self._channel.release()
        except RingClosed as error:
            raise CustomClosedError(str(error)) from error
        return [reply for reply in self._replies if reply is not None]

    def _send(self, index: int) -> bool:
        """False: there is no room now, and some request is on its way."""
        request, room, number = self._requests[index], self._rooms[index], self._first_id + index
        try:
            if room <= self._custom._in_band_max:
                self._channel.send(request, number, True)
                return True
            if not self._offsets:
                self._free_at = 0
            elif self._free_at + room > len(self._custom._data):
                return False
            self._custom._send_pages(request, self._free_at, room, number)
        except RingFull:
            return False
        self._offsets[index] = self._free_at
        self._free_at += -(-room // PAGE_BYTES) * PAGE_BYTES
        return True

    def _decode(self, index: int, flags: int, payload: bytes) -> bytes | CustomError:
        offset, room = self._offsets.pop(index, None), self._rooms[index]
        try:
            reply = plain(flags, payload)
            return check_room(reply if offset is None else self._custom._taken(offset, reply, room), room)
        except CustomError as error:
            return error
