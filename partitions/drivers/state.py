"""What outlives a driver partition's process, in pages of the partition's own that the hypervisor keeps.

    page 0        at byte 64 a seam (bus.seam)
    pages 1..4    channel records, 64 bytes each, by event flag: the journal (bus/native/endpoint.h) and the session;
                  at byte 32 the number of the opening that they belong to, u64
    pages 5..20   counters, 256 bytes a channel: what COUNTERS names, u64 each, for whoever looks
    pages 21..29  the board with the faults that are armed there (partitions.faults.fault_board)

Both the driver's processes and who created the partition map it; the creator only arms seam and board, and looks at
counters.
"""

import struct
from collections.abc import Mapping
from typing import Final

from bus.memory import PAGE_BYTES
from bus.seam import SEAM_BYTES, Seam
from partitions.faults.fault_board import BOARD_BYTES, FaultBoard

DRIVER_CHANNELS_MAX: Final = 255  # flags 1 to 255
RECORD_BYTES: Final = 64
COUNTERS: Final = (
    "packets_sent",
    "packets_received",
    "bytes_sent",
    "bytes_received",
    "signals_sent",
    "signals_suppressed",
    "waits_spun",
    "waits_yielded",
    "waits_blocked",
    "ring_full",
    "requests",
    "reads",
    "writes",
    "bytes_read",
    "bytes_written",
    "errors",
    "dropped",
)

_SEAM_AT: Final = 64
_RECORDS_AT: Final = PAGE_BYTES
_NUMBER_AT: Final = 32
_NUMBER: Final = struct.Struct("<Q")
_COUNTERS_AT: Final = _RECORDS_AT + (DRIVER_CHANNELS_MAX + 1) * RECORD_BYTES
_COUNTER_BYTES: Final = 256
_COUNTER_FORM: Final = struct.Struct(f"<{len(COUNTERS)}Q")
_FAULTS_AT: Final = _COUNTERS_AT + (DRIVER_CHANNELS_MAX + 1) * _COUNTER_BYTES
STATE_PAGES: Final = (_FAULTS_AT + BOARD_BYTES) // PAGE_BYTES

assert _COUNTERS_AT % PAGE_BYTES == 0
assert _COUNTER_FORM.size <= _COUNTER_BYTES
_U64_MAX: Final = 2**64 - 1


class DriverState:
    def __init__(self, memory: memoryview) -> None:
        if len(memory) != STATE_PAGES * PAGE_BYTES:
            raise ValueError(f"{len(memory)} bytes; a driver's state has {STATE_PAGES * PAGE_BYTES}")
        self._memory = memory
        self.seam: Final = Seam(memory[_SEAM_AT : _SEAM_AT + SEAM_BYTES])
        self.faults: Final = FaultBoard(memory[_FAULTS_AT : _FAULTS_AT + BOARD_BYTES])

    def record(self, flag: int, number: int) -> memoryview:
        """Of this opening: as a predecessor left it, or zeros. ValueError: no such flag."""
        if not 0 < flag <= DRIVER_CHANNELS_MAX:
            raise ValueError(f"event flag {flag}; a driver has {DRIVER_CHANNELS_MAX}")
        start = _RECORDS_AT + flag * RECORD_BYTES
        record = self._memory[start : start + RECORD_BYTES]
        if _NUMBER.unpack_from(record, _NUMBER_AT)[0] != number:
            record[:] = bytes(RECORD_BYTES)
            _NUMBER.pack_into(record, _NUMBER_AT, number)  # last: dying in between, it is cleared again
        return record

    def store_counters(self, flag: int, values: Mapping[str, int]) -> None:
        numbers = (min(values.get(name, 0), _U64_MAX) for name in COUNTERS)
        _COUNTER_FORM.pack_into(self._memory, _COUNTERS_AT + flag * _COUNTER_BYTES, *numbers)

    def load_counters(self, flag: int) -> dict[str, int]:
        values = _COUNTER_FORM.unpack_from(self._memory, _COUNTERS_AT + flag * _COUNTER_BYTES)
        return dict(zip(COUNTERS, values, strict=True))
