"""The guest's network adapter: frames out, frames in. One thread.

    with partition.open_net("net0") as nic:
        nic.send([destination + nic.mac + b"\\x08\\x00" + data])
        for frame in nic.receive(limit=64, timeout_s=1): ...

A frame that was sent may be lost, as on any wire: `statistics` says what is known of that. A server that dies and is
started again shows as a pause, and as lost frames.
"""

import struct
import time
from collections.abc import Sequence
from typing import Final

from bus.native import Channel, RingClosed, RingCorrupt, RingFull
from bus.packets import DESCRIPTOR_BYTES, TRAILER_BYTES, PacketType
from partitions.net import nvsp, rndis
from partitions.net.errors import NetClosedError, NetProtocolError, NetTimeoutError
from partitions.net.frame_inbox import RANGE, FrameInbox
from partitions.net.frames import MTU_MAX, Frame, FramePacker
from partitions.net.handshake import AdapterDescription, Begin, Control, Lent, Say, set_up

REAP_PACKETS: Final = 64  # taken in at a time
SET_UP_TIMEOUT_S: Final = 30.0
_NS_PER_S: Final = 1_000_000_000
_TRANSFER_PAGES: Final = int(PacketType.TRANSFER_PAGES)  # a comparison with a member of an enum takes longer
_COMPLETION: Final = int(PacketType.COMPLETION)
_DATA: Final = int(nvsp.Channel.DATA)
_SEND_RNDIS_PACKET: Final = int(nvsp.Type.SEND_RNDIS_PACKET)
_TRANSFER_HEAD: Final = struct.Struct("<HBxI")
_COMPLETION_PACKET_BYTES: Final = DESCRIPTOR_BYTES + nvsp.MESSAGE_BYTES + TRAILER_BYTES


class Nic:
    """One network channel, set up and ready.

    Raises, from every method that talks to the server:
        NetClosedError: the channel is gone.
        NetTimeoutError: a time that was given is over.
    """

    def __init__(
        self,
        channel: Channel,
        receive_memory: memoryview,
        receive_gpadl: int,
        send_memory: memoryview,
        send_gpadl: int,
        *,
        mtu: int = MTU_MAX,
        promiscuous: bool = False,
        set_up_timeout_s: float = SET_UP_TIMEOUT_S,
    ) -> None:
        """Negotiates with the server. NetProtocolError: it is none that we can use.

        Args:
            receive_memory, send_memory: buffers that were handed over as the two GPADLs.
            mtu: the most that is wanted; there may be less.
        """
        self.channel: Final = channel
        self._receive, self._send = receive_memory, send_memory
        self._receive_bytes = len(receive_memory)
        self._next_id = 1
        self._answers: dict[int, bytes | None] = {}  # to NVSP messages, by packet id
        self._control_answers: dict[int, bytes] = {}  # to RNDIS messages, by request id
        self._inbox = FrameInbox(receive_memory)
        self._in_flight: dict[int, int] = {}  # sections, by packet id
        self._free: list[int] = []
        self._section_bytes = 0
        self._message_bytes = nvsp.MESSAGE_BYTES
        self._completion = b""
        self._refused = b""
        self.link_up = False
        self.frames_sent = self.bytes_sent = self.errors = self.malformed = 0
        self.unknown_ids = self.link_changes = 0
        lent = Lent(receive_gpadl, len(receive_memory)), Lent(send_gpadl, len(send_memory))
        self.description: Final = self._set_up(*lent, mtu, promiscuous, set_up_timeout_s)
        self.link_up = self.link_up or self.description.link_up
        self._packer = FramePacker(self.description.frame_bytes_max, self.description.packets_max)

    @property
    def mac(self) -> bytes:
        return self.description.mac

    @property
    def mtu(self) -> int:
        """Bytes of a frame behind its Ethernet header."""
        return self.description.mtu

    @property
    def in_flight(self) -> int:
        """Sections of frames that the server has not completed."""
        return len(self._in_flight)

    # -- frames

    def send(self, frames: Sequence[Frame], timeout_s: float | None = None) -> int:
        """Hand frames over; how many: all, unless `timeout_s` passed while there was no room for the next.

        ValueError: a frame is too short or too long; those in front of it were sent.
        """
        deadline = _deadline(timeout_s)
        done, total = 0, len(frames)
        taken, bad = 0, None
        while done < total and bad is None:
            if not self._free:
                if not self._reap(deadline):
                    break
                continue
            payloads: list[bytes] = []
            sections: list[int] = []
            counts: list[int] = []
            taken = done  # a frame that could not be posted is packed again
            while taken < total and self._free:
                section = self._free[-1]
                start = section * self._section_bytes
                area = self._send[start : start + self.description.section_bytes]
                try:
                    count, used = self._packer.pack(area, frames, taken)
                except ValueError as error:
                    bad = error
                    break
                sections.append(self._free.pop())
                counts.append(count)
                payloads.append(self._announce(_DATA, section, used))
                taken += count
            done += self._post_sections(payloads, sections, counts, frames, done, deadline)
            if done < taken:
                break
        if bad is not None and done == taken:
            raise bad
        return done

    def _announce(self, kind: int, section: int, used: int) -> bytes:
        packed = nvsp.RNDIS_PACKET_FORM.pack(_SEND_RNDIS_PACKET, kind, section, used)
        return packed.ljust(self._message_bytes, b"\0")

    def _post_sections(
        self,
        payloads: list[bytes],
        sections: list[int],
        counts: list[int],
        frames: Sequence[Frame],
        first: int,
        deadline: int | None,
    ) -> int:
        """How many frames went; sections that did not are free again."""
        at = done = 0
        try:
            while at < len(payloads):
                sent = self.channel.send_many(payloads[at:], self._next_id, True)
                for index in range(at, at + sent):
                    self._in_flight[self._next_id] = sections[index]
                    self._next_id += 1
                    done += counts[index]
                at += sent
                if at < len(payloads) and not self._reap(deadline):
                    break
        except (RingClosed, RingCorrupt) as error:
            raise NetClosedError(str(error)) from error
        finally:
            self._free += sections[at:]
        self.frames_sent += done
        self.bytes_sent += sum(map(len, frames[first : first + done]))
        return done

    def receive(self, limit: int = 256, timeout_s: float | None = None) -> list[bytes]:
        """Frames that came in, at most `limit`; waits for the first. Empty: `timeout_s` is over."""
        deadline = _deadline(timeout_s)
        inbox = self._inbox
        while not inbox.frames:
            if not self._reap(deadline):
                return []
        return inbox.fetch(limit)

    def fileno(self) -> int:
        return self.channel.fileno()

    def arm(self) -> bool:
        return self.channel.arm()

    def disarm(self) -> None:
        self.channel.disarm()

    def flush(self, timeout_s: float | None = None) -> None:
        """Until the server has completed all that was sent. NetTimeoutError."""
        deadline = _deadline(timeout_s)
        while self._in_flight:
            if not self._reap(deadline):
                raise NetTimeoutError(f"{self.in_flight} sections are not completed")

    def close(self) -> None:
        """Take no frames any more. The channel itself is its owner's to close."""
        try:
            if self._free:
                self._post_control(rndis.Halt(0).encode(), _deadline(0.1))
        except (NetClosedError, NetTimeoutError):
            pass

    def statistics(self) -> dict[str, int]:
        inbox = self._inbox
        return {
            "frames_sent": self.frames_sent,
            "frames_received": inbox.frames_received,
            "bytes_sent": self.bytes_sent,
            "bytes_received": inbox.bytes_received,
            "errors": self.errors,  # sections that the server refused
            "dropped": inbox.dropped,  # frames that came and were not fetched
            "malformed": self.malformed + inbox.malformed,  # what the server said and made no sense
            "unknown_ids": self.unknown_ids,  # completions of nothing: after a death of the server that is no fault
            "link_changes": self.link_changes,
            "in_flight": self.in_flight,
        }

    # -- what comes in

    def _reap(self, deadline: int | None) -> bool:
        """Take in what is there, or wait for it. False: nothing came in time."""
        try:
            packets = self.channel.receive_batch(REAP_PACKETS, _left(deadline))
            if not packets:
                return False
            answers: list[tuple[bytes, int]] = []
            for kind, _, identity, extra, payload in packets:
                if kind == _COMPLETION:
                    self._completed(identity, payload)
                elif kind == _TRANSFER_PAGES:
                    answers.append((self._take(extra, payload), identity))
                else:
                    self.malformed += 1  # an in-band message of the server's: none that we asked for
            self.channel.release()
            for answer, identity in answers:
                self._complete(answer, identity)
        except (RingClosed, RingCorrupt) as error:
            raise NetClosedError(str(error)) from error
        return True

    def _complete(self, answer: bytes, identity: int) -> None:
        """In the order of the packets: a successor of the server counts on it."""
        while True:
            try:
                return self.channel.send_completion(answer, identity)
            except RingFull:
                self.channel.wait_writable(_COMPLETION_PACKET_BYTES)

    def _completed(self, identity: int, payload: bytes) -> None:
        if (section := self._in_flight.pop(identity, None)) is not None:
            self._free.append(section)
            if payload[4:8] != b"\1\0\0\0":
                self.errors += 1
        elif identity in self._answers:
            self._answers[identity] = payload
        else:
            self.unknown_ids += 1

    def _take(self, extra: bytes, payload: bytes) -> bytes:
        """Copy a packet's messages out of the receive buffer. The answer that gives its pieces back."""
        if len(extra) < 8 or len(payload) < 16 or not self._completion:
            self.malformed += 1
            return self._refused
        set_id, _, count = _TRANSFER_HEAD.unpack_from(extra)
        number, channel = nvsp.RNDIS_PACKET_FORM.unpack_from(payload)[:2]
        end = 8 + 8 * count
        if set_id != nvsp.RECEIVE_BUFFER_ID or end > len(extra) or number != _SEND_RNDIS_PACKET:
            self.malformed += 1
            return self._refused
        if channel == _DATA:
            self._inbox.take(extra[8:end])
        else:
            for size, offset in RANGE.iter_unpack(extra[8:end]):
                if offset + size > self._receive_bytes:
                    self.malformed += 1
                else:
                    self._take_control(bytes(self._receive[offset : offset + size]))
        return self._completion

    def _take_control(self, data: bytes) -> None:
        try:
            message = rndis.decode_message(data, rndis.SERVER_MESSAGES)
        except rndis.MalformedRndis:
            self.malformed += 1
            return
        if isinstance(message, rndis.IndicateStatus):
            if message.status in (rndis.Status.MEDIA_CONNECT, rndis.Status.MEDIA_DISCONNECT):
                up = message.status == rndis.Status.MEDIA_CONNECT
                self.link_changes += up != self.link_up
                self.link_up = up
            return
        request_id = int.from_bytes(data[8:12], "little")
        if request_id in self._control_answers:
            self._control_answers[request_id] = data
        else:
            self.unknown_ids += 1

    # -- set-up

    def _set_up(
        self, receive: Lent, send: Lent, mtu: int, promiscuous: bool, timeout_s: float
    ) -> AdapterDescription:
        deadline = _deadline(timeout_s)
        steps = set_up(receive, send, mtu, promiscuous=promiscuous)
        answer: bytes | None = None
        while True:
            try:
                ask = next(steps) if answer is None else steps.send(answer)
            except StopIteration as stop:
                description: AdapterDescription = stop.value
                return description
            match ask:
                case Say(payload, answered):
                    answer = self._say(payload, answered, deadline)
                case Begin(message_bytes, section_bytes, sections):
                    self._message_bytes, self._section_bytes = message_bytes, section_bytes
                    self._free = list(range(sections - 1, -1, -1))
                    done = nvsp.RndisPacketComplete(nvsp.Status.SUCCESS)
                    self._completion = done.encode(message_bytes)
                    self._refused = nvsp.RndisPacketComplete(nvsp.Status.FAILURE).encode(message_bytes)
                    answer = b""
                case Control(data, request_id):
                    answer = self._ask(data, request_id, deadline)

    def _say(self, payload: bytes, answered: bool, deadline: int | None) -> bytes:
        identity, self._next_id = self._next_id, self._next_id + 1
        if answered:
            self._answers[identity] = None
        try:
            self.channel.send(payload, identity, answered)
            if not answered:
                return b""
            while (found := self._answers[identity]) is None:
                if not self._reap(deadline):
                    raise NetTimeoutError("the server does not answer")
            return found
        except RingFull as error:
            raise NetProtocolError("the server reads nothing") from error
        except (RingClosed, RingCorrupt) as error:
            raise NetClosedError(str(error)) from error
        finally:
            self._answers.pop(identity, None)

    def _ask(self, data: bytes, request_id: int, deadline: int | None) -> bytes:
        self._control_answers[request_id] = b""
        try:
            self._post_control(data, deadline)
            while not (found := self._control_answers[request_id]):
                if self.errors:
                    raise NetProtocolError("the server refuses RNDIS messages")
                if not self._reap(deadline):
                    raise NetTimeoutError("the server does not answer")
            return found
        finally:
            del self._control_answers[request_id]

    def _post_control(self, data: bytes, deadline: int | None) -> None:
        while not self._free:
            if not self._reap(deadline):
                raise NetTimeoutError("no section is free")
        section = self._free.pop()
        start = section * self._section_bytes
        self._send[start : start + len(data)] = data
        identity, self._next_id = self._next_id, self._next_id + 1
        try:
            self.channel.send(self._announce(int(nvsp.Channel.CONTROL), section, len(data)), identity, True)
        except RingFull as error:
            self._free.append(section)
            raise NetTimeoutError("the server reads nothing") from error
        except (RingClosed, RingCorrupt) as error:
            raise NetClosedError(str(error)) from error
        self._in_flight[identity] = section


def _deadline(timeout_s: float | None) -> int | None:
    return None if timeout_s is None else time.monotonic_ns() + int(timeout_s * _NS_PER_S)


def _left(deadline: int | None) -> int:
    """-1: as long as it takes."""
    return -1 if deadline is None else max(deadline - time.monotonic_ns(), 0)
