"""SCSI command descriptor blocks of a disk: one dataclass a command, `parse_cdb` and `build_cdb`.

Sources: SPC-4 (INQUIRY, MODE SENSE, REPORT LUNS, REQUEST SENSE, TEST UNIT READY), SBC-3 (the rest). All
integers in a CDB are big-endian. A bit that asks for a feature this disk lacks is refused with INVALID FIELD
IN CDB: to ignore a request for protection information would be to lie about it.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from partitions.storage.sense import INVALID_FIELD_IN_CDB, INVALID_OPCODE, Sense


class Opcode(IntEnum):
    TEST_UNIT_READY = 0x00
    REQUEST_SENSE = 0x03
    READ_6 = 0x08
    WRITE_6 = 0x0A
    INQUIRY = 0x12
    MODE_SENSE_6 = 0x1A
    READ_CAPACITY_10 = 0x25
    READ_10 = 0x28
    WRITE_10 = 0x2A
    SYNCHRONIZE_CACHE_10 = 0x35
    UNMAP = 0x42
    MODE_SENSE_10 = 0x5A
    READ_16 = 0x88
    WRITE_16 = 0x8A
    SYNCHRONIZE_CACHE_16 = 0x91
    SERVICE_ACTION_IN_16 = 0x9E
    REPORT_LUNS = 0xA0


READ_CAPACITY_16_ACTION: Final = 0x10  # service action of SERVICE_ACTION_IN_16
_CONTROL_NACA: Final = 0x04  # ask for auto contingent allegiance: not offered
_FUA: Final = 0x08
_DPO: Final = 0x10  # a caching hint, accepted and without effect

# bytes of a CDB by the top three bits of its opcode; 0: not a fixed length (SPC-4, 4.2.5.1)
_GROUP_BYTES: Final = (6, 10, 10, 0, 16, 12, 0, 0)

_CDB6: Final = struct.Struct(">BBBBBB")
_LBA10: Final = struct.Struct(">BBIBHB")
_LBA16: Final = struct.Struct(">BBQIBB")
_LIST10: Final = struct.Struct(">BBBBBBBHB")  # MODE SENSE(10) and UNMAP: a u16 length at 7
_LUNS12: Final = struct.Struct(">BBBBBBIBB")
_INQUIRY6: Final = struct.Struct(">BBBHB")
assert (_CDB6.size, _LBA10.size, _LBA16.size) == (6, 10, 16)
assert (_LIST10.size, _LUNS12.size, _INQUIRY6.size) == (10, 12, 6)


class ScsiError(Exception):
    """The command can't be carried out; `sense` says why, in the wire's words. Nothing was changed."""

    def __init__(self, sense: Sense) -> None:
        super().__init__(str(sense))
        self.sense = sense


@dataclass(frozen=True, slots=True)
class TestUnitReady:
    __test__ = False  # not a test, whatever pytest makes of the name


@dataclass(frozen=True, slots=True)
class RequestSense:
    allocation_bytes: int
    descriptor_format: bool = False


@dataclass(frozen=True, slots=True)
class Inquiry:
    allocation_bytes: int
    page: int | None = None  # vital product data page; None: the standard data


@dataclass(frozen=True, slots=True)
class ModeSense:
    page: int
    allocation_bytes: int
    subpage: int = 0
    page_control: int = 0  # 0 current, 1 changeable, 2 default, 3 saved
    no_block_descriptor: bool = False
    long: bool = False  # the 10-byte form


@dataclass(frozen=True, slots=True)
class ReadCapacity:
    allocation_bytes: int = 8
    long: bool = False  # the 16-byte form


@dataclass(frozen=True, slots=True)
class ReadBlocks:
    lba: int
    blocks: int
    force_unit_access: bool = False


@dataclass(frozen=True, slots=True)
class WriteBlocks:
    lba: int
    blocks: int
    force_unit_access: bool = False  # on the medium before it completes


@dataclass(frozen=True, slots=True)
class SynchronizeCache:
    """blocks == 0: from lba to the end."""

    lba: int = 0
    blocks: int = 0


@dataclass(frozen=True, slots=True)
class Unmap:
    parameter_bytes: int


@dataclass(frozen=True, slots=True)
class ReportLuns:
    allocation_bytes: int
    select: int = 0


Command = (
    TestUnitReady
    | RequestSense
    | Inquiry
    | ModeSense
    | ReadCapacity
    | ReadBlocks
    | WriteBlocks
    | SynchronizeCache
    | Unmap
    | ReportLuns
)


def _require(condition: bool) -> None:
    if not condition:
        raise ScsiError(INVALID_FIELD_IN_CDB)


def _test_unit_ready(cdb: bytes) -> Command:
    return TestUnitReady()


def _request_sense(cdb: bytes) -> Command:
    return RequestSense(allocation_bytes=cdb[4], descriptor_format=bool(cdb[1] & 1))


def _inquiry(cdb: bytes) -> Command:
    _, flags, page, allocation, _ = _INQUIRY6.unpack(cdb)
    _require(flags & 0xFE == 0)  # bit 1 was CMDDT, obsolete
    if flags & 1:
        return Inquiry(allocation, page)
    _require(page == 0)
    return Inquiry(allocation)


def _mode_sense_6(cdb: bytes) -> Command:
    _, flags, page, subpage, allocation, _ = _CDB6.unpack(cdb)
    return ModeSense(page & 0x3F, allocation, subpage, page >> 6, bool(flags & 0x08))


def _mode_sense_10(cdb: bytes) -> Command:
    _, flags, page, subpage, _, _, _, allocation, _ = _LIST10.unpack(cdb)
    return ModeSense(page & 0x3F, allocation, subpage, page >> 6, bool(flags & 0x08), long=True)


def _read_capacity_10(cdb: bytes) -> Command:
    _require(cdb[2:6] == b"\0\0\0\0" and cdb[8] & 1 == 0)  # partial medium indicator: obsolete
    return ReadCapacity()


def _service_action_in_16(cdb: bytes) -> Command:
    _, action, lba, allocation, flags, _ = _LBA16.unpack(cdb)
    _require(action & 0x1F == READ_CAPACITY_16_ACTION and lba == 0 and flags & 1 == 0)
    return ReadCapacity(allocation, long=True)


def _transfer_6(cdb: bytes) -> Command:
    lba = int.from_bytes(cdb[1:4], "big") & 0x1FFFFF
    blocks = cdb[4] or 256  # SBC-3, 5.9: 0 means 256 in this form only
    return ReadBlocks(lba, blocks) if cdb[0] == Opcode.READ_6 else WriteBlocks(lba, blocks)


def _transfer(cdb: bytes, lba: int, blocks: int, read: bool) -> Command:
    _require(cdb[1] & ~(_FUA | _DPO) == 0)  # protection information and the obsolete bits
    force = bool(cdb[1] & _FUA)
    return ReadBlocks(lba, blocks, force) if read else WriteBlocks(lba, blocks, force)


def _transfer_10(cdb: bytes) -> Command:
    opcode, _, lba, _, blocks, _ = _LBA10.unpack(cdb)
    return _transfer(cdb, lba, blocks, opcode == Opcode.READ_10)


def _transfer_16(cdb: bytes) -> Command:
    opcode, _, lba, blocks, _, _ = _LBA16.unpack(cdb)
    return _transfer(cdb, lba, blocks, opcode == Opcode.READ_16)


def _synchronize_cache_10(cdb: bytes) -> Command:
    _, _, lba, _, blocks, _ = _LBA10.unpack(cdb)  # IMMED may be answered late: we always answer when done
    return SynchronizeCache(lba, blocks)


def _synchronize_cache_16(cdb: bytes) -> Command:
    _, _, lba, blocks, _, _ = _LBA16.unpack(cdb)
    return SynchronizeCache(lba, blocks)


def _unmap(cdb: bytes) -> Command:
    _, flags, _, _, _, _, _, length, _ = _LIST10.unpack(cdb)
    _require(flags & 1 == 0)  # ANCHOR: needs anchored provisioning
    return Unmap(length)


def _report_luns(cdb: bytes) -> Command:
    _, _, select, _, _, _, allocation, _, _ = _LUNS12.unpack(cdb)
    _require(select <= 2)
    return ReportLuns(allocation, select)


_PARSERS: Final[Mapping[int, Callable[[bytes], Command]]] = {
    Opcode.TEST_UNIT_READY: _test_unit_ready,
    Opcode.REQUEST_SENSE: _request_sense,
    Opcode.READ_6: _transfer_6,
    Opcode.WRITE_6: _transfer_6,
    Opcode.INQUIRY: _inquiry,
    Opcode.MODE_SENSE_6: _mode_sense_6,
    Opcode.READ_CAPACITY_10: _read_capacity_10,
    Opcode.READ_10: _transfer_10,
    Opcode.WRITE_10: _transfer_10,
    Opcode.SYNCHRONIZE_CACHE_10: _synchronize_cache_10,
    Opcode.UNMAP: _unmap,
    Opcode.MODE_SENSE_10: _mode_sense_10,
    Opcode.READ_16: _transfer_16,
    Opcode.WRITE_16: _transfer_16,
    Opcode.SYNCHRONIZE_CACHE_16: _synchronize_cache_16,
    Opcode.SERVICE_ACTION_IN_16: _service_action_in_16,
    Opcode.REPORT_LUNS: _report_luns,
}


def cdb_bytes(opcode: int) -> int:
    """Length of a CDB with this opcode; 0 where the standard fixes none."""
    return _GROUP_BYTES[opcode >> 5]


def parse_cdb(cdb: bytes) -> Command:
    """Raises ScsiError: INVALID COMMAND OPERATION CODE, or INVALID FIELD IN CDB (also for one cut short)."""
    if not cdb:
        raise ScsiError(INVALID_FIELD_IN_CDB)
    parser = _PARSERS.get(cdb[0])
    if parser is None:
        raise ScsiError(INVALID_OPCODE)
    size = cdb_bytes(cdb[0])
    whole = cdb[:size]
    if len(whole) < size or whole[-1] & _CONTROL_NACA:
        raise ScsiError(INVALID_FIELD_IN_CDB)
    return parser(whole)


def _build_transfer(command: ReadBlocks | WriteBlocks) -> bytes:
    read = isinstance(command, ReadBlocks)
    flags = _FUA if command.force_unit_access else 0
    if command.lba <= 0xFFFFFFFF and command.blocks <= 0xFFFF:
        return _LBA10.pack(
            Opcode.READ_10 if read else Opcode.WRITE_10, flags, command.lba, 0, command.blocks, 0
        )
    return _LBA16.pack(Opcode.READ_16 if read else Opcode.WRITE_16, flags, command.lba, command.blocks, 0, 0)


def _build_mode_sense(command: ModeSense) -> bytes:
    flags = 0x08 if command.no_block_descriptor else 0
    page = command.page_control << 6 | command.page
    if command.long:
        return _LIST10.pack(
            Opcode.MODE_SENSE_10, flags, page, command.subpage, 0, 0, 0, command.allocation_bytes, 0
        )
    return _CDB6.pack(Opcode.MODE_SENSE_6, flags, page, command.subpage, command.allocation_bytes, 0)


def build_cdb(command: Command) -> bytes:
    """The shortest form of at least 10 bytes that holds the numbers; `struct.error` where none does."""
    match command:
        case ReadBlocks() | WriteBlocks():
            return _build_transfer(command)
        case SynchronizeCache(lba, blocks):
            if lba <= 0xFFFFFFFF and blocks <= 0xFFFF:
                return _LBA10.pack(Opcode.SYNCHRONIZE_CACHE_10, 0, lba, 0, blocks, 0)
            return _LBA16.pack(Opcode.SYNCHRONIZE_CACHE_16, 0, lba, blocks, 0, 0)
        case Unmap(length):
            return _LIST10.pack(Opcode.UNMAP, 0, 0, 0, 0, 0, 0, length, 0)
        case TestUnitReady():
            return _CDB6.pack(Opcode.TEST_UNIT_READY, 0, 0, 0, 0, 0)
        case RequestSense(allocation, descriptor):
            return _CDB6.pack(Opcode.REQUEST_SENSE, int(descriptor), 0, 0, allocation, 0)
        case Inquiry(allocation, None):
            return _INQUIRY6.pack(Opcode.INQUIRY, 0, 0, allocation, 0)
        case Inquiry(allocation, page):
            return _INQUIRY6.pack(Opcode.INQUIRY, 1, page, allocation, 0)
        case ModeSense():
            return _build_mode_sense(command)
        case ReadCapacity(allocation, True):
            return _LBA16.pack(Opcode.SERVICE_ACTION_IN_16, READ_CAPACITY_16_ACTION, 0, allocation, 0, 0)
        case ReadCapacity():
            return _LBA10.pack(Opcode.READ_CAPACITY_10, 0, 0, 0, 0, 0)
        case ReportLuns(allocation, select):
            return _LUNS12.pack(Opcode.REPORT_LUNS, 0, select, 0, 0, 0, allocation, 0, 0)
