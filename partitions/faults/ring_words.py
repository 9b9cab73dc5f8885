"""A channel's rings as plain memory: what a fault writes there that neither end ever would.

The layout is that of bus/native/ring.h. Single words are stored whole.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Final, Literal

from bus.memory import PAGE_BYTES
from partitions.stack.served_channel import RingPlacement
from runtime.chaos.faults.knobs import Trigger

Ring = Literal["requests", "completions"]
WRITE_INDEX, READ_INDEX, INTERRUPT_MASK, PENDING_SEND = range(4)  # words of a header page
TYPE, OFFSET, LENGTH, FLAGS = range(4)  # 16-bit words of a packet
_TRAILER_BYTES: Final = 8
_IOV_MAX: Final = 1024  # Linux UIO_MAXIOV
BAD_TYPE: Final = 0xFFF0
BAD_FLAGS: Final = 0xFFFE
_BAD: Final = {TYPE: BAD_TYPE, OFFSET: 0xFFFF, LENGTH: 0xFFFF, FLAGS: BAD_FLAGS}


class RingWords:
    """Both rings of one channel."""

    def __init__(self, placement: RingPlacement) -> None:
        memory, second = placement.memory, placement.downstream_page_offset * PAGE_BYTES
        self._memory = {"requests": memory[:second], "completions": memory[second:]}
        self._words = {ring: part.cast("B").cast("I") for ring, part in self._memory.items()}

    def size(self, ring: Ring) -> int:
        """Of its data area, in bytes."""
        return len(self._memory[ring]) - PAGE_BYTES

    def load(self, ring: Ring, word: int) -> int:
        return self._words[ring][word]

    def store(self, ring: Ring, word: int, value: int) -> None:
        self._words[ring][word] = value & 0xFFFF_FFFF

    def bad_index(self, ring: Ring, word: int, value: str) -> int:
        """Of one kind of bad: what this word can never be, or not now."""
        size, there = self.size(ring), self.load(ring, word)
        match value:
            case "outside":
                return size + 8
            case "unaligned":
                return there + 4
            case _:
                return (there + size // 2 + 8) // 8 * 8 % size

    # -- the request that is next

    def next_request(self, held: int) -> int:
        """Where it stands, if there is one: behind those that were taken and not released."""
        at, size = self.load("requests", READ_INDEX), self.size("requests")
        for _ in range(held):
            at = (at + self._half_word(at, LENGTH) * 8 + _TRAILER_BYTES) % size
        return at

    def spoil_head(self, at: int, field: int) -> None:
        place = PAGE_BYTES + at + 2 * field
        self._memory["requests"][place : place + 2] = _BAD[field].to_bytes(2, "little")

    def flip(self, at: int, trigger: Trigger) -> None:
        """One bit of what stands behind the head of the packet there."""
        first, length = 16, max(self._half_word(at, LENGTH) * 8, 24)
        place = (at + first + trigger.draw(length - first)) % self.size("requests")
        self._memory["requests"][PAGE_BYTES + place] ^= 1 << trigger.draw(8)

    def _half_word(self, at: int, field: int) -> int:
        place = PAGE_BYTES + at + 2 * field
        return int.from_bytes(self._memory["requests"][place : place + 2], "little")

    @contextlib.contextmanager
    def to_and_fro(self, at: int, field: str) -> Iterator[None]:
        """A thread writes a word of that packet, now one value and now another, without the interpreter's lock: one
        system call scatters what a file holds, value after value, over ever the same place."""
        size = self.size("requests")
        offset = 0 if field == "length" else self._half_word(at, OFFSET) * 8
        place = PAGE_BYTES + (at + offset) % size
        word = self._memory["requests"][place : place + 8]
        true = bytes(word)
        other = bytearray(true)
        if field == "length":
            other[2 * LENGTH : 2 * LENGTH + 2] = b"\xff\xff"
        else:
            other[0] ^= 0xFF
        over = threading.Event()
        descriptor = os.memfd_create("values", os.MFD_CLOEXEC)
        os.write(descriptor, (true + bytes(other)) * (_IOV_MAX // 2))

        def flip() -> None:
            while not over.is_set():
                os.preadv(descriptor, [word] * _IOV_MAX, 0)

        thread = threading.Thread(target=flip, name="double-fetch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            os.close(descriptor)
            word[:] = true
