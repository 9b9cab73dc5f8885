"""The IDE disk against a plain array of sectors, its errors, resets, and a disk that is slow or fails."""

import random
import struct
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from partitions.emulated.ide import (
    ABORTED,
    BUSY,
    COMMAND,
    CONTROL,
    COUNT,
    DATA,
    DATA_REQUEST,
    DEVICE,
    ERROR,
    FAILED,
    FAULT,
    LBA_HIGH,
    LBA_LOW,
    LBA_MID,
    NOT_FOUND,
    READY,
    SECTOR_BYTES,
    STATUS,
    UNCORRECTABLE,
    DiskRequest,
    IdeDisk,
    RequestKind,
)
from partitions.emulated.ide_commands import Command
from partitions.emulated.ide_identity import HEADS, SECTORS_PER_TRACK

SECTORS = 4000
NOISE = random.Random(1).randbytes(SECTORS * SECTOR_BYTES)


class Medium:
    """Carries requests out at once, until it is told to fail."""

    def __init__(self) -> None:
        self.data = bytearray(NOISE)
        self.fails = False
        self.flushed = 0

    def __call__(self, request: DiskRequest) -> bytes | None:
        if self.fails:
            return None
        at = request.lba * SECTOR_BYTES
        if request.kind is RequestKind.READ:
            return bytes(self.data[at : at + SECTOR_BYTES])
        if request.kind is RequestKind.WRITE:
            self.data[at : at + SECTOR_BYTES] = request.data
        else:
            self.flushed += 1
        return b""


class Driver:
    """As a PC's, by polling."""

    def __init__(self, read_only: bool = False) -> None:
        self.medium = Medium()
        self.disk = IdeDisk(SECTORS, "disk0", read_only)
        self.read_only = read_only

    def serve(self) -> None:
        while (request := self.disk.request) is not None:
            assert self.disk.read(CONTROL, 1) == BUSY
            self.disk.complete(request, self.medium(request))

    def replace(self) -> None:
        """By one that goes on from its state."""
        successor = IdeDisk(SECTORS, "disk0", self.read_only)
        successor.restore(self.disk.save())
        self.disk = successor

    def command(self, command: int, lba: int = 0, count: int = 0, device: int = 0x40) -> int:
        self.disk.write(DEVICE, 1, device | lba >> 24)
        self.disk.write(COUNT, 1, count & 0xFF)
        for offset, shift in ((LBA_LOW, 0), (LBA_MID, 8), (LBA_HIGH, 16)):
            self.disk.write(offset, 1, lba >> shift & 0xFF)
        self.disk.write(COMMAND, 1, command)
        self.serve()
        return self.disk.read(STATUS, 1)

    def take(self, count: int, between: Callable[[], None] = lambda: None) -> bytes:
        found = b""
        for _ in range(count):
            assert self.disk.read(STATUS, 1) & DATA_REQUEST
            for _ in range(SECTOR_BYTES // 4):
                found += self.disk.read(DATA, 2).to_bytes(2, "little")
                between()
            found += self.disk.read_string(DATA, 2, SECTOR_BYTES // 4)
            self.serve()
        return found

    def give(self, data: bytes, between: Callable[[], None] = lambda: None) -> None:
        for at in range(0, len(data), SECTOR_BYTES):
            assert self.disk.read(STATUS, 1) & DATA_REQUEST
            sector = data[at : at + SECTOR_BYTES]
            for (word,) in struct.iter_unpack("<I", sector[:256]):
                self.disk.write(DATA, 4, word)
                between()
            self.disk.write_string(DATA, 2, sector[256:])
            self.serve()


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, SECTORS + 2), st.integers(1, 5), st.integers(0, 2**32)),
        max_size=10,
    )
)
@settings(max_examples=20, deadline=None)
def test_sectors_read_what_was_written_last_whoever_serves_them(
    commands: list[tuple[bool, int, int, int]],
) -> None:
    """Multi-sector commands in any order; the disk is replaced by a successor in the middle of them."""
    driver = Driver()
    model = bytearray(driver.medium.data)

    for is_write, lba, count, seed in commands:
        rng = random.Random(seed)

        def between(rng: random.Random = rng) -> None:
            if rng.random() < 0.02:
                driver.replace()

        command = Command.WRITE_SECTORS if is_write else Command.READ_SECTORS
        status = driver.command(command, lba, count)
        if lba + count > SECTORS:
            assert status & FAILED
            assert driver.disk.read(ERROR, 1) == NOT_FOUND
            continue
        start, end = lba * SECTOR_BYTES, (lba + count) * SECTOR_BYTES
        if is_write:
            data = rng.randbytes(count * SECTOR_BYTES)
            driver.give(data, between)
            model[start:end] = data
        else:
            assert driver.take(count, between) == model[start:end]
        assert driver.disk.read(STATUS, 1) & ~0x10 == READY
        assert driver.disk.read(COUNT, 1) == 0
        assert driver.disk.read(LBA_LOW, 1) == (lba + count - 1) & 0xFF
    assert driver.medium.data == model


def test_cylinders_heads_and_sectors_name_the_same_sectors() -> None:
    driver = Driver()
    for lba in (0, 62, 63, 1007, 1008, 2500):
        track, sector = divmod(lba, SECTORS_PER_TRACK)
        cylinder, head = divmod(track, HEADS)
        chs = sector + 1 | cylinder << 8
        assert driver.command(Command.READ_SECTORS, chs, 1, device=head) & DATA_REQUEST
        assert driver.take(1) == driver.medium.data[lba * 512 : (lba + 1) * 512]
        found = [driver.disk.read(offset, 1) for offset in (LBA_LOW, LBA_MID, LBA_HIGH)]
        assert found == [sector + 1, cylinder & 0xFF, cylinder >> 8]
    for chs, head in ((0, 0), (64, 0), (1 | 3 << 8, 15)):  # no sector 0 or 64, and cylinder 3 is not whole
        assert driver.command(Command.READ_SECTORS, chs, 1, device=head) & FAILED


def test_a_count_of_zero_is_256_sectors() -> None:
    driver = Driver()
    assert driver.command(Command.READ_SECTORS, 100, 0) & DATA_REQUEST
    assert driver.take(256) == driver.medium.data[100 * 512 : 356 * 512]
    assert not driver.disk.read(STATUS, 1) & DATA_REQUEST


def test_identify_says_what_the_disk_is() -> None:
    driver = Driver()
    assert driver.command(Command.IDENTIFY) & DATA_REQUEST
    data = driver.take(1)
    assert sum(data) & 0xFF == 0
    words = struct.unpack("<256H", data)
    assert words[60] | words[61] << 16 == SECTORS
    assert (words[1], words[3], words[6]) == (SECTORS // (16 * 63), 16, 63)
    assert words[49] & 0x0200
    text = b"".join(struct.pack(">H", word) for word in words[10:20])
    assert text.decode().strip() == "disk0"


def test_the_commands_around_the_data() -> None:
    driver = Driver()
    assert driver.command(Command.FLUSH_CACHE) & ~0x10 == READY
    assert driver.medium.flushed == 1
    assert driver.command(Command.VERIFY_SECTORS, 10, 3) & ~0x10 == READY
    assert driver.command(Command.VERIFY_SECTORS, SECTORS - 1, 2) & FAILED
    for harmless in (0x10, 0x70, 0x91, 0xE0):
        assert driver.command(harmless) & ~0x10 == READY
    for unknown in (0x00, 0xA1, 0xC4, 0xC8, 0xFF):
        assert driver.command(unknown) & FAILED
        assert driver.disk.read(ERROR, 1) == ABORTED
    assert driver.command(Command.EXECUTE_DIAGNOSTIC) & ~0x10 == READY
    signature = [driver.disk.read(offset, 1) for offset in (ERROR, COUNT, LBA_LOW, LBA_MID, LBA_HIGH)]
    assert signature == [1, 1, 1, 0, 0]


def test_there_is_no_slave() -> None:
    driver = Driver()
    assert driver.command(Command.IDENTIFY, device=0x50) == 0
    assert driver.disk.request is None
    assert driver.command(Command.IDENTIFY) & DATA_REQUEST


def test_a_medium_that_fails_is_an_error_of_the_command() -> None:
    driver = Driver()
    driver.medium.fails = True
    assert driver.command(Command.READ_SECTORS, 7, 2) & FAILED
    assert driver.disk.read(ERROR, 1) == UNCORRECTABLE
    assert driver.disk.read(LBA_LOW, 1) == 7
    driver.command(Command.WRITE_SECTORS, 9, 1)
    driver.give(bytes(512))
    assert driver.disk.read(STATUS, 1) & (FAILED | FAULT) == FAILED | FAULT
    assert driver.command(Command.FLUSH_CACHE) & (FAILED | FAULT) == FAILED | FAULT
    driver.medium.fails = False
    assert driver.command(Command.READ_SECTORS, 7, 1) & DATA_REQUEST


def test_a_read_only_disk_aborts_writes() -> None:
    driver = Driver(read_only=True)
    assert driver.command(Command.WRITE_SECTORS, 0, 1) & FAILED
    assert driver.disk.read(ERROR, 1) == ABORTED
    assert driver.command(Command.READ_SECTORS, 0, 1) & DATA_REQUEST


def test_a_busy_disk_takes_no_commands_and_a_reset_forgets_the_request() -> None:
    driver = Driver()
    disk = driver.disk
    disk.write(DEVICE, 1, 0x40)
    disk.write(COUNT, 1, 1)
    disk.write(COMMAND, 1, Command.READ_SECTORS)
    request = disk.request
    assert request is not None
    before = disk.save()
    disk.write(COMMAND, 1, Command.IDENTIFY)
    disk.write(LBA_LOW, 1, 99)
    assert disk.save() == before
    assert disk.read(DATA, 2) == 0xFFFF
    disk.write(CONTROL, 1, 0x04)
    assert disk.read(CONTROL, 1) == BUSY
    disk.write(CONTROL, 1, 0x00)
    before = disk.save()
    disk.complete(request, bytes(512))  # too late
    assert disk.save() == before
    assert disk.read(STATUS, 1) & ~0x10 == READY
    assert disk.read(LBA_LOW, 1) == 1


def test_interrupts_come_with_data_and_with_the_end_and_only_if_wanted() -> None:
    driver = Driver()
    disk = driver.disk
    driver.command(Command.READ_SECTORS, 0, 2)  # its status was read: that was the acknowledgement
    assert disk.take_interrupt()
    for _ in range(256):
        disk.read(DATA, 2)
    driver.serve()
    assert disk.take_interrupt()
    driver.disk.read(STATUS, 1)
    for _ in range(256):
        disk.read(DATA, 2)
    assert not disk.take_interrupt()  # nothing more after the last sector
    driver.command(Command.WRITE_SECTORS, 0, 1)
    assert not disk.take_interrupt()  # the first sector is asked for without one
    driver.give(bytes(512))
    assert disk.take_interrupt()
    disk.write(CONTROL, 1, 0x02)
    driver.command(Command.FLUSH_CACHE)
    assert not disk.take_interrupt()


@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.integers(0, 8),
            st.sampled_from([1, 2, 4]),
            st.integers(0, 2**32 - 1) | st.sampled_from(list(Command)),
            st.booleans(),
        ),
        max_size=80,
    )
)
@settings(max_examples=60, deadline=None)
def test_garbage_is_answered_and_a_successor_answers_the_same(
    accesses: list[tuple[bool, int, int, int, bool]],
) -> None:
    disk, medium = IdeDisk(SECTORS, "x", False), Medium()
    for is_write, offset, size, value, served in accesses:
        successor = IdeDisk(SECTORS, "x", False)
        successor.restore(disk.save())
        value &= (1 << 8 * size) - 1
        if is_write:
            disk.write(offset, size, value)
            successor.write(offset, size, value)
        else:
            answer = disk.read(offset, size)
            assert answer == successor.read(offset, size)
            assert 0 <= answer < 1 << 8 * size
        assert disk.save() == successor.save()
        assert disk.request == successor.request
        if served and (request := disk.request) is not None:
            assert request.lba < SECTORS
            disk.complete(request, medium(request))
    assert len(medium.data) == SECTORS * SECTOR_BYTES
