"""A guest without a channel: pages, and the packets that a storage client would send, for tests."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from partitions.storage.backends import BackendError, BlockBackend, MemoryBackend
from partitions.storage.executor import Executor
from partitions.storage.handshake import Answer, DiskDescription, set_up
from partitions.storage.protocol import (
    SRB_AUTOSENSE_VALID,
    Direction,
    NtStatus,
    Operation,
    Packet,
    ScsiRequest,
    ScsiStatus,
    SrbStatus,
)
from partitions.storage.scsi import (
    Command,
    build_cdb,
)
from partitions.storage.sense import (
    Sense,
    parse_sense,
)

PAGE = 4096
BLOCKS = 128
SIZE = BLOCKS * 512
TRANSFER_MAX = 32 * 1024
FIRST_GPFN = 0x100
GUEST_PAGES = 16


class FailingBackend(MemoryBackend):
    """A memory disk whose operations fail with `number` while that is not 0."""

    def __init__(self) -> None:
        super().__init__(SIZE)
        self.number = 0

    def _check(self) -> None:
        if self.number:
            raise BackendError(self.number, "as told")

    def readv(self, views: Sequence[memoryview], offset: int) -> None:
        self._check()
        super().readv(views, offset)

    def writev(self, views: Sequence[memoryview], offset: int) -> None:
        self._check()
        super().writev(views, offset)

    def flush(self) -> None:
        self._check()

    def discard(self, offset: int, length: int) -> None:
        self._check()
        super().discard(offset, length)


@dataclass
class Guest:
    """Sixteen pages of memory, and the packets that a client would send."""

    backend: BlockBackend = field(default_factory=FailingBackend)
    memory: bytearray = field(default_factory=lambda: bytearray(GUEST_PAGES * PAGE))

    def __post_init__(self) -> None:
        self.executor = Executor(self.backend, self.views, serial="test", max_transfer_bytes=TRANSFER_MAX)
        self.description = self.connect()

    def views(self, byte_offset: int, byte_count: int, pfns: bytes, write: bool) -> list[memoryview]:
        views, whole = [], memoryview(self.memory)
        for (pfn,) in struct.iter_unpack("<Q", pfns):
            if not FIRST_GPFN <= pfn < FIRST_GPFN + GUEST_PAGES:
                raise LookupError(f"page {pfn:#x}")
            start = (pfn - FIRST_GPFN) * PAGE + byte_offset
            length = min(byte_count, PAGE - byte_offset)
            views.append(whole[start : start + length])
            byte_count, byte_offset = byte_count - length, 0
        assert byte_count == 0
        return views

    def connect(self) -> DiskDescription:
        steps = set_up()
        ask = next(steps)
        while True:
            extra = gpa_range(0, ask.data_bytes, [FIRST_GPFN]) if ask.data_bytes else b""
            reply = Packet.parse(self.executor.execute(extra, ask.packet.build()))
            try:
                ask = steps.send(Answer(reply, bytes(self.memory[: ask.data_bytes])))
            except StopIteration as stop:
                description: DiskDescription = stop.value
                return description

    def send(
        self, request: ScsiRequest, extra: bytes, packet: Packet | None = None
    ) -> tuple[int, ScsiRequest]:
        packet = packet or Packet(Operation.EXECUTE_SRB, 1, 0, request.build())
        answer = self.executor.execute(extra, packet.build())
        assert len(answer) == packet.size_bytes
        reply = Packet.parse(answer)
        assert reply.operation == Operation.COMPLETE_IO
        return reply.status, ScsiRequest.parse(reply.body)

    def run(
        self,
        command: Command | bytes,
        direction: Direction = Direction.NONE,
        length: int = 0,
        *,
        start: int = 0,
        transfer: int | None = None,
        **srb: int,
    ) -> ScsiRequest:
        """One command with `length` bytes of pages at guest address `start`; NTSTATUS must be success."""
        cdb = command if isinstance(command, bytes) else build_cdb(command)
        request = ScsiRequest(
            cdb_length=srb.pop("cdb_length", len(cdb)),
            direction=direction,
            transfer_bytes=length if transfer is None else transfer,
            cdb_or_sense=cdb,
            **srb,
        )
        pfns = list(range(FIRST_GPFN + start // PAGE, FIRST_GPFN + -(-(start + length) // PAGE)))
        status, answer = self.send(request, gpa_range(start % PAGE, length, pfns) if length else b"")
        assert status == NtStatus.SUCCESS
        return answer


def gpa_range(byte_offset: int, byte_count: int, pfns: list[int]) -> bytes:
    return struct.pack(f"<IIII{len(pfns)}Q", 0, 1, byte_count, byte_offset, *pfns)


def sense_of(answer: ScsiRequest) -> tuple[int, int, int]:
    assert answer.srb_status & SRB_AUTOSENSE_VALID
    assert answer.scsi_status == ScsiStatus.CHECK_CONDITION
    assert answer.transfer_bytes == 0
    sense = parse_sense(answer.sense)
    assert sense is not None
    return sense.key, sense.asc, sense.ascq


def code(sense: Sense) -> tuple[int, int, int]:
    return sense.key, sense.asc, sense.ascq


def succeeded(answer: ScsiRequest) -> bool:
    return (answer.srb_status, answer.scsi_status) == (SrbStatus.SUCCESS, ScsiStatus.GOOD)
