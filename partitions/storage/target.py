"""The SCSI disk's decisions: a request in, one action out. No I/O, no state.

What the guest wrote is hostile: each number is checked against the disk and against the pages that came with
the request, before any action names it. Whoever runs the action turns a backend's errno into a refusal by
`refuse_errno`.
"""

import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from partitions.storage.identity import (
    UNMAP_BYTES_MAX,
    UNMAP_DESCRIPTORS_MAX,
    DiskIdentity,
    build_capacity_10,
    build_capacity_16,
    build_inquiry,
    build_luns,
    build_mode_sense,
    build_vital_product_data,
)
from partitions.storage.protocol import (
    CDB_BYTES_MAX,
    SRB_AUTOSENSE_VALID,
    Direction,
    ScsiRequest,
    ScsiStatus,
    SrbStatus,
)
from partitions.storage.scsi import (
    Command,
    Inquiry,
    ModeSense,
    ReadBlocks,
    ReadCapacity,
    ReportLuns,
    RequestSense,
    ScsiError,
    SynchronizeCache,
    TestUnitReady,
    Unmap,
    WriteBlocks,
    parse_cdb,
)
from partitions.storage.sense import (
    INTERNAL_FAILURE,
    INVALID_FIELD_IN_CDB,
    INVALID_FIELD_IN_PARAMETERS,
    INVALID_OPCODE,
    LBA_OUT_OF_RANGE,
    LUN_NOT_SUPPORTED,
    NO_SENSE,
    PARAMETER_LIST_LENGTH,
    READ_ERROR,
    SPACE_EXHAUSTED,
    WRITE_ERROR,
    WRITE_PROTECTED,
    Sense,
    build_sense,
)

_UNMAP_HEAD: Final = struct.Struct(">HHI")
_UNMAP_DESCRIPTOR: Final = struct.Struct(">QII")
_DIRECTIONS: Final = frozenset(Direction)
UNMAP_PARAMETER_BYTES: Final = _UNMAP_HEAD.size + _UNMAP_DESCRIPTOR.size  # for one range
UNMAP_PARAMETER_BYTES_MAX: Final = _UNMAP_HEAD.size + UNMAP_DESCRIPTORS_MAX * _UNMAP_DESCRIPTOR.size


@dataclass(frozen=True, slots=True)
class Read:
    """Disk to pages; offset and length in bytes, inside the disk, whole blocks; length may be 0."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Write:
    offset: int
    length: int
    durable: bool = False  # flush before it completes


@dataclass(frozen=True, slots=True)
class Flush:
    pass


@dataclass(frozen=True, slots=True)
class ReadParameters:
    """Copy this many bytes out of the pages, then ask `decide_unmap`."""

    length: int


@dataclass(frozen=True, slots=True)
class Discard:
    ranges: tuple[tuple[int, int], ...]  # (offset, length) in bytes, inside the disk


@dataclass(frozen=True, slots=True)
class Data:
    """An answer without the backend: already cut to the allocation length and to the pages given."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Done:
    pass


@dataclass(frozen=True, slots=True)
class Refuse:
    """Completes with an error; nothing was moved. With sense: CHECK CONDITION; else an SRB status alone."""

    srb_status: SrbStatus
    sense: Sense | None = None


Action = Read | Write | Flush | ReadParameters | Discard | Data | Done | Refuse


@dataclass(slots=True)  # not frozen: one is made for each request, and that takes a third of the time
class Outcome:
    """What goes into the reply's SRB."""

    srb_status: int = SrbStatus.SUCCESS
    scsi_status: int = ScsiStatus.GOOD
    transfer_bytes: int = 0
    sense: bytes = b""


def refuse_outcome(refusal: Refuse, sense_room: int) -> Outcome:
    """The reply for a refusal; the sense is cut to the room that the guest has for it."""
    if refusal.sense is None:
        return Outcome(refusal.srb_status)
    sense = build_sense(refusal.sense)[:sense_room]
    valid = SRB_AUTOSENSE_VALID if sense else 0
    return Outcome(refusal.srb_status | valid, ScsiStatus.CHECK_CONDITION, 0, sense)


def refuse_errno(number: int, *, writing: bool) -> Refuse:
    """What a backend's errno means to the guest: nowhere to put it, write-protected, or a bad medium."""
    if writing and number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Refuse(SrbStatus.ERROR, SPACE_EXHAUSTED)
    if writing and number in (errno.EROFS, errno.EACCES, errno.EPERM, errno.EBADF):
        return Refuse(SrbStatus.ERROR, WRITE_PROTECTED)
    if number == errno.EIO:
        return Refuse(SrbStatus.ERROR, WRITE_ERROR if writing else READ_ERROR)
    return Refuse(SrbStatus.ERROR, INTERNAL_FAILURE)


class ScsiDisk:
    """One disk at path 0, target 0, LUN 0 of its channel."""

    __slots__ = ("identity",)

    def __init__(self, identity: DiskIdentity) -> None:
        self.identity = identity

    def decide(self, request: ScsiRequest, data_bytes: int) -> Action:
        """What to do about one SRB.

        Args:
            request: as the guest sent it.
            data_bytes: how many bytes of guest pages came with it, at most `request.transfer_bytes`.
        """
        if not 0 < request.cdb_length <= CDB_BYTES_MAX or request.direction not in _DIRECTIONS:
            return Refuse(SrbStatus.INVALID_REQUEST)
        present = request.path == request.target == request.lun == 0
        try:
            command = parse_cdb(request.cdb)
            if not present and not isinstance(command, Inquiry | ReportLuns):
                return Refuse(SrbStatus.INVALID_LUN, LUN_NOT_SUPPORTED)
            return self._decide(command, request, data_bytes, present)
        except ScsiError as error:
            return Refuse(SrbStatus.ERROR, error.sense)

    def _decide(self, command: Command, request: ScsiRequest, data_bytes: int, present: bool) -> Action:
        match command:
            case ReadBlocks() | WriteBlocks():
                return self._transfer(command, request, data_bytes)
            case TestUnitReady():
                return Done()
            case SynchronizeCache(lba, blocks):
                self._check_range(lba, blocks)
                return Flush()
            case Unmap(length):
                return self._unmap(length, request, data_bytes)
            case _:
                payload, allocation = self._answer(command, present)
                if request.direction == Direction.WRITE and allocation:
                    return Refuse(SrbStatus.INVALID_REQUEST)
                return Data(payload[: min(allocation, data_bytes)])

    def _check_range(self, lba: int, blocks: int) -> None:
        if lba > self.identity.blocks or blocks > self.identity.blocks - lba:
            raise ScsiError(replace(LBA_OUT_OF_RANGE, information=max(lba, self.identity.blocks)))

    def _transfer(self, command: ReadBlocks | WriteBlocks, request: ScsiRequest, data_bytes: int) -> Action:
        reading = isinstance(command, ReadBlocks)
        self._check_range(command.lba, command.blocks)
        if not reading and self.identity.read_only:
            raise ScsiError(WRITE_PROTECTED)
        length = command.blocks * self.identity.block_bytes
        if length > self.identity.max_transfer_bytes:
            raise ScsiError(INVALID_FIELD_IN_CDB)  # SBC-3, 6.6.4: beyond the maximum transfer length
        if length and request.direction != (Direction.READ if reading else Direction.WRITE):
            return Refuse(SrbStatus.INVALID_REQUEST)
        if length > data_bytes:
            return Refuse(SrbStatus.DATA_OVERRUN)
        offset = command.lba * self.identity.block_bytes
        if reading:
            return Read(offset, length)
        return Write(offset, length, command.force_unit_access)

    def _unmap(self, length: int, request: ScsiRequest, data_bytes: int) -> Action:
        if self.identity.read_only:
            raise ScsiError(WRITE_PROTECTED)
        if not self.identity.can_discard:
            raise ScsiError(INVALID_OPCODE)
        if length == 0:
            return Done()
        if not _UNMAP_HEAD.size <= length <= UNMAP_PARAMETER_BYTES_MAX:
            raise ScsiError(PARAMETER_LIST_LENGTH)
        if request.direction != Direction.WRITE:
            return Refuse(SrbStatus.INVALID_REQUEST)
        if length > data_bytes:
            return Refuse(SrbStatus.DATA_OVERRUN)
        return ReadParameters(length)

    def decide_unmap(self, parameters: bytes) -> Discard | Refuse:
        """The second half of UNMAP, on a private copy of its parameters. One bad range: none is used."""
        _, listed, _ = _UNMAP_HEAD.unpack_from(parameters)
        if listed % _UNMAP_DESCRIPTOR.size or listed > len(parameters) - _UNMAP_HEAD.size:
            return Refuse(SrbStatus.ERROR, PARAMETER_LIST_LENGTH)
        block = self.identity.block_bytes
        ranges: list[tuple[int, int]] = []
        for lba, blocks in _descriptors(parameters, listed):
            try:
                self._check_range(lba, blocks)
            except ScsiError as error:
                return Refuse(SrbStatus.ERROR, error.sense)
            if blocks:
                ranges.append((lba * block, blocks * block))
        if sum(length for _, length in ranges) > UNMAP_BYTES_MAX:
            return Refuse(SrbStatus.ERROR, INVALID_FIELD_IN_PARAMETERS)
        return Discard(tuple(ranges))

    def _answer(self, command: Command, present: bool) -> tuple[bytes, int]:
        """(whole answer, allocation length) of a command that only describes the disk."""
        match command:
            case Inquiry(allocation, None):
                return build_inquiry(present), allocation
            case Inquiry(allocation, page) if page is not None:
                if not present:
                    raise ScsiError(INVALID_FIELD_IN_CDB)
                return build_vital_product_data(self.identity, page), allocation
            case ReportLuns(allocation, select):
                return build_luns(select), allocation
            case ReadCapacity(allocation, True):
                return build_capacity_16(self.identity), allocation
            case ReadCapacity(allocation):
                return build_capacity_10(self.identity), allocation
            case ModeSense():
                return build_mode_sense(self.identity, command), command.allocation_bytes
            case RequestSense(allocation, descriptor):
                if descriptor:
                    raise ScsiError(INVALID_FIELD_IN_CDB)
                return build_sense(NO_SENSE), allocation  # errors travel with their command: none is kept
        raise ScsiError(INVALID_OPCODE)


def _descriptors(parameters: bytes, listed: int) -> Iterator[tuple[int, int]]:
    start = _UNMAP_HEAD.size
    for lba, blocks, _ in _UNMAP_DESCRIPTOR.iter_unpack(parameters[start : start + listed]):
        yield lba, blocks


def build_unmap_parameters(ranges: list[tuple[int, int]]) -> bytes:
    """The client's side: (lba, blocks) pairs, at most UNMAP_DESCRIPTORS_MAX of them."""
    body = b"".join(_UNMAP_DESCRIPTOR.pack(lba, blocks, 0) for lba, blocks in ranges)
    return _UNMAP_HEAD.pack(len(body) + _UNMAP_HEAD.size - 2, len(body), 0) + body
