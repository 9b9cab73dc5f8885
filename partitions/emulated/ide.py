"""One ATA disk at a PC's primary IDE channel: master, programmed I/O, 28-bit LBA or CHS.

    1F0 data (16 or 32 bits)   1F1 error / features   1F2 count   1F3-1F5 LBA   1F6 device   1F7 status / command
    3F6 (here offset 8)        alternate status / device control

A command that needs the medium makes the disk busy and leaves a `request`; whoever carries it out says so with
`complete`. So this is a state machine, and a successor finds the request where it was.

Source: T13/1153D, ATA/ATAPI-4.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from partitions.emulated.ide_commands import FEATURES_TAKEN, NOTHING_TO_DO, Command
from partitions.emulated.ide_identity import HEADS, SECTORS_PER_TRACK, geometry, identify
from partitions.emulated.port_device import PortDevice

SECTOR_BYTES: Final = 512
DATA, ERROR, COUNT, LBA_LOW, LBA_MID, LBA_HIGH, DEVICE, STATUS, CONTROL = range(9)  # offsets
FEATURES, COMMAND = ERROR, STATUS  # written

BUSY, READY, FAULT, SEEK_DONE, DATA_REQUEST, FAILED = 0x80, 0x40, 0x20, 0x10, 0x08, 0x01
UNCORRECTABLE, NOT_FOUND, ABORTED = 0x40, 0x10, 0x04  # in the error register
_NO_ERROR: Final = 0x01  # of the self test, after a reset
DEVICE_LBA, DEVICE_SLAVE = 0x40, 0x10
CONTROL_NO_INTERRUPT, CONTROL_RESET = 0x02, 0x04

_STATE: Final = struct.Struct("<12BHHI512s")


class RequestKind(IntEnum):
    NONE = 0
    READ = 1
    WRITE = 2
    FLUSH = 3


@dataclass(frozen=True, slots=True)
class DiskRequest:
    """What the medium is to do. `data`: one sector, to be written."""

    kind: RequestKind
    lba: int
    data: bytes = b""


class _Transfer(IntEnum):
    """What the data register is doing."""

    NONE = 0
    READ = 1  # sectors to the guest
    WRITE = 2
    IDENTIFY = 3
    VERIFY = 4  # reads, and moves nothing


_WITHOUT_DATA: Final = (_Transfer.NONE, _Transfer.VERIFY)


class IdeDisk(PortDevice):
    """A disk of so many sectors. Sectors beyond 28 bits are out of its reach."""

    def __init__(self, sectors: int, serial: str, read_only: bool) -> None:
        super().__init__()
        self._sectors = min(sectors, 1 << 28)
        self._serial, self._read_only = serial, read_only
        self._features = self._control = 0
        self._request_kind = RequestKind.NONE
        self._transfer = _Transfer.NONE
        self._buffer = bytearray(SECTOR_BYTES)
        self._at = SECTOR_BYTES  # of the buffer
        self._left = 0  # sectors of this command, the current one included
        self._lba = 0  # of the current one
        self._pending = False  # the interrupt, until the status is read
        self._reset()

    def _reset(self) -> None:
        """With the signature of a device that takes no packets."""
        self._status, self._error = READY | SEEK_DONE, _NO_ERROR
        self._count, self._lba_low, self._lba_mid, self._lba_high, self._device = 1, 1, 0, 0, 0
        self._transfer, self._request_kind, self._pending = _Transfer.NONE, RequestKind.NONE, False

    # -- the medium

    @property
    def request(self) -> DiskRequest | None:
        """What it waits for. A new one only after `complete`, or after a reset."""
        if self._request_kind is RequestKind.NONE:
            return None
        data = bytes(self._buffer) if self._request_kind is RequestKind.WRITE else b""
        return DiskRequest(self._request_kind, self._lba, data)

    @property
    def is_quiet(self) -> bool:
        return self._request_kind is RequestKind.NONE and super().is_quiet

    def complete(self, request: DiskRequest, data: bytes | None) -> None:
        """`data`: the sector that was read; empty after a write or flush; None: the medium failed."""
        if request != self.request:  # a reset was faster
            return
        kind, self._request_kind = self._request_kind, RequestKind.NONE
        if data is None:
            if kind is not RequestKind.FLUSH:
                self._show_address()  # of the sector that failed
            error = UNCORRECTABLE if kind is RequestKind.READ else ABORTED
            self._finish(error, fault=kind is not RequestKind.READ)
        elif kind is RequestKind.FLUSH:
            self._finish()
        elif self._transfer is _Transfer.READ:
            self._buffer[:] = data
            self._offer()
        else:  # written, or verified
            self._next_sector()
        self._watch_line()

    # -- ports

    def is_wide(self, offset: int) -> bool:
        return offset == DATA

    def read(self, offset: int, size: int) -> int:
        if offset == DATA:
            return int.from_bytes(self._read_data(size), "little")
        if offset == ERROR:
            return self._error
        if offset == DEVICE:
            return self._device | 0xA0
        if offset in (STATUS, CONTROL):
            if self._device & DEVICE_SLAVE:
                return 0  # nobody is there
            if offset == STATUS:
                self._pending = False
                self._watch_line()
            return self._status
        return (self._count, self._lba_low, self._lba_mid, self._lba_high)[offset - COUNT]

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == DATA:
            self._write_data(value.to_bytes(size, "little"))
        elif offset == CONTROL:
            self._write_control(value & 0xFF)
        elif not self._status & BUSY:
            self._write_register(offset, value & 0xFF)
        self._watch_line()

    def read_string(self, offset: int, size: int, count: int) -> bytes:
        if offset != DATA:
            return super().read_string(offset, size, count)
        return self._read_data(size * count)

    def write_string(self, offset: int, size: int, data: bytes) -> None:
        if offset != DATA:
            super().write_string(offset, size, data)
        else:
            self._write_data(data)
            self._watch_line()

    @property
    def interrupt(self) -> bool:
        return self._pending and not self._control & CONTROL_NO_INTERRUPT

    def _write_control(self, value: int) -> None:
        if value & CONTROL_RESET and not self._control & CONTROL_RESET:
            self._reset()
            self._status = BUSY
        elif self._control & CONTROL_RESET and not value & CONTROL_RESET:
            self._reset()
        self._control = value & (CONTROL_NO_INTERRUPT | CONTROL_RESET)

    def _write_register(self, offset: int, value: int) -> None:
        match offset:
            case 1:  # FEATURES
                self._features = value
            case 2:  # COUNT
                self._count = value
            case 3:
                self._lba_low = value
            case 4:
                self._lba_mid = value
            case 5:
                self._lba_high = value
            case 6:  # DEVICE
                self._device = value & 0x5F
            case _:  # COMMAND
                if not self._device & DEVICE_SLAVE or value == Command.EXECUTE_DIAGNOSTIC:
                    self._execute(value)

    # -- commands

    def _execute(self, command: int) -> None:
        self._pending = False
        self._watch_line()
        self._status, self._error, self._transfer = READY | SEEK_DONE, 0, _Transfer.NONE
        match command:
            case Command.IDENTIFY:
                self._left, self._transfer = 1, _Transfer.IDENTIFY
                self._buffer[:] = identify(self._sectors, self._serial)
                self._offer()
            case Command.READ_SECTORS | Command.READ_SECTORS_ONCE:
                self._begin(_Transfer.READ)
            case Command.VERIFY_SECTORS | Command.VERIFY_SECTORS_ONCE:
                self._begin(_Transfer.VERIFY)
            case Command.WRITE_SECTORS | Command.WRITE_SECTORS_ONCE:
                if self._read_only:
                    self._finish(ABORTED)
                else:
                    self._begin(_Transfer.WRITE)
            case Command.FLUSH_CACHE:
                self._ask(RequestKind.FLUSH)
            case Command.EXECUTE_DIAGNOSTIC:
                self._reset()
                self._finish()
                self._error = _NO_ERROR
            case Command.SET_FEATURES:
                self._finish(0 if self._features in FEATURES_TAKEN else ABORTED)
            case _:
                self._finish(0 if command in NOTHING_TO_DO else ABORTED)

    def _begin(self, transfer: _Transfer) -> None:
        """A transfer of sectors. A count of 0 means 256."""
        self._transfer, self._left = transfer, self._count or 256
        lba = self._address()
        if lba is None or lba + self._left > self._sectors:
            self._finish(NOT_FOUND)
            return
        self._lba = lba
        if transfer is _Transfer.WRITE:
            self._status |= DATA_REQUEST  # the first sector is asked for without an interrupt
            self._at = 0
        else:
            self._ask(RequestKind.READ)

    def _address(self) -> int | None:
        """Of the first sector. None: CHS that does not exist."""
        if self._device & DEVICE_LBA:
            return self._lba_low | self._lba_mid << 8 | self._lba_high << 16 | (self._device & 0x0F) << 24
        cylinder, head, sector = self._lba_mid | self._lba_high << 8, self._device & 0x0F, self._lba_low
        cylinders = geometry(self._sectors)
        if not 1 <= sector <= SECTORS_PER_TRACK or head >= HEADS or cylinder >= cylinders:
            return None
        return (cylinder * HEADS + head) * SECTORS_PER_TRACK + sector - 1

    def _show_address(self) -> None:
        """Of the sector at which the command is."""
        if self._device & DEVICE_LBA:
            value = self._lba
            self._device = self._device & 0xF0 | value >> 24 & 0x0F
        else:
            track, sector = divmod(self._lba, SECTORS_PER_TRACK)
            cylinder, head = divmod(track, HEADS)
            value = sector + 1 | cylinder << 8
            self._device = self._device & 0xF0 | head
        self._lba_low, self._lba_mid, self._lba_high = value & 0xFF, value >> 8 & 0xFF, value >> 16 & 0xFF

    def _ask(self, kind: RequestKind) -> None:
        self._status = BUSY
        self._request_kind = kind

    def _offer(self) -> None:
        """A sector for the guest is in the buffer."""
        self._status = READY | SEEK_DONE | DATA_REQUEST
        self._at = 0
        self._pending = True

    def _next_sector(self) -> None:
        """One is done. After a read that is when the guest has it all."""
        self._left -= 1
        self._count = self._left & 0xFF
        if self._left == 0:
            self._show_address()
            self._finish(quiet=self._transfer in (_Transfer.READ, _Transfer.IDENTIFY))
            return
        self._lba += 1
        self._show_address()
        if self._transfer is _Transfer.WRITE:
            self._offer()
        else:
            self._ask(RequestKind.READ)

    def _finish(self, error: int = 0, *, fault: bool = False, quiet: bool = False) -> None:
        """The command is over. `quiet`: its last interrupt was for the last sector."""
        self._error = error
        self._status = READY | SEEK_DONE | (FAILED if error else 0) | (FAULT if fault else 0)
        self._transfer = _Transfer.NONE
        self._pending = self._pending or not quiet

    # -- data

    def _read_data(self, length: int) -> bytes:
        if not self._status & DATA_REQUEST or self._transfer is _Transfer.WRITE:
            return b"\xff" * length
        data = bytes(self._buffer[self._at : self._at + length])
        self._at += length
        if self._at >= SECTOR_BYTES:
            self._status &= ~DATA_REQUEST
            if self._transfer is _Transfer.IDENTIFY:
                self._finish(quiet=True)
            else:
                self._next_sector()
        return data + b"\xff" * (length - len(data))

    def _write_data(self, data: bytes) -> None:
        if not self._status & DATA_REQUEST or self._transfer is not _Transfer.WRITE:
            return
        taken = data[: SECTOR_BYTES - self._at]
        self._buffer[self._at : self._at + len(taken)] = taken
        self._at += len(taken)
        if self._at == SECTOR_BYTES:
            self._ask(RequestKind.WRITE)

    # -- state

    def save(self) -> bytes:
        return _STATE.pack(
            self._features,
            self._control,
            self._status,
            self._error,
            self._count,
            self._lba_low,
            self._lba_mid,
            self._lba_high,
            self._device,
            self._request_kind,
            self._transfer,
            self._pending,
            self._at,
            self._left,
            self._lba,
            bytes(self._buffer),
        )

    def restore(self, state: bytes) -> None:
        (
            self._features,
            self._control,
            self._status,
            self._error,
            self._count,
            self._lba_low,
            self._lba_mid,
            self._lba_high,
            self._device,
            request_kind,
            transfer,
            pending,
            self._at,
            self._left,
            self._lba,
            buffer,
        ) = _STATE.unpack(state)
        self._request_kind, self._transfer = RequestKind(request_kind), _Transfer(transfer)
        self._pending, self._buffer = bool(pending), bytearray(buffer)
        if not self._makes_sense:
            raise ValueError(
                f"{self._request_kind.name}, {self._transfer.name}: byte {self._at} of {self._lba}"
            )
        self._watch_line()

    @property
    def _makes_sense(self) -> bool:
        """Of a state from elsewhere: nothing that follows from it reaches beyond the medium, or writes to one that is
        only read."""
        kind, transfer = self._request_kind, self._transfer
        wanted: dict[RequestKind, tuple[_Transfer, ...]] = {
            RequestKind.READ: (_Transfer.READ, _Transfer.VERIFY),
            RequestKind.WRITE: (_Transfer.WRITE,),
        }
        if self._at > SECTOR_BYTES or transfer not in wanted.get(kind, tuple(_Transfer)):
            return False
        if self._status & DATA_REQUEST and (kind is not RequestKind.NONE or transfer in _WITHOUT_DATA):
            return False
        if transfer in (_Transfer.NONE, _Transfer.IDENTIFY):
            return transfer is _Transfer.NONE or self._left == 1
        may_write = transfer is not _Transfer.WRITE or not self._read_only
        return may_write and self._left > 0 and self._lba + self._left <= self._sectors
