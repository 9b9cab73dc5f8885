"""What a guest sent over a channel and what came back, in order, in a file that survives the death of anyone.

Each message is numbered, and is noted before it is sent; each answer is noted as it came. What was said of histories
(runtime.chaos.history) holds here, too: a mapped file of its full size, a CRC in each record, a torn last record is
seen and left out.

    file     header (64 bytes), then records of 32 bytes, then zeros
    record   crc u32 | kind u8 | detail u8 | 0 u16 | length u32 | digest u32 | number u64 | time_ns u64
             SENT      number: ours, from 1, without gaps; length and CRC-32C of its bytes
             RECEIVED  number: as it came with the answer, whatever it is; detail: 1 where the device refused
             ENDED     detail: an Ending; nothing follows

All little-endian; times are CLOCK_MONOTONIC.
"""

import mmap
import os
import struct
import time
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Final

from bus.native import crc32c
from runtime.chaos.history import are_zeros

MESSAGES_MAX: Final = 1 << 22
_HEADER: Final = struct.Struct("<8sHHIQQ28xI")
_MAGIC: Final = b"PVSEQU\r\n"
_FORMAT: Final = 1
_RECORD: Final = struct.Struct("<IBBHIIQQ")
_AFTER_CRC: Final = struct.Struct("<BBHIIQQ")
_CRC_BYTES: Final = 4

assert _HEADER.size == 64
assert _RECORD.size == 32 == _AFTER_CRC.size + _CRC_BYTES


class SequenceError(Exception):
    """The file is none, or cannot be written as one. The text says why."""


class Ending(IntEnum):
    NONE = -1  # the guest was killed, or still runs
    FINISHED = 0  # everything was answered
    GAVE_UP = 1  # no answer came for as long as the guest was willing to wait
    CLOSED = 2  # the channel was taken away, and the guest was told


class _Record(IntEnum):
    SENT = 1
    RECEIVED = 2
    ENDED = 3


@dataclass(frozen=True, slots=True)
class Sent:
    number: int
    length: int  # bytes
    digest: int  # CRC-32C
    at_ns: int


@dataclass(frozen=True, slots=True)
class Received:
    """`number` is what the answer said; it may be anything."""

    number: int
    length: int
    digest: int
    at_ns: int
    is_refusal: bool = False  # an error of the device: it has no bytes to compare


@dataclass(slots=True)
class Sequence:
    """One guest, one boot."""

    seed: int
    started_ns: int
    sent: list[Sent] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    ending: Ending = Ending.NONE
    torn: bool = False  # the last record was half-written


class SequenceWriter:
    """The guest's side. One thread."""

    def __init__(self, descriptor: int, *, seed: int, messages_max: int) -> None:
        """Give the file behind `descriptor`, which must be empty, its full size, and map it. Raises SequenceError."""
        if not 0 < messages_max <= MESSAGES_MAX:
            raise ValueError(f"messages_max {messages_max}: want 1 to {MESSAGES_MAX}")
        self._room = messages_max
        size = _HEADER.size + (3 * messages_max + 1) * _RECORD.size  # an answer may come twice
        try:
            if os.fstat(descriptor).st_size:
                raise SequenceError("the file is not empty: give each run an empty one")
            os.posix_fallocate(descriptor, 0, size)
            self._memory = mmap.mmap(descriptor, size)
        except OSError as error:
            raise SequenceError(f"no room for {size} bytes: {error.strerror}") from error
        header = _HEADER.pack(_MAGIC, _FORMAT, 0, 0, seed, time.monotonic_ns(), 0)[:-_CRC_BYTES]
        self._memory[: _HEADER.size] = header + struct.pack("<I", crc32c(header))
        self._next = _HEADER.size
        self._sent = 0

    @property
    def room(self) -> int:
        """How many more messages fit."""
        return self._room - self._sent

    def send(self, payload: bytes) -> int:
        """Note that this is about to be sent; its number."""
        self._sent = number = self._sent + 1
        self._append(_Record.SENT, 0, len(payload), crc32c(payload), number)
        return number

    def receive(self, number: int, payload: bytes, is_refusal: bool = False) -> None:
        if self._next + 2 * _RECORD.size > len(self._memory):  # the rest is for the end
            raise SequenceError("more came than was ever asked for")
        self._append(_Record.RECEIVED, int(is_refusal), len(payload), crc32c(payload), number)

    def end(self, ending: Ending) -> None:
        self._append(_Record.ENDED, int(ending), 0, 0, 0)

    def _append(self, kind: int, detail: int, length: int, digest: int, number: int) -> None:
        body = _AFTER_CRC.pack(kind, detail, 0, length, digest, number, time.monotonic_ns())
        self._memory[self._next : self._next + _RECORD.size] = struct.pack("<I", crc32c(body)) + body
        self._next += _RECORD.size


def read_sequence(path: Path) -> Sequence:
    """Finished or cut off. Raises SequenceError: none, or damaged anywhere but in its last record; OSError."""
    content = path.read_bytes()
    if len(content) < _HEADER.size:
        raise SequenceError(f"{path}: {len(content)} bytes; no guest began one there")
    magic, form, _, _, seed, started_ns, crc = _HEADER.unpack_from(content)
    if magic != _MAGIC or form != _FORMAT or crc != crc32c(content[: _HEADER.size - _CRC_BYTES]):
        raise SequenceError(f"{path}: no guest began one there, in format {_FORMAT}")
    sequence = Sequence(seed, started_ns)
    view, at = memoryview(content), _HEADER.size
    while at + _RECORD.size <= len(content):
        crc, kind, detail, _, length, digest, number, now = _RECORD.unpack_from(content, at)
        if crc != crc32c(view[at + _CRC_BYTES : at + _RECORD.size]):
            break
        at += _RECORD.size
        match kind:
            case _Record.SENT:
                if number != len(sequence.sent) + 1:
                    raise SequenceError(f"{path}: message {number} follows {len(sequence.sent)}")
                sequence.sent.append(Sent(number, length, digest, now))
            case _Record.RECEIVED:
                sequence.received.append(Received(number, length, digest, now, bool(detail)))
            case _Record.ENDED:
                sequence.ending = Ending(detail)
                break
            case _:
                raise SequenceError(f"{path}: a record of kind {kind}")
    sequence.torn = sequence.ending is Ending.NONE and not are_zeros(content, at, at + _RECORD.size)
    if not are_zeros(content, at + _RECORD.size, len(content)):
        raise SequenceError(f"{path}: damaged at byte {at}, and more follows")
    return sequence
