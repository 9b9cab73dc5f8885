"""A partition's saved state: what its next process needs, in memory that the hypervisor keeps while none runs.

    page 0        magic u64 | format of the first save u32 | reserved u32; at byte 64 a seam (bus.seam)
    pages 1..32   channel records, 64 bytes each, by number: commit word u64 | service word u64 | reserved
    then          two halves, written in turn: sequence u64 | length u32 | CRC-32C u32 | [format, value] (msgpack)
    then          the board with the faults that are armed (partitions.faults.fault_board)

The next root may write another format (partitions.stack.saved_state_formats). Format 1 did not say it with the value.

A save goes to the half that is not the newest, and counts once its header stands; a torn one has a wrong CRC, and the
other half is still there. Only this partition's own processes write here; a reader trusts nothing but the checksums,
because the writer may have died at any byte.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]

from bus.native import crc32c
from bus.seam import SEAM_BYTES, Seam, Step
from partitions.faults.fault_board import BOARD_BYTES, FaultBoard
from partitions.stack.saved_state_formats import FORMAT, UnknownFormat, migrate

PAGE_BYTES: Final = 4096
RECORD_BYTES: Final = 64
RECORDS: Final = 2048
HALF_BYTES: Final = 512 * 1024  # enough for some hundred channels

_SEAM_AT: Final = 64  # a cache line of its own
_RECORDS_AT: Final = PAGE_BYTES
_HALVES_AT: Final = _RECORDS_AT + RECORDS * RECORD_BYTES
_FAULTS_AT: Final = _HALVES_AT + 2 * HALF_BYTES
SLOT_PAGES: Final = (_FAULTS_AT + BOARD_BYTES) // PAGE_BYTES
_MAGIC: Final = 0x56_5450_4154_5344_50  # "PDSTAPTV"
_HEAD: Final = struct.Struct("<QII")
_HALF: Final = struct.Struct("<QII")
VALUE_BYTES_MAX: Final = HALF_BYTES - _HALF.size

assert _HALVES_AT % PAGE_BYTES == 0


class SavedStateError(Exception):
    """There is no state that can be taken over: none was saved, both halves are torn, or the format is unknown."""


class StateTooLarge(ValueError):
    """More than VALUE_BYTES_MAX; nothing was saved, and what was saved before still counts."""


class SavedState:
    """The slot's bytes, as writer and as reader. One process at a time."""

    def __init__(self, memory: memoryview, make_seam: Callable[[memoryview], Seam] = Seam) -> None:
        if len(memory) != SLOT_PAGES * PAGE_BYTES:
            raise ValueError(f"{len(memory)} bytes; a saved-state slot has {SLOT_PAGES * PAGE_BYTES}")
        self._memory = memory
        self._sequence = 0
        self.seam: Final = make_seam(memory[_SEAM_AT : _SEAM_AT + SEAM_BYTES])
        self.faults: Final = FaultBoard(memory[_FAULTS_AT : _FAULTS_AT + BOARD_BYTES])

    def format(self) -> None:
        """Make an empty one of fresh, zeroed pages."""
        _HEAD.pack_into(self._memory, 0, _MAGIC, FORMAT, 0)

    def record(self, number: int) -> memoryview:
        """The 64 bytes of one channel record. Its words are written whole by aligned stores of C."""
        if not 0 <= number < RECORDS:
            raise ValueError(f"channel record {number}")
        start = _RECORDS_AT + number * RECORD_BYTES
        return self._memory[start : start + RECORD_BYTES]

    def save(self, value: Mapping[str, Any]) -> None:
        """Replace what was saved before. Raises StateTooLarge."""
        data = msgpack.packb([FORMAT, value], use_bin_type=True)
        if len(data) > VALUE_BYTES_MAX:
            raise StateTooLarge(f"{len(data)} bytes of state; at most {VALUE_BYTES_MAX}")
        sequence = self._sequence + 1
        at = _HALVES_AT + sequence % 2 * HALF_BYTES
        _HALF.pack_into(self._memory, at, 0, 0, 0)  # from here on this half does not count
        self._memory[at + _HALF.size : at + _HALF.size + len(data)] = data
        self.seam.passing(Step.SAVE_STATE)
        _HALF.pack_into(self._memory, at, sequence, len(data), _checksum(sequence, data))
        self._sequence = sequence
        self.seam.passing(Step.SAVED)

    def load(self) -> dict[str, Any]:
        """The newest whole value, as FORMAT has it; later saves go on from it. Raises SavedStateError."""
        magic, version, _ = _HEAD.unpack_from(self._memory, 0)
        if magic != _MAGIC:
            raise SavedStateError("nothing was ever saved here")
        found: tuple[int, int | None, dict[str, Any]] | None = None
        for half in range(2):
            whole = self._read_half(_HALVES_AT + half * HALF_BYTES)
            if whole is not None and (found is None or whole[0] > found[0]):
                found = whole
        if found is None:
            raise SavedStateError("both halves are torn, or nothing was saved yet")
        try:
            value = migrate(version if found[1] is None else found[1], found[2])
        except UnknownFormat as error:
            raise SavedStateError(str(error)) from error
        self._sequence = found[0]
        return value

    def _read_half(self, at: int) -> tuple[int, int | None, dict[str, Any]] | None:
        """Sequence, format (None: it does not say), value."""
        sequence, length, checksum = _HALF.unpack_from(self._memory, at)
        if sequence == 0 or length > VALUE_BYTES_MAX:
            return None
        data = bytes(self._memory[at + _HALF.size : at + _HALF.size + length])
        if _checksum(sequence, data) != checksum:
            return None
        try:
            value = msgpack.unpackb(data, raw=False, strict_map_key=False)
        except (ValueError, msgpack.UnpackException):
            return None
        match value:
            case [int(version), dict(value)]:
                return sequence, version, value
            case dict():
                return sequence, None, value
        return None


def _checksum(sequence: int, data: bytes) -> int:
    return crc32c(data, crc32c(sequence.to_bytes(8, "little")))


def encoded_bytes(value: Mapping[str, Any]) -> int:
    """What a value takes of VALUE_BYTES_MAX."""
    return len(msgpack.packb(value, use_bin_type=True))
