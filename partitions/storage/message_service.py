"""The server's end of a storage client that sends, and waits for the reply: one thread, one request at a time.

What a successor has to know stands in the channel's record, memory that outlives this process: how far the session has
come, and which request was BEGUN, or DONE and perhaps not replied to. The client sends such a request again. One that
was DONE is answered and not executed a second time; one that was BEGUN is executed before anybody else's is: what it
did to the disk nobody may see, or overwrite, before (docs/recovery.md).
"""

import contextlib
import socket
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from partitions.storage._blockio import DeviceLock
from partitions.storage.backends import BlockBackend
from partitions.storage.executor import MAX_TRANSFER_BYTES, Executor
from partitions.storage.message_wire import (
    DIRECTION_AT,
    HEAD_BYTES,
    MESSAGE_DATA_BYTES_MAX,
    SOCKET_BUFFER_BYTES,
    Kind,
    MalformedMessage,
    MessageFlags,
    MessageHead,
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
from partitions.storage.session import load_session, save_session

IDLE, BEGUN, DONE = range(3)
_PHASE_AT: Final = 8  # as a ring's journal has its mark there: whoever looks need not know which it is
_SESSION_AT: Final = 16
_SESSION_END: Final = 20
_ID_AT: Final = 40
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
        passing: Callable[[], None] = lambda: None,
    ) -> None:
        """`passing`: called between execution and reply, where a test may have the process die.

        Raises SnapshotError: what `record` holds is nothing that one of us wrote.
        """
        self._backend, self._record, self._serial, self._lock = backend, record, serial, lock
        self._passing = passing
        self._area = memoryview(bytearray(MESSAGE_DATA_BYTES_MAX))
        self._executor = self._make_executor(load_session(record[_SESSION_AT:_SESSION_END]))
        self._head, self._packet = bytearray(HEAD_BYTES), bytearray(PACKET_BYTES)
        self.refuses_resent = False  # the client was not back in time: others have gone on
        self.served = 0  # messages
        self.busy = False  # a request is being executed
        self.dropped = 0
        self.settled = True  # nothing that the client has begun for others is left to be done
        self._holds_device = False
        self._is_held = False  # by `hold`: also behind the next request

    def _make_executor(self, saved: "dict[str, int | str] | None" = None) -> Executor:
        return Executor(self._backend, views_of(self._area), serial=self._serial, saved=saved)

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
        if not received:
            return False
        try:
            if flags & socket.MSG_TRUNC or received < HEAD_BYTES + PACKET_BYTES:
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
        self.served += 1
        payload = bytes(self._packet[: head.packet_bytes])
        self.busy = True
        try:
            answer, inline = self._answer(head, payload)
        finally:
            self.busy = False
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
        if head.flags & MessageFlags.FIRST:
            self._begin_session()
        elif (again := self._answer_again(head, payload)) is not None:
            return again, 0
        self._enter(IDLE)  # first: what is left of a predecessor's mark is of another request
        _ID.pack_into(self._record, _ID_AT, head.transaction_id)
        self._enter_device()  # and if this raises, until it was executed again
        self._enter(BEGUN)
        answer = self._executor.execute(pages_header(head.area_bytes), payload)
        moved = _moved(payload, answer)
        self._enter(IDLE if moved is None else DONE)
        if not self._is_held:
            self.let_go()
        self._passing()
        save_session(self._record[_SESSION_AT:_SESSION_END], self._executor.session)
        reads = payload[DIRECTION_AT] == Direction.READ
        return answer, min(moved or 0, head.area_bytes) if reads else 0

    def _begin_session(self) -> None:
        self._enter(IDLE)
        counters = self._executor.counters
        self._executor = self._make_executor()
        for name in counters.__slots__:
            setattr(self._executor.counters, name, getattr(counters, name))

    def _answer_again(self, head: MessageHead, payload: bytes) -> bytes | None:
        """Of a request that a predecessor had begun. None: it is a new one, or is to be executed (again)."""
        phase = self.phase
        if phase == IDLE or _ID.unpack_from(self._record, _ID_AT)[0] != head.transaction_id:
            return None
        packet = Packet.parse(payload)
        if packet.operation != Operation.EXECUTE_SRB:
            self._executor.session.replaying = True  # it may have changed the session already
            return None
        request = ScsiRequest.parse(packet.body)
        if phase == BEGUN and self.refuses_resent:
            self._enter(IDLE)
            answer = replace(
                request, srb_status=SrbStatus.ABORTED, transfer_bytes=0, cdb_or_sense=b"", sense_length=0
            )
            return packet.reply(NtStatus.CANCELLED, answer.build()).build()
        if phase == DONE and request.direction != Direction.READ:
            answer = replace(
                request, srb_status=SrbStatus.SUCCESS, scsi_status=0, cdb_or_sense=b"", sense_length=0
            )
            return packet.reply(NtStatus.SUCCESS, answer.build()).build()
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
        self._enter(IDLE)
        return True

    def statistics(self) -> dict[str, int]:
        counters = self._executor.counters
        return {name: getattr(counters, name) for name in counters.__slots__} | {"dropped": self.dropped}


def adopt_endpoint(fd: int) -> socket.socket:
    """A claimed end, with room for whole transfers."""
    sock = socket.socket(fileno=fd)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    return sock


def _moved(request: bytes, answer: bytes) -> int | None:
    """Bytes of data that were moved; None: an SRB that failed, which is no harm to execute again."""
    packet = Packet.parse(answer)
    if Packet.parse(request).operation != Operation.EXECUTE_SRB:
        return 0
    srb = ScsiRequest.parse(packet.body)
    if packet.status == NtStatus.SUCCESS and srb.srb_status == SrbStatus.SUCCESS:
        return srb.transfer_bytes
    return None
