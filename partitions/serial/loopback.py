"""A line whose two wires are joined: what is written to it can be read from it. For trials of what is on its way."""

import os
from collections import deque
from typing import Final

from partitions.sdk.context import DriverContext
from partitions.sdk.serial import SerialDriver

HELD_BYTES_MAX: Final = 64 << 10  # on the wire; more is not taken until some was read


class LoopbackSerial(SerialDriver):
    """Its two methods are called by two threads: a deque bears that, and each count has one who changes it."""

    def __init__(self, context: DriverContext) -> None:
        super().__init__(context)
        self._wire: deque[bytes] = deque()
        self._written = self._taken = self._begun = 0  # bytes: in all, in all, of the first piece
        self._pieces = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE)

    def write(self, data: bytes) -> int:
        piece = bytes(data[: HELD_BYTES_MAX - (self._written - self._taken)])
        if piece:
            self._written += len(piece)
            os.eventfd_write(self._pieces, 1)  # first: who takes a piece off the wire takes one off the count
            self._wire.append(piece)
        return len(piece)

    def read(self, limit: int) -> bytes:
        if not self._wire:
            return b""
        piece = self._wire[0][self._begun : self._begun + limit]
        self._begun += len(piece)
        self._taken += len(piece)
        if self._begun == len(self._wire[0]):
            self._wire.popleft()
            self._begun = 0
            os.eventfd_read(self._pieces)
        return piece

    @property
    def descriptor(self) -> int | None:
        return self._pieces

    def close(self) -> None:
        os.close(self._pieces)
        super().close()
