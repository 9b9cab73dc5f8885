"""The echo VSP: serves one opened channel from one thread.

An in-band request is answered by a completion with the same bytes. One with pages (GPA-direct) carries nothing in band:
its bytes are read out of the pages, the answer is written back there, and the completion is empty. What a checked
request is answered is the business of `runtime.measure.exchanges`, as for every transport of the ladder.

An answer depends on nothing but the request and how many came before it on this channel: a successor that answers one
again does no harm.
"""

import threading
from typing import Final

from bus.native import Channel, GpaMap, RingClosed, RingFull
from bus.packets import (
    DESCRIPTOR_BYTES,
    TRAILER_BYTES,
    PacketError,
    PacketFlags,
    PacketType,
    decode_gpa_direct_header,
)
from runtime.measure.exchanges import PAYLOAD_BYTES_MAX, make_answer

ECHO_KEY: Final = 0  # both ends are ours; the key is for transports that one does not trust
_INBAND: Final = int(PacketType.INBAND)  # a comparison with a member of an enum takes longer than the ring
_GPA_DIRECT: Final = int(PacketType.GPA_DIRECT)
_COMPLETION_REQUESTED: Final = int(PacketFlags.COMPLETION_REQUESTED)
STOP_POLL_NS: Final = 100_000_000  # how late `stop` may be seen where nobody closes the channel


class EchoVsp:
    """One opening of one channel. `serve` runs in one thread; `statistics` may be read from any."""

    def __init__(self, channel: Channel, gpa_map: GpaMap) -> None:
        self._channel, self._gpa_map = channel, gpa_map
        self._answer = make_answer(ECHO_KEY)
        self._header, self._views = b"", list[memoryview]()  # of the last request with pages
        self.requests = self.dropped = 0
        self.waits_for_guest = False

    def replay(self) -> None:
        """Nothing was begun that could be half done: `serve` finds in the ring what was not answered."""

    def serve(self, stop: threading.Event) -> None:
        """Until `stop` is set or the channel is closed. Raises RingCorrupt: the guest broke the ring."""
        reply_and_receive, answer = self._channel.reply_and_receive, self._answer
        reply: bytes | None = None
        identity = 0
        try:
            while not stop.is_set():
                try:
                    packet = reply_and_receive(reply, identity, STOP_POLL_NS)
                except RingFull:
                    assert reply is not None
                    self._wait_for_room(len(reply))
                    continue
                reply = None
                if packet is None:
                    continue
                kind, flags, identity, data = packet
                self.requests += 1
                if kind == _INBAND and data:
                    reply = answer(data)
                else:
                    reply = self._other(kind, data)
                if not flags & _COMPLETION_REQUESTED:
                    reply = None
        except RingClosed:
            return

    def _other(self, kind: int, data: bytes) -> bytes:
        """A request that is not in band. What is none, or names pages that we were not lent, gets no bytes back."""
        try:
            if kind != _GPA_DIRECT:
                raise PacketError(f"packet type {kind}")
            self._answer_in_pages(data)
        except (PacketError, LookupError, ValueError):
            self.dropped += 1
        return b""

    def _answer_in_pages(self, header: bytes) -> None:
        if header != self._header:
            (where,) = decode_gpa_direct_header(header)
            if where.byte_count > PAYLOAD_BYTES_MAX:
                raise ValueError(f"{where.byte_count} bytes")
            pages = b"".join(number.to_bytes(8, "little") for number in where.page_numbers)
            self._views = self._gpa_map.views(where.byte_offset, where.byte_count, pages, True)
            self._header = header  # what we were lent stays ours while the channel is open
        request = b"".join(self._views)  # a copy: what is answered is what was there at one moment
        if not request:
            raise ValueError("no bytes")
        reply, at = self._answer(request), 0
        for view in self._views:
            view[:] = reply[at : at + len(view)]
            at += len(view)

    def _wait_for_room(self, payload_bytes: int) -> None:
        """Until the guest takes answers in."""
        self.waits_for_guest = True
        try:
            self._channel.wait_writable(DESCRIPTOR_BYTES + payload_bytes + TRAILER_BYTES, STOP_POLL_NS)
        finally:
            self.waits_for_guest = False

    def statistics(self) -> dict[str, int]:
        return {"requests": self.requests, "dropped": self.dropped}
