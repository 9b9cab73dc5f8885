"""What `IoQueue` needs of a native `Queue`, over a `MessageChannel`. A server that is called takes one at a time."""

import struct
from typing import Final

from bus.native import RingFull
from partitions.storage.handshake import build_srb_packet
from partitions.storage.message_channel import MessageChannel
from partitions.storage.protocol import (
    PACKET_BYTES,
    SRB_STATUS_MASK,
    Direction,
    NtStatus,
    Operation,
    SrbStatus,
)
from partitions.storage.requests import SLOT_BITS
from partitions.storage.scsi import ReadBlocks, WriteBlocks
from partitions.storage.transport import Packet

_SLOT_MASK: Final = (1 << SLOT_BITS) - 1
_CDB_LBA_AT: Final = 30  # in the packet: of READ(10) and WRITE(10)
_LBA: Final = struct.Struct(">I")
_OUTCOME: Final = struct.Struct("<I4xI2xBB8xI")  # operation, status, srb_status, scsi_status, transfer_bytes
assert _OUTCOME.size == 28


class MessageQueue:
    """See `partitions.storage._blockio.Queue`. One thread."""

    def __init__(
        self,
        channel: MessageChannel,
        area: memoryview,
        slots: int,
        slot_bytes: int,
        block_bytes: int,
        disk_blocks: int,
        sequence: int,
    ) -> None:
        """`area`: of the slots, one behind the other."""
        self._channel, self._block_bytes, self._disk_blocks = channel, block_bytes, disk_blocks
        self._views = [area[slot * slot_bytes : (slot + 1) * slot_bytes] for slot in range(slots)]
        self._ids = [0] * slots  # of the request in flight; 0: none
        self._bytes = [0] * slots
        self._templates: dict[tuple[bool, int], bytes] = {}
        self._ended: list[int] = []  # well, while `transfer` waited for another
        self._failed: list[tuple[int, bytes]] = []
        self._foreign: list[Packet] = []
        self.in_flight = 0
        self.sequence = sequence

    def submit(self, write: bool, slots: list[int], offsets: list[int], blocks: int, /) -> int:
        started = 0
        for slot, offset in zip(slots, offsets, strict=True):
            try:
                self._start(write, slot, offset, blocks)
            except RingFull:
                break
            started += 1
        return started

    def _start(self, write: bool, slot: int, offset: int, blocks: int) -> None:
        length = blocks * self._block_bytes
        if not 0 <= slot < len(self._ids) or self._ids[slot]:
            raise ValueError(f"slot {slot}: want a free one below {len(self._ids)}")
        if not 0 < length <= len(self._views[slot]):
            raise ValueError(f"{blocks} blocks: more than a slot has")
        lba, rest = divmod(offset, self._block_bytes)
        if rest or not 0 <= lba <= self._disk_blocks - blocks:
            raise ValueError(f"offset {offset}: want whole blocks of {self._block_bytes} inside the disk")
        transaction_id = (self.sequence + 1) << SLOT_BITS | slot
        self._channel.submit_transfer(
            self._packet(write, lba, blocks), self._views[slot][:length], transaction_id
        )
        self.sequence += 1
        self._ids[slot], self._bytes[slot] = transaction_id, length
        self.in_flight += 1

    def _packet(self, write: bool, lba: int, blocks: int) -> bytes:
        if lba + blocks > 0xFFFF_FFFF or blocks > 0xFFFF:
            return self._build(write, lba, blocks)
        if (template := self._templates.get((write, blocks))) is None:
            template = self._templates[write, blocks] = self._build(write, 0, blocks)
        return template[:_CDB_LBA_AT] + _LBA.pack(lba) + template[_CDB_LBA_AT + _LBA.size :]

    def _build(self, write: bool, lba: int, blocks: int) -> bytes:
        length = blocks * self._block_bytes
        if write:
            return build_srb_packet(WriteBlocks(lba, blocks, False), Direction.WRITE, length).build()
        return build_srb_packet(ReadBlocks(lba, blocks), Direction.READ, length).build()

    def reap(self, timeout_ns: int, /) -> list[int]:
        if not self._ended:
            self._take(timeout_ns)
        ended, self._ended = self._ended, []
        return ended

    def transfer(self, write: bool, slot: int, offset: int, blocks: int, timeout_ns: int, /) -> bool:
        self._start(write, slot, offset, blocks)
        while self._ids[slot]:
            if not self._take(timeout_ns) and timeout_ns >= 0:
                return False
        if slot in self._ended:
            self._ended.remove(slot)
            return True
        return False

    def _take(self, timeout_ns: int) -> int:
        packets = self._channel.receive_batch(len(self._ids), timeout_ns)
        for packet in packets:
            _, _, transaction_id, _, payload = packet
            slot = transaction_id & _SLOT_MASK
            if slot >= len(self._ids) or self._ids[slot] != transaction_id:
                self._foreign.append(packet)
                continue
            self._ids[slot] = 0
            self.in_flight -= 1
            if self._went_well(payload, self._bytes[slot]):
                self._ended.append(slot)
            else:
                self._failed.append((slot, payload.ljust(PACKET_BYTES, b"\0")))
        return len(packets)

    @staticmethod
    def _went_well(payload: bytes, length: int) -> bool:
        operation, status, srb_status, scsi_status, moved = _OUTCOME.unpack_from(payload)
        return (operation, status, srb_status & SRB_STATUS_MASK, scsi_status, moved) == (
            Operation.COMPLETE_IO,
            NtStatus.SUCCESS,
            SrbStatus.SUCCESS,
            0,
            length,
        )

    def take_failed(self) -> list[tuple[int, bytes]]:
        failed, self._failed = self._failed, []
        return failed

    def take_foreign(self) -> list[Packet]:
        foreign, self._foreign = self._foreign, []
        return foreign

    @property
    def troubled(self) -> bool:
        return bool(self._failed or self._foreign)
