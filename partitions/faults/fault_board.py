"""The orders that stand in one process, and how often each has struck, in memory that outlives the process.

    page 0        at byte 0 the newest half's sequence, u64, for a cheap look: has anything changed?
                  at byte 1024 counters, 40 bytes an order: number, passes, fired, the generator's state, when it
                  struck first (CLOCK_MONOTONIC, ns), u64 each
    pages 1..8    two halves, written in turn: sequence u64 | length u32 | CRC-32C u32 | [[slot, order], ...] (msgpack)

Who orders writes the halves: the root. Who carries out counts: the process that serves. So a successor of either finds
all that stands, and goes on with the same decisions. A half that its writer died in has a wrong checksum, and the other
one still counts; a reader trusts nothing else, and looks at every order again.
"""

import struct
import time
from collections.abc import Iterable, Mapping
from typing import Final

import msgpack  # type: ignore[import-untyped]

from bus.native import crc32c
from runtime.chaos.faults.kinds import ParameterError
from runtime.chaos.faults.knobs import Trigger
from runtime.chaos.faults.orders import ARMED_MAX, Counts, FaultRefused, Order, OrderError

_PAGE_BYTES: Final = 4096
_HALF_BYTES: Final = 4 * _PAGE_BYTES
BOARD_PAGES: Final = 1 + 2 * _HALF_BYTES // _PAGE_BYTES
BOARD_BYTES: Final = BOARD_PAGES * _PAGE_BYTES
_HALF: Final = struct.Struct("<QII")
_COUNTERS_AT: Final = 1024
_COUNTER_WORDS: Final = 5
_NUMBER, _PASSES, _FIRED, _STATE, _FIRST = range(_COUNTER_WORDS)

assert _COUNTERS_AT + ARMED_MAX * _COUNTER_WORDS * 8 <= _PAGE_BYTES


class FaultBoard:
    """One process orders, one carries out; they may be the same."""

    def __init__(self, memory: memoryview) -> None:
        if len(memory) != BOARD_BYTES:
            raise ValueError(f"{len(memory)} bytes; a board has {BOARD_BYTES}")
        self._memory = memory
        self._newest: Final = memory[:8].cast("B").cast("Q")
        end = _COUNTERS_AT + ARMED_MAX * _COUNTER_WORDS * 8
        self._counters: Final = memory[_COUNTERS_AT:end].cast("B").cast("Q")  # words, each stored whole

    @property
    def sequence(self) -> int:
        """Another one: something was put or taken away."""
        return self._newest[0]

    # -- who orders

    def put(self, order: Order) -> None:
        """Said again, it changes nothing. FaultRefused: there is no room."""
        standing = self._read()[1]
        if any(there.number == order.number for there in standing.values()):
            return
        slot = next((slot for slot in range(ARMED_MAX) if slot not in standing), None)
        if slot is None:
            raise FaultRefused(f"{ARMED_MAX} faults are armed there; heal some: partvisor heal")
        words = self._words(slot)
        words[_PASSES], words[_FIRED], words[_STATE], words[_FIRST] = 0, 0, order.seed, 0
        words[_NUMBER] = order.number
        self._write(standing | {slot: order})

    def take(self, number: int | None) -> None:
        """None: all."""
        standing = self._read()[1]
        left = {slot: order for slot, order in standing.items() if number not in (None, order.number)}
        if len(left) != len(standing):
            self._write(left)

    def _write(self, orders: Mapping[int, Order]) -> None:
        data = msgpack.packb([[slot, order.to_table()] for slot, order in orders.items()], use_bin_type=True)
        if len(data) > _HALF_BYTES - _HALF.size:
            raise FaultRefused("no room for so many orders; heal some: partvisor heal")
        sequence = self._read()[0] + 1
        at = self._half(sequence)
        _HALF.pack_into(self._memory, at, 0, 0, 0)  # from here on this half does not count
        self._memory[at + _HALF.size : at + _HALF.size + len(data)] = data
        _HALF.pack_into(self._memory, at, sequence, len(data), _checksum(sequence, data))
        self._newest[0] = sequence

    # -- who carries out

    def orders(self) -> Iterable[Order]:
        return self._read()[1].values()

    def trigger(self, order: Order) -> Trigger:
        """Its decisions, going on where a predecessor stood. KeyError: it does not stand here."""
        for slot, there in self._read()[1].items():
            if there.number == order.number:
                return _KeptTrigger(order, self._words(slot))
        raise KeyError(order.number)

    # -- anyone

    def counts(self) -> dict[int, Counts]:
        return {
            order.number: Counts(words[_PASSES], words[_FIRED], words[_FIRST])
            for slot, order in self._read()[1].items()
            if (words := self._words(slot))[_NUMBER] == order.number
        }

    def _words(self, slot: int) -> memoryview:
        return self._counters[slot * _COUNTER_WORDS : (slot + 1) * _COUNTER_WORDS]

    @staticmethod
    def _half(sequence: int) -> int:
        return _PAGE_BYTES + sequence % 2 * _HALF_BYTES

    def _read(self) -> tuple[int, dict[int, Order]]:
        """The newest whole half: its sequence, and what stands, by slot."""
        halves = (self._read_half(self._half(half)) for half in range(2))
        return max((half for half in halves if half is not None), key=lambda half: half[0], default=(0, {}))

    def _read_half(self, at: int) -> tuple[int, dict[int, Order]] | None:
        sequence, length, checksum = _HALF.unpack_from(self._memory, at)
        if sequence == 0 or length > _HALF_BYTES - _HALF.size:
            return None
        data = bytes(self._memory[at + _HALF.size : at + _HALF.size + length])
        if _checksum(sequence, data) != checksum:
            return None
        try:
            rows = msgpack.unpackb(data, raw=False, strict_map_key=False)
        except (ValueError, msgpack.UnpackException):
            return None
        if not isinstance(rows, list):
            return None
        return sequence, dict(one for row in rows[:ARMED_MAX] if (one := _entry(row)) is not None)


class _KeptTrigger(Trigger):
    """Counted before it strikes: a strike may be the end of the process, and is to happen once."""

    def __init__(self, order: Order, words: memoryview) -> None:
        super().__init__(order.knobs, order.seed)
        self._words = words
        self.resume(words[_PASSES], words[_FIRED], words[_STATE])

    def strikes(self) -> bool:
        struck = super().strikes()
        if struck and self.fired == 1:
            self._words[_FIRST] = time.monotonic_ns()
        self._keep()
        return struck

    def draw(self, count: int) -> int:
        drawn = super().draw(count)
        self._keep()
        return drawn

    def _keep(self) -> None:
        words = self._words
        words[_PASSES], words[_FIRED], words[_STATE] = self.passes, self.fired, self.state


def _entry(row: object) -> tuple[int, Order] | None:
    """What is no order, or none that we know, is left out."""
    from runtime.chaos.faults.catalogue import (
        FAULTS,  # only a process that is ordered any needs to know the kinds
    )

    match row:
        case [int(slot), table] if 0 <= slot < ARMED_MAX:
            try:
                order = Order.from_table(table)
                FAULTS[order.kind].settle(order.parameters)
            except (OrderError, ParameterError, KeyError):
                return None
            return slot, order
    return None


def _checksum(sequence: int, data: bytes) -> int:
    return crc32c(data, crc32c(sequence.to_bytes(8, "little")))
