"""What outlives a root of each emulated device: one page, in memory that the hypervisor keeps while none runs.

    two halves of 2048 bytes, written in turn:
    sequence u64 | CRC-32C u32 | state bytes u16 | 0 u16 | last access: VP u32, 0 u32, RIP u64, RCX u64 | its RAX, RCX
    and address u64 each | state

With the state goes the access that led to it, and what was to be answered. A root that dies between saving and
answering leaves an access that the hypervisor tells its successor of again: it is not done twice, only answered.
"""

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

from bus.native import crc32c
from partitions.emulated.port_device import STATE_BYTES_MAX

RECORD_BYTES: Final = 4096
_HALF_BYTES: Final = RECORD_BYTES // 2
_HEAD: Final = struct.Struct("<QI")
_BODY: Final = struct.Struct("<HHIIIQQQQQ")
assert _HEAD.size + _BODY.size + STATE_BYTES_MAX <= _HALF_BYTES


class AccessKey(NamedTuple):
    """Which access it was: RIP only ever grows, and RCX shrinks while a string access goes on."""

    vp: int
    rip: int
    rcx: int


class Answer(NamedTuple):
    """What the VP goes on with: A, and of a string access what is left to move and where."""

    rax: int
    rcx: int
    address: int


NO_ACCESS: Final = AccessKey(0xFFFF_FFFF, 0, 0)
_NO_ANSWER: Final = Answer(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Saved:
    """What a predecessor left."""

    state: bytes
    last: AccessKey
    answer: Answer


class Record:
    """One device's page. One writer at a time."""

    def __init__(self, memory: memoryview) -> None:
        if len(memory) != RECORD_BYTES:
            raise ValueError(f"{len(memory)} bytes; a record has {RECORD_BYTES}")
        self._memory = memory
        self._sequence = 0
        self._last, self._answer = NO_ACCESS, _NO_ANSWER

    def save(self, state: bytes, last: AccessKey | None = None, answer: Answer = _NO_ANSWER) -> None:
        """Replace what was saved before. `last`: the access that led here; None: it was none, the last one stays."""
        if last is not None:
            self._last, self._answer = last, answer
        self._sequence += 1
        body = _BODY.pack(len(state), 0, self._last.vp, 0, 0, *self._last[1:], *self._answer) + state
        at = self._sequence % 2 * _HALF_BYTES
        # A half that is torn has a wrong sum, and the other one is whole.
        self._memory[at : at + _HEAD.size + len(body)] = (
            _HEAD.pack(self._sequence, _checksum(self._sequence, body)) + body
        )

    def load(self) -> Saved | None:
        """The newest whole state; saves go on from it. None: nothing was ever saved."""
        found: tuple[int, Saved] | None = None
        for at in (0, _HALF_BYTES):
            sequence, checksum = _HEAD.unpack_from(self._memory, at)
            half = bytes(self._memory[at + _HEAD.size : at + _HALF_BYTES])
            length, _, vp, _, _, rip, rcx, *answer = _BODY.unpack_from(half)
            body = half[: _BODY.size + length]
            if sequence == 0 or length > STATE_BYTES_MAX or _checksum(sequence, body) != checksum:
                continue
            if found is None or sequence > found[0]:
                found = sequence, Saved(body[_BODY.size :], AccessKey(vp, rip, rcx), Answer(*answer))
        if found is None:
            return None
        self._sequence, saved = found
        self._last, self._answer = saved.last, saved.answer
        return saved


def _checksum(sequence: int, body: bytes) -> int:
    """With the sequence: a new one in front of an old body is torn, too."""
    return crc32c(body, crc32c(sequence.to_bytes(8, "little")))
