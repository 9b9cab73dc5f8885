"""Drivers of a PC's oldest devices, for guests that know no others: serial port, IDE disk, clock, keyboard."""

import time
from datetime import UTC, datetime
from typing import Final

from partitions.vp.port_io import PortIo

COM1: Final = 0x3F8
COM1_VECTOR: Final = 0x24
IDE: Final = 0x1F0
IDE_CONTROL: Final = 0x3F6
SECTOR_BYTES: Final = 512
_BUSY, _FAULT, _DATA, _ERROR = 0x80, 0x20, 0x08, 0x01
_PATIENCE_S: Final = 30.0  # for a disk; one that is slower is broken
_POLL_S: Final = 0.0002


class DiskError(Exception):
    """The drive said no: its error register."""


class SerialConsole:
    """A 16550 at COM1: written by polling, read by polling or by interrupt."""

    def __init__(self, io: PortIo, base: int = COM1) -> None:
        self._io, self._base = io, base
        io.outb(base + 3, 0x80)  # the divisor's turn
        io.outb(base, 1)  # 115,200 bit/s
        io.outb(base + 1, 0)
        io.outb(base + 3, 0x03)  # 8 bits, no parity, 1 stop bit
        io.outb(base + 2, 0x07)  # FIFOs on and empty
        io.outb(base + 4, 0x0B)  # DTR, RTS, and OUT2, which connects the interrupt

    def write(self, text: str) -> None:
        """Sixteen bytes a look at the line status: so much does the FIFO take."""
        data = text.replace("\n", "\r\n").encode()
        for at in range(0, len(data), 16):
            while not self._io.inb(self._base + 5) & 0x20:
                pass
            self._io.outsb(self._base, data[at : at + 16])

    def enable_interrupts(self, kinds: int) -> None:
        self._io.outb(self._base + 1, kinds)

    def interrupt_causes(self) -> list[int]:
        """As a handler reads them: until there is none. What was received is for `read`, line by line."""
        causes = []
        while not (cause := self._io.inb(self._base + 2) & 0x0F) & 0x01:
            causes.append(cause)
            if cause in (0x04, 0x0C):
                break
        return causes

    def read(self) -> bytes:
        """All that has arrived."""
        found = bytearray()
        while self._io.inb(self._base + 5) & 0x01:
            found.append(self._io.inb(self._base))
        return bytes(found)


class IdeDrive:
    """The master of the first channel, by polling."""

    def __init__(self, io: PortIo) -> None:
        self._io = io
        io.outb(IDE_CONTROL, 0x02)  # no interrupts
        io.outb(IDE + 6, 0xE0)
        io.outb(IDE + 7, 0xEC)
        self._await_data()
        words = io.insw(IDE, 256)
        self.sectors: Final = int.from_bytes(words[120:124], "little")
        self.model: Final = self._text(words[54:94])
        self.serial: Final = self._text(words[20:40])

    @staticmethod
    def _text(words: bytes) -> str:
        swapped = bytes(byte for at in range(0, len(words), 2) for byte in (words[at + 1], words[at]))
        return swapped.decode("ascii").strip()

    def read(self, lba: int, count: int = 1) -> bytes:
        self._command(0x20, lba, count)
        parts = []
        for _ in range(count):
            self._await_data()
            parts.append(self._io.insw(IDE, SECTOR_BYTES // 2))
        return b"".join(parts)

    def write(self, lba: int, data: bytes) -> None:
        count = len(data) // SECTOR_BYTES
        self._command(0x30, lba, count)
        for at in range(0, len(data), SECTOR_BYTES):
            self._await_data()
            self._io.outsw(IDE, data[at : at + SECTOR_BYTES])
        self._await_idle()

    def flush(self) -> None:
        self._io.outb(IDE + 7, 0xE7)
        self._await_idle()

    def _command(self, command: int, lba: int, count: int) -> None:
        io = self._io
        io.outb(IDE + 6, 0xE0 | lba >> 24 & 0x0F)
        io.outb(IDE + 2, count & 0xFF)
        for place in range(3):
            io.outb(IDE + 3 + place, lba >> 8 * place & 0xFF)
        io.outb(IDE + 7, command)

    def _await_idle(self) -> int:
        deadline = time.monotonic() + _PATIENCE_S
        while (status := self._io.inb(IDE + 7)) & _BUSY:
            if time.monotonic() > deadline:
                raise DiskError("busy for too long")
            time.sleep(_POLL_S)
        if status & (_ERROR | _FAULT):
            raise DiskError(f"status {status:#04x}, error {self._io.inb(IDE + 1):#04x}")
        return status

    def _await_data(self) -> None:
        if not self._await_idle() & _DATA:
            raise DiskError("the drive has no data, and wants none")


def read_clock(io: PortIo) -> datetime:
    """The RTC's time, in UTC, read twice until both agree: an update may fall in between."""

    def register(index: int) -> int:
        io.outb(0x70, index)
        return io.inb(0x71)

    def fields() -> list[int]:
        return [register(index) for index in (0x32, 0x09, 0x08, 0x07, 0x04, 0x02, 0x00)]

    before: list[int] = []
    while (now := fields()) != before:
        before = now
    century, *rest = [(value >> 4) * 10 + (value & 0x0F) for value in now]
    year, month, day, hour, minute, second = rest
    return datetime(century * 100 + year, month, day, hour, minute, second, tzinfo=UTC)


def memory_kib(io: PortIo) -> int:
    """Extended memory, as the firmware left it in the CMOS."""
    value = 0
    for place, index in enumerate((0x30, 0x31)):
        io.outb(0x70, index)
        value |= io.inb(0x71) << 8 * place
    return value


def test_keyboard_controller(io: PortIo) -> bool:
    """Its self test. (Its answer goes before whatever was typed.)"""
    io.outb(0x64, 0xAA)
    return io.inb(0x60) == 0x55
