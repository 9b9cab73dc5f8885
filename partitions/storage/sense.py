"""SCSI sense data: what a device says about a command that it did not carry out.

Source: SPC-4, 4.5 (fixed format) and the ASC/ASCQ list of annex D.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

SENSE_BYTES: Final = 18  # fixed format, no vendor bytes
_FIXED_CURRENT: Final = 0x70
_INFORMATION_VALID: Final = 0x80  # top bit of byte 0: the information field holds an LBA
_FIXED: Final = struct.Struct(">BBBIBIBBBBH")
assert _FIXED.size == SENSE_BYTES
_ADDITIONAL_BYTES: Final = SENSE_BYTES - 8  # those behind byte 7


class SenseKey(IntEnum):
    NO_SENSE = 0x0
    RECOVERED_ERROR = 0x1
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    ABORTED_COMMAND = 0xB


@dataclass(frozen=True, slots=True)
class Sense:
    """Key, additional code and qualifier; `information` is the first bad LBA where one is known."""

    key: int
    asc: int
    ascq: int
    information: int | None = None

    def __str__(self) -> str:
        name = SenseKey(self.key).name if self.key in set(SenseKey) else f"key {self.key:#x}"
        return f"{name} {self.asc:02X}/{self.ascq:02X}"


NO_SENSE: Final = Sense(SenseKey.NO_SENSE, 0x00, 0x00)
INVALID_OPCODE: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x20, 0x00)
LBA_OUT_OF_RANGE: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x21, 0x00)
INVALID_FIELD_IN_CDB: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x24, 0x00)
LUN_NOT_SUPPORTED: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x25, 0x00)
PARAMETER_LIST_LENGTH: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x1A, 0x00)
INVALID_FIELD_IN_PARAMETERS: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x26, 0x00)
SAVING_NOT_SUPPORTED: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x39, 0x00)
WRITE_PROTECTED: Final = Sense(SenseKey.DATA_PROTECT, 0x27, 0x00)
SPACE_EXHAUSTED: Final = Sense(SenseKey.DATA_PROTECT, 0x27, 0x07)
READ_ERROR: Final = Sense(SenseKey.MEDIUM_ERROR, 0x11, 0x00)
WRITE_ERROR: Final = Sense(SenseKey.MEDIUM_ERROR, 0x0C, 0x00)
INTERNAL_FAILURE: Final = Sense(SenseKey.HARDWARE_ERROR, 0x44, 0x00)


def build_sense(sense: Sense) -> bytes:
    """18 bytes of fixed-format sense data for a current error."""
    known = sense.information is not None and sense.information <= 0xFFFFFFFF
    return _FIXED.pack(
        _FIXED_CURRENT | (_INFORMATION_VALID if known else 0),
        0,
        sense.key,
        sense.information if known and sense.information is not None else 0,
        _ADDITIONAL_BYTES,
        0,
        sense.asc,
        sense.ascq,
        0,
        0,
        0,
    )


def parse_sense(data: bytes) -> Sense | None:
    """Fixed-format sense data as a peer sent it, perhaps cut short; None where it holds no key.

    A missing ASC or ASCQ counts as 0: SPC-4 lets an initiator ask for fewer bytes than there are.
    """
    if len(data) < 3 or data[0] & 0x7E != _FIXED_CURRENT:
        return None
    whole = data[:SENSE_BYTES].ljust(SENSE_BYTES, b"\0")
    first, _, key, information, _, _, asc, ascq, _, _, _ = _FIXED.unpack(whole)
    return Sense(key & 0x0F, asc, ascq, information if first & _INFORMATION_VALID else None)
