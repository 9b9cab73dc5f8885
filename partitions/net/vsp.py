"""The network VSP: serves one opened channel from one thread. What is legal when is `server_session`'s business.

Order, always: peek at a batch, forward its frames, publish the completions, release. Before the first frame is
forwarded the record says how many packets are in hand: a successor completes those and forwards nothing of them, so
that a frame may be lost, as on any wire, and never comes twice.
"""

import struct
import threading
from typing import Final

from bus.native import Channel, GpaMap, RingClosed, RingFull
from bus.packets import PacketError, PacketFlags, PacketType, decode_gpa_direct_header
from bus.seam import Seam, Step
from partitions.net import nvsp, rndis
from partitions.net.frame_switch import FrameSwitch
from partitions.net.frames import unpack_frames
from partitions.net.nvsp import MalformedNvsp
from partitions.net.port import Port
from partitions.net.rndis import MalformedRndis
from partitions.net.server_session import RECORD_AT, RECORD_BYTES, Adapter, ServerSession
from partitions.net.shared_buffer import SharedBuffer
from partitions.stack.channel_client import ChannelClient

STOP_POLL_NS: Final = 100_000_000  # how late `stop` may be seen where nobody closes the channel
BATCH_PACKETS: Final = 32  # peeked at a time; with PACKETS_MAX frames in each
RNDIS_BYTES_MAX: Final = 1 << 18  # of one message in a guest's own pages
_ROOM_POLL_S: Final = 0.0005  # while the guest leaves no room for completions
_IN_HAND: Final = struct.Struct("<H")
_IN_HAND_AT: Final = RECORD_AT + RECORD_BYTES
_INBAND: Final = int(PacketType.INBAND)  # a comparison with a member of an enum takes longer
_GPA_DIRECT: Final = int(PacketType.GPA_DIRECT)
_COMPLETION: Final = int(PacketType.COMPLETION)
_COMPLETION_REQUESTED: Final = int(PacketFlags.COMPLETION_REQUESTED)
_SEND_RNDIS_PACKET: Final = int(nvsp.Type.SEND_RNDIS_PACKET)
_DATA: Final = int(nvsp.Channel.DATA)

assert _IN_HAND_AT + _IN_HAND.size <= 64

Packet = tuple[int, int, int, bytes, bytes]


class NetVsp:
    """One opening of one network channel. `serve` runs in one thread; `statistics` may be read from any."""

    def __init__(
        self,
        channel: Channel,
        gpa_map: GpaMap,
        client: ChannelClient,
        switch: FrameSwitch,
        adapter: Adapter,
        record: memoryview,
        seam: Seam | None = None,
    ) -> None:
        self._channel, self._gpa_map, self._client, self._switch = channel, gpa_map, client, switch
        self._record, self._seam = record, Seam() if seam is None else seam
        self.session = ServerSession.load(adapter, record, self._buffer_bytes)
        self._lock = threading.Lock()  # of whoever sends on the channel
        self.port = Port(channel, self.session, self._lock, client.ring)
        self._send_buffer: SharedBuffer | None = None
        self._joined_with = 0  # the packet filter that the switch knows of; 0: it does not know us
        self._link_news: bool | None = None
        self.waits_for_guest = False
        self.requests = self.errors = self.dropped = self.frames_in = 0
        self._complete(self.session.message_bytes)
        if self.session.receive is not None:  # ids of ours are to be none of a predecessor's
            self.session.generation = (self.session.generation + 1) & 0xFFFF
            self.session.save(record)
        self._adopt_buffers()

    def _complete(self, message_bytes: int) -> None:
        self._completions = {
            status: nvsp.RndisPacketComplete(status).encode(message_bytes) for status in nvsp.Status
        }

    def _buffer_bytes(self, gpadl: int) -> int:
        return self._client.buffer(gpadl).byte_count

    def _views(self, gpadl: int) -> SharedBuffer:
        where = self._client.buffer(gpadl)
        return SharedBuffer(self._gpa_map.views(where.byte_offset, where.byte_count, where.pfns, True))

    def _adopt_buffers(self) -> None:
        session = self.session
        if session.receive is not None:
            self.port.attach(self._views(session.receive.gpadl), taken_over=True)
        if session.send is not None:
            self._send_buffer = self._views(session.send.gpadl)

    # -- running

    def replay(self) -> None:
        """What a predecessor had in hand is completed, and none of its frames sent again. Raises RingCorrupt."""
        (in_hand,) = _IN_HAND.unpack_from(self._record, _IN_HAND_AT)
        if in_hand and (packets := self._channel.receive_batch(min(in_hand, BATCH_PACKETS), 0)):
            self._serve(packets, threading.Event(), forwards=False)
        self._put_in_hand(0)
        self._follow_switch()  # before another port's server begins to forward

    def serve(self, stop: threading.Event) -> None:
        """Until `stop` is set or the channel is closed. Raises RingError: the guest broke the ring."""
        try:
            while not stop.is_set():
                self._follow_switch()
                self.port.flush()
                if packets := self._channel.receive_batch(BATCH_PACKETS, STOP_POLL_NS):
                    self._serve(packets, stop)
        except RingClosed:
            pass
        finally:
            self._switch.leave(self.port)
            self._joined_with = 0
            self.port.close()

    def _follow_switch(self) -> None:
        """Be a port while the guest takes frames; tell it what became of the link."""
        if self._link_news is not None:
            up, self._link_news = self._link_news, None
            status = self.session.link(up=up)
            if self.session.phase is self.session.phase.READY:
                self.port.say(status)
        wanted = self.port.packet_filter
        if wanted != self._joined_with:
            self._joined_with = wanted
            (self._switch.join if wanted else self._switch.leave)(self.port)

    def link_changed(self, *, up: bool) -> None:
        """From any thread; the guest hears of it within STOP_POLL_NS."""
        self._link_news = up

    def _put_in_hand(self, packets: int) -> None:
        _IN_HAND.pack_into(self._record, _IN_HAND_AT, packets)

    def _serve(self, packets: list[Packet], stop: threading.Event, *, forwards: bool = True) -> None:
        self._put_in_hand(len(packets))
        self._seam.passing(Step.TAKE)
        frames: list[memoryview] = []
        answers: list[tuple[bytes, int]] = []
        unpack = nvsp.RNDIS_PACKET_FORM.unpack_from
        for kind, flags, identity, extra, payload in packets:
            if kind == _COMPLETION:
                self.port.complete(identity)
                continue
            self.requests += 1
            answer: bytes | None = None
            if len(payload) >= 16 and (fields := unpack(payload))[0] == _SEND_RNDIS_PACKET:
                if fields[1] != _DATA:
                    self._forward(frames, forwards)
                answer = self._completions[self._rndis(kind, extra, fields, frames)]
            else:
                self._forward(frames, forwards)
                answer = self._nvsp(kind, payload)
            if flags & _COMPLETION_REQUESTED:
                answers.append((answer or b"", identity))
        self._forward(frames, forwards)
        self._seam.passing(Step.EXECUTE)
        for answer, identity in answers:
            if not self._publish(answer, identity, stop):
                return  # not released: a successor completes it
        self._channel.release()
        self._client.ring()
        self._put_in_hand(0)

    def _forward(self, frames: list[memoryview], forwards: bool) -> None:
        if frames and forwards:
            self._follow_switch()
            self.frames_in += len(frames)
            self._switch.forward(self.port, frames)
        frames.clear()

    def _publish(self, answer: bytes, identity: int, stop: threading.Event) -> bool:
        """False: told to stop while the guest left no room."""
        try:
            while True:
                try:
                    with self._lock:
                        self._channel.send_completion(answer, identity)
                    return True
                except RingFull:  # others who send to it must not wait for it with us
                    self._client.ring()
                    self.waits_for_guest = True
                    if stop.wait(_ROOM_POLL_S):
                        return False
        finally:
            self.waits_for_guest = False

    # -- what the guest says

    def _nvsp(self, kind: int, payload: bytes) -> bytes | None:
        """The answer's bytes. What is malformed, or not legal now, is answered by a failure where it can be."""
        try:
            if kind != _INBAND:
                raise MalformedNvsp(f"packet type {kind}")
            message = nvsp.decode_message(payload, nvsp.GUEST_MESSAGES)
            before = self.session.receive, self.session.send
            reply = self.session.hear(message, self._buffer_bytes)
        except MalformedNvsp as error:
            self.errors += 1
            return self._completions[error.status]
        except (LookupError, ValueError):
            self.errors += 1
            return self._completions[nvsp.Status.FAILURE]
        try:
            self._follow_buffers(*before)
        except (LookupError, ValueError):  # pages that are not the guest's, in spite of all
            self.errors += 1
            self.session.receive, self.session.send = before
            return self._completions[nvsp.Status.FAILURE]
        self.session.save(self._record)
        self._complete(self.session.message_bytes)
        return None if reply is None else reply.encode(self.session.message_bytes)

    def _follow_buffers(self, receive: object, send: object) -> None:
        session = self.session
        if session.receive is not receive:
            self.port.detach()
            if session.receive is not None:
                self.port.attach(self._views(session.receive.gpadl), taken_over=False)
        if session.send is not send:
            self._send_buffer = None if session.send is None else self._views(session.send.gpadl)

    def _rndis(
        self, kind: int, extra: bytes, fields: tuple[int, int, int, int], frames: list[memoryview]
    ) -> nvsp.Status:
        """What a SEND_RNDIS_PACKET announces; its frames are appended, up to the first that is none."""
        _, channel, section, section_bytes = fields
        try:
            data = self._look(kind, extra, section, section_bytes)
            if channel == _DATA:
                if not self.session.takes_frames:
                    raise MalformedRndis("frames before the adapter is set up")
                unpack_frames(data, self.session.frame_bytes_max, frames)
                return nvsp.Status.SUCCESS
            if channel != nvsp.Channel.CONTROL:
                raise MalformedRndis(f"channel type {channel}")
            self._control(bytes(data[: rndis.INFO_BYTES_MAX + 64]))
        except (MalformedRndis, PacketError, LookupError, ValueError):
            self.errors += 1
            return nvsp.Status.INVALID_RNDIS
        return nvsp.Status.SUCCESS

    def _look(self, kind: int, extra: bytes, section: int, section_bytes: int) -> memoryview:
        """The RNDIS bytes: in a section of the send buffer, or in pages of the packet's own."""
        if kind == _INBAND:
            shape, buffer = self.session.send, self._send_buffer
            if shape is None or buffer is None:
                raise MalformedRndis("there is no send buffer")
            if section >= shape.pieces or section_bytes > shape.piece_bytes:
                raise MalformedRndis(f"{section_bytes} bytes in section {section} of {shape.pieces}")
            return buffer.look(section * shape.piece_bytes, section_bytes)
        if kind != _GPA_DIRECT or section != nvsp.NO_SECTION:
            raise MalformedRndis(f"packet type {kind}, section {section}")
        ranges = decode_gpa_direct_header(extra)
        if len(ranges) > nvsp.MDL_CHAIN_MAX or sum(one.byte_count for one in ranges) > RNDIS_BYTES_MAX:
            raise MalformedRndis(f"{len(ranges)} ranges of pages")
        views = [
            view
            for one in ranges
            for view in self._gpa_map.views(one.byte_offset, one.byte_count, one.pfns, False)
        ]
        return views[0] if len(views) == 1 else memoryview(b"".join(views))

    def _control(self, data: bytes) -> None:
        message = rndis.decode_message(data, rndis.GUEST_MESSAGES)
        reply = self.session.control(message)
        self.session.save(self._record)
        self._follow_switch()  # first: who has the answer can be sent to
        if reply is not None:
            self.port.say(reply)

    def statistics(self) -> dict[str, int]:
        return {
            "requests": self.requests,
            "errors": self.errors,
            "dropped": self.port.dropped,
            "frames_in": self.frames_in,
            "frames_out": self.port.frames,
        }
