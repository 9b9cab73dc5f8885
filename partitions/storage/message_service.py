"""The server's end of a storage client that sends, and waits for the reply: one thread, one request at a time.

What a successor has to know stands in the channel's record, memory that outlives this process: how far the session has
come, and which request was BEGUN, or DONE and perhaps not replied to. The client sends such a request again. One that
was DONE is answered and not executed a second time; one that was BEGUN is executed before anybody else's is: what it
did to the disk nobody may see, or overwrite, before (docs/recovery.md). A client that passes on what stands in a ring
may die, too, and its successor sends again what was DONE and replied to: by its numbers that is known.

Plain reads and writes of a client that is set up are C's, from socket to file and back (message_server.h). Everything
else, and whatever a predecessor may have dealt with, C leaves as it received it, and it is answered here.
"""

import socket
import struct
from typing import Final

from bus.seam import Seam, Step
from partitions.calls.endpoint_service import BEGUN, DONE, IDLE
from partitions.faults.faulty_medium import FaultyMedium
from partitions.storage._blockio import DeviceLock, MessageServer
from partitions.storage.backends import BlockBackend
from partitions.storage.executor import MAX_TRANSFER_BYTES, Executor
from partitions.storage.message_wire import (
    DIRECTION_AT,
    HEAD_BYTES,
    MESSAGE_DATA_BYTES_MAX,
    TURN,
    Kind,
    MalformedMessage,
    MessageFlags,
    MessageHead,
    is_not_after,
    pages_header,
    views_of,
)
from partitions.storage.protocol import (
    PACKET_BYTES,
    Direction,
    NtStatus,
    Operation,
    Packet,
    ScsiRequest,
    SrbStatus,
)
from partitions.storage.session import SessionState, load_session, save_session

_PHASE_AT: Final = 8  # as a ring's journal has its mark there: whoever looks need not know which it is
_SESSION_AT: Final = 16
_SESSION_END: Final = 20
_ID_AT: Final = 40
_DONE_AT: Final = 48  # an id, too: the last step of a turn that was done
_PHASE: Final = struct.Struct("<Q")
_ID: Final = struct.Struct("<Q")
assert MESSAGE_DATA_BYTES_MAX >= MAX_TRANSFER_BYTES


class MessageService:
    """One client of one disk, over however many sockets. One thread; statistics may be read from any."""

    def __init__(
        self,
        backend: BlockBackend,
        record: memoryview,
        *,
        serial: str,
        lock: DeviceLock,
        seam: Seam | None = None,
        fast: bool = True,
        medium: FaultyMedium | None = None,
    ) -> None:
        """One client.

        Args:
            lock: the device's.
            record: memory that outlives this process, of RECORD_BYTES at least, 8-aligned.
            seam: passed between execution and reply, where a test may have the process die.
            fast: leave plain reads and writes to C, where the backend has a descriptor.
            medium: the backend with the faults that may be armed on it: while any is, C leaves everything.

        Raises:
            SnapshotError: what `record` holds is nothing that one of us wrote.
        """
        self._medium = FaultyMedium(backend) if medium is None else medium
        self._record, self._serial, self._lock = record, serial, lock
        self._seam = Seam() if seam is None else seam
        self._area = memoryview(bytearray(MESSAGE_DATA_BYTES_MAX))
        self._executor = self._make_executor(load_session(record[_SESSION_AT:_SESSION_END]))
        self._head, self._packet = bytearray(HEAD_BYTES), bytearray(PACKET_BYTES)
        self.refuses_resent = False  # the client was not back in time: others have gone on
        self._served = 0  # messages, here
        self._busy = False  # a request is being executed here
        self.dropped = 0
        self.settled = True  # nothing that the client has begun for others is left to be done
        self._holds_device = False
        self._is_held = False  # by `hold`: also behind the next request
        self._fast: MessageServer | None = None
        if fast and backend.descriptor is not None:
            self._fast = MessageServer(
                backend.descriptor,
                backend.size_bytes,
                backend.block_bytes,
                MAX_TRANSFER_BYTES,
                backend.read_only,
                lock,
                record,
                self._head,
                self._packet,
                self._area,
                self._seam.memory,
                self._medium.armed_word,
            )

    def _make_executor(self, saved: "dict[str, int | str] | None" = None) -> Executor:
        return Executor(self._medium, views_of(self._area), serial=self._serial, saved=saved)

    @property
    def served(self) -> int:
        """Messages. As `busy`, from any thread."""
        return self._served + (self._fast.served if self._fast is not None else 0)

    @property
    def busy(self) -> bool:
        """A request is being executed."""
        return self._busy or (self._fast is not None and self._fast.busy)

    @property
    def phase(self) -> int:
        return int(_PHASE.unpack_from(self._record, _PHASE_AT)[0])

    def _enter(self, phase: int) -> None:
        _PHASE.pack_into(self._record, _PHASE_AT, phase)

    def serve_one(self, sock: socket.socket) -> bool:
        """Receive, execute, reply. False: the client is gone, or has broken the protocol, which ends the socket."""
        into: list[bytearray | memoryview] = [self._head, self._packet, self._area]
        try:
            received, _, flags, _ = sock.recvmsg_into(into)
        except OSError:
            return False
        return self._take(sock, received, truncated=bool(flags & socket.MSG_TRUNC))

    def serve(self, sock: socket.socket) -> bool:
        """As `serve_one`, and perhaps many before it, without the GIL."""
        ready = self._executor.session.state is SessionState.READY
        is_aside = self._is_held or self._holds_device or not self._medium.is_idle
        if self._fast is None or not ready or is_aside:
            return self.serve_one(sock)
        served = self._fast.served
        try:
            left = self._fast.serve(sock.fileno())
        finally:
            self._holds_device = self._fast.holds_device  # until what C began and could not do is done
            if self._fast.served != served:
                self.settled = False
        return left is None or self._take(sock, left[0], truncated=left[1], begun=self._holds_device)

    def _take(self, sock: socket.socket, received: int, *, truncated: bool, begun: bool = False) -> bool:
        """A message is in head, packet and area. `begun`: some of it may be on the disk already, and we hold that."""
        if not received:
            return False
        try:
            if truncated or received < HEAD_BYTES + PACKET_BYTES:
                raise MalformedMessage(f"{received} bytes")
            head = MessageHead.decode(self._head, received)
            if head.kind == Kind.SETTLED:
                self.settled = True
                return True
            if head.kind != Kind.REQUEST or (self._writes() and head.inline_bytes != head.area_bytes):
                raise MalformedMessage(f"kind {head.kind}, {head.inline_bytes} bytes of {head.area_bytes}")
        except MalformedMessage:
            self.dropped += 1
            return False
        self.settled = False
        self._served += 1
        payload = bytes(self._packet[: head.packet_bytes])
        self._busy = True
        try:
            answer, inline = self._execute(head, payload) if begun else self._answer(head, payload)
        finally:
            self._busy = False
        return self._reply(sock, head, answer, inline)

    def _writes(self) -> bool:
        return self._packet[DIRECTION_AT] == Direction.WRITE

    def hold(self) -> None:
        """Keep everyone else from the device until `let_go`."""
        self._is_held = True
        self._enter_device()

    def _enter_device(self) -> None:
        if not self._holds_device:
            self._lock.__enter__()
            self._holds_device = True

    def let_go(self) -> None:
        self._is_held = False
        if self._holds_device:
            self._holds_device = False
            self._lock.__exit__(None, None, None)

    def _answer(self, head: MessageHead, payload: bytes) -> tuple[bytes, int]:
        """The reply's packet, and how many bytes of data it takes along."""
        turn = head.transaction_id & TURN
        if head.flags & MessageFlags.FIRST:
            self._begin_session()
        elif (again := self._answer_again(head, payload)) is not None:
            return again, 0
        if not turn and self._is_in_turn():
            return self._answer_aside(head, payload)
        self._enter(IDLE)  # first: what is left of a predecessor's mark is of another request
        return self._execute(head, payload)

    def _execute(self, head: MessageHead, payload: bytes) -> tuple[bytes, int]:
        _ID.pack_into(self._record, _ID_AT, head.transaction_id)
        self._enter_device()  # and if this raises, until it was executed again
        self._enter(BEGUN)
        answer = self._executor.execute(pages_header(head.area_bytes), payload)
        moved = _moved(payload, answer)
        if moved is not None and head.transaction_id & TURN:
            _ID.pack_into(self._record, _DONE_AT, head.transaction_id)
        self._enter(IDLE if moved is None else DONE)
        if not self._is_held:
            self.let_go()
        self._seam.passing(Step.EXECUTE)
        save_session(self._record[_SESSION_AT:_SESSION_END], self._executor.session)
        reads = payload[DIRECTION_AT] == Direction.READ
        return answer, min(moved or 0, head.area_bytes) if reads else 0

    def _is_in_turn(self) -> bool:
        """Something was begun for a client that stands for others, or for its predecessor."""
        return self.phase == BEGUN and bool(self._last() & TURN)

    def _answer_aside(self, head: MessageHead, payload: bytes) -> tuple[bytes, int]:
        """That client's successor sets itself up, before it comes to what was begun: that stays marked meanwhile."""
        self._enter_device()
        answer = self._executor.execute(pages_header(head.area_bytes), payload)
        if not self._is_held:
            self.let_go()
        save_session(self._record[_SESSION_AT:_SESSION_END], self._executor.session)
        reads = payload[DIRECTION_AT] == Direction.READ
        return answer, min(_moved(payload, answer) or 0, head.area_bytes) if reads else 0

    def _last(self) -> int:
        return int(_ID.unpack_from(self._record, _ID_AT)[0])

    def _begin_session(self) -> None:
        if not self._is_in_turn():
            self._enter(IDLE)
        counters = self._executor.counters
        self._executor = self._make_executor()
        for name in counters.__slots__:
            setattr(self._executor.counters, name, getattr(counters, name))

    def _answer_again(self, head: MessageHead, payload: bytes) -> bytes | None:
        """Of a request that a predecessor had begun. None: it is a new one, or is to be executed (again)."""
        phase = self.phase
        if is_not_after(head.transaction_id, _ID.unpack_from(self._record, _DONE_AT)[0]):
            phase = DONE
        elif phase == IDLE or self._last() != head.transaction_id:
            return None
        packet = Packet.parse(payload)
        if packet.operation != Operation.EXECUTE_SRB:
            self._executor.session.replaying = True  # it may have changed the session already
            return None
        request = ScsiRequest.parse(packet.body)
        if phase == BEGUN and self.refuses_resent:
            self._enter(IDLE)
            body = request.answer(SrbStatus.ABORTED, request.scsi_status, 0, b"")
            return packet.completion(NtStatus.CANCELLED, body)
        if phase == DONE and request.direction != Direction.READ:
            body = request.answer(SrbStatus.SUCCESS, 0, request.transfer_bytes, b"")
            return packet.completion(NtStatus.SUCCESS, body)
        return None

    def _reply(self, sock: socket.socket, head: MessageHead, answer: bytes, inline: int) -> bool:
        reply = MessageHead(head.transaction_id, head.area_bytes, inline, Kind.REPLY, len(answer))
        parts: list[bytes | memoryview] = [reply.encode(), answer.ljust(PACKET_BYTES, b"\0")]
        if inline:
            parts.append(self._area[:inline])
        self._executor.session.replaying = False
        try:
            sock.sendmsg(parts, (), socket.MSG_NOSIGNAL)
        except OSError:
            return False
        if not self._is_in_turn():
            self._enter(IDLE)
        return True

    def statistics(self) -> dict[str, int]:
        fast = {} if self._fast is None else self._fast.statistics()
        return self._executor.counters.statistics(self.dropped, fast)


def _moved(request: bytes, answer: bytes) -> int | None:
    """Bytes of data that were moved; None: an SRB that failed, which is no harm to execute again."""
    packet = Packet.parse(answer)
    if Packet.parse(request).operation != Operation.EXECUTE_SRB:
        return 0
    srb = ScsiRequest.parse(packet.body)
    if packet.status == NtStatus.SUCCESS and srb.srb_status == SrbStatus.SUCCESS:
        return srb.transfer_bytes
    return None
