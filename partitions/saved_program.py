"""What a program wants to know when it goes on after `partvisor save`: kept in pages of its partition, for its parent.

A process can't be copied; so the program takes part. At a quiet point it is asked for its state, some bytes, which are
given back to the program that goes on in its place.

    page 0    8 bytes "PVSTATE\\0", u32 length, u32 CRC-32 of the bytes
    page 1... the bytes
"""

import struct
import zlib
from typing import Final

from bus.memory import PAGE_BYTES, MemorySlot
from runtime.hypercalls.caller import HypercallPort

SAVED_GPFN: Final = 0x70_0000  # above all channels of any guest
PROGRAM_STATE_BYTES_MAX: Final = 16 << 20
_HEAD: Final = struct.Struct("<8sII")
_MAGIC: Final = b"PVSTATE\0"


class ProgramStateError(Exception):
    """It is not there, or not whole."""


class StateKeeper:
    """In the partition: one state at a time."""

    def __init__(self, call: HypercallPort) -> None:
        self._call = call
        self._slot: MemorySlot | None = None

    def keep(self, state: bytes) -> None:
        """In the place of what was kept before. ValueError: too large; HypercallError: no memory left."""
        if len(state) > PROGRAM_STATE_BYTES_MAX:
            raise ValueError(f"a state of {len(state)} bytes; at most {PROGRAM_STATE_BYTES_MAX}")
        self.drop()
        pages = 1 - (-len(state) // PAGE_BYTES)
        mapped = self._call.map_gpa_pages(SAVED_GPFN, pages)
        self._slot = slot = MemorySlot.from_fd(mapped.fd, mapped.gpfn, mapped.pages)
        slot.memory[PAGE_BYTES : PAGE_BYTES + len(state)] = state
        slot.memory[: _HEAD.size] = _HEAD.pack(_MAGIC, len(state), zlib.crc32(state))

    def drop(self) -> None:
        if self._slot is not None:
            slot, self._slot = self._slot, None
            slot.close()
            self._call.unmap_gpa_pages(slot.gpfn, slot.pages)


def read_state(memory: memoryview) -> bytes:
    """From the partition's pages, which it may change at any moment: copied, then checked. ProgramStateError."""
    if len(memory) < PAGE_BYTES:
        raise ProgramStateError("no pages")
    magic, length, crc32 = _HEAD.unpack(bytes(memory[: _HEAD.size]))
    if magic != _MAGIC or length > min(len(memory) - PAGE_BYTES, PROGRAM_STATE_BYTES_MAX):
        raise ProgramStateError("what its program has kept is no state")
    state = bytes(memory[PAGE_BYTES : PAGE_BYTES + length])
    if zlib.crc32(state) != crc32:
        raise ProgramStateError("its state was being changed")
    return state
