"""IN and OUT for a partition's program, as a PC's processor has them, and the interrupts that answer them.

    io = PortIo(partition)
    io.outb(0x3F8, ord("!"))

Each access is the parent's to answer: the thread stands until it has. Ports that nobody emulates read as ones.
"""

import contextlib
import mmap
import os
import select
from typing import TYPE_CHECKING, Final, Self

from bus.memory import PAGE_BYTES, MemorySlot
from bus.native import flags_take_all
from runtime.abi import HypercallCode, OverlayPage

if TYPE_CHECKING:
    from partitions.child import Partition

STRING_GPFN: Final = 0xE_F000  # our own page, through which string accesses go; apart from what others map
_VECTORS: Final = 0  # the interrupt page has them where a SIEF page has the flags of SINT 0


class PortIo:
    """One VP's. One thread at a time."""

    def __init__(self, partition: "Partition", vp: int = 0) -> None:
        self._call, self._processor, self._vp = partition.hypercalls, partition.vps[vp], vp
        self._access = partition.accesses
        self._string: MemorySlot | None = None
        self._interrupts: mmap.mmap | None = None

    # -- single accesses

    def inb(self, port: int) -> int:
        return self._access.access_port(self._vp, port, 1).value

    def inw(self, port: int) -> int:
        return self._access.access_port(self._vp, port, 2).value

    def inl(self, port: int) -> int:
        return self._access.access_port(self._vp, port, 4).value

    def outb(self, port: int, value: int) -> None:
        self._access.access_port(self._vp, port, 1, write=True, value=value & 0xFF)

    def outw(self, port: int, value: int) -> None:
        self._access.access_port(self._vp, port, 2, write=True, value=value & 0xFFFF)

    def outl(self, port: int, value: int) -> None:
        self._access.access_port(self._vp, port, 4, write=True, value=value & 0xFFFF_FFFF)

    # -- strings: many elements of one port for the price of one access

    def insb(self, port: int, count: int) -> bytes:
        return self._in_string(port, 1, count)

    def insw(self, port: int, count: int) -> bytes:
        return self._in_string(port, 2, count)

    def insl(self, port: int, count: int) -> bytes:
        return self._in_string(port, 4, count)

    def outsb(self, port: int, data: bytes) -> None:
        self._out_string(port, 1, data)

    def outsw(self, port: int, data: bytes) -> None:
        self._out_string(port, 2, data)

    def outsl(self, port: int, data: bytes) -> None:
        self._out_string(port, 4, data)

    def _in_string(self, port: int, size: int, count: int) -> bytes:
        memory, gpa = self._string_page()
        parts = []
        while count:
            now = min(count, PAGE_BYTES // size)
            result = self._access.access_port(self._vp, port, size, count=now, gpa=gpa)
            moved = size * (now - min(result.left, now))
            nobody = result.value.to_bytes(size, "little")
            parts.append(bytes(memory[:moved]) + nobody * (now - moved // size))
            count -= now
        return b"".join(parts)

    def _out_string(self, port: int, size: int, data: bytes) -> None:
        if len(data) % size:
            raise ValueError(f"{len(data)} bytes are no whole elements of {size}")
        memory, gpa = self._string_page()
        for at in range(0, len(data), PAGE_BYTES):
            piece = data[at : at + PAGE_BYTES]
            memory[: len(piece)] = piece
            self._access.access_port(self._vp, port, size, write=True, count=len(piece) // size, gpa=gpa)

    def _string_page(self) -> tuple[memoryview, int]:
        if self._string is None:
            mapped = self._call.map_gpa_pages(STRING_GPFN, 1)
            self._string = MemorySlot.from_fd(mapped.fd, mapped.gpfn, mapped.pages)
        return self._string.memory, STRING_GPFN * PAGE_BYTES

    # -- memory that is not ours

    def load(self, gpa: int, size: int) -> int:
        """A device's register of 1, 2, 4 or 8 bytes."""
        return self._access.access_memory(self._vp, gpa, size)

    def store(self, gpa: int, size: int, value: int) -> None:
        self._access.access_memory(self._vp, gpa, size, write=True, value=value)

    # -- interrupts

    def wait_interrupt(self, timeout_s: float | None = None) -> set[int]:
        """Vectors that were asserted since this was asked last; waits for one. Empty: the time is over."""
        page = self._interrupt_page()
        while not (vectors := set(flags_take_all(page, _VECTORS))):
            poller = select.poll()  # select would know no descriptor beyond 1023
            poller.register(self._processor.line_fd, select.POLLIN)
            if not poller.poll(None if timeout_s is None else timeout_s * 1000):
                return set()
            self._processor.acknowledge()
        return vectors

    def _interrupt_page(self) -> mmap.mmap:
        if self._interrupts is None:
            page = int(OverlayPage.INTERRUPTS)
            fd = self._call.call(HypercallCode.CLAIM_OVERLAY_PAGE, page=page, vp=self._vp).one_fd()
            try:
                self._interrupts = mmap.mmap(fd, PAGE_BYTES)
            finally:
                os.close(fd)
        return self._interrupts

    def close(self) -> None:
        if self._string is not None:
            self._string.close()
            self._string = None
        if self._interrupts is not None:
            with contextlib.suppress(BufferError):
                self._interrupts.close()
            self._interrupts = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
