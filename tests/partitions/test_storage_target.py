"""The SCSI disk behind a storvsp session, against a model and an honest guest."""

import errno
import os
import random

import pytest

from partitions.storage.backends import DescriptorBackend
from partitions.storage.identity import (
    UNMAP_BYTES_MAX,
    VPD_PAGES,
    DiskIdentity,
    parse_capacity_10,
    parse_capacity_16,
    parse_inquiry,
    parse_write_protected,
)
from partitions.storage.protocol import (
    SRB_AUTOSENSE_VALID,
    SRB_STATUS_MASK,
    Direction,
    ScsiRequest,
    ScsiStatus,
    SrbStatus,
)
from partitions.storage.scsi import (
    Command,
    Inquiry,
    ModeSense,
    ReadBlocks,
    ReadCapacity,
    ReportLuns,
    RequestSense,
    SynchronizeCache,
    TestUnitReady,
    Unmap,
    WriteBlocks,
    build_cdb,
)
from partitions.storage.sense import (
    INVALID_FIELD_IN_CDB,
    INVALID_FIELD_IN_PARAMETERS,
    INVALID_OPCODE,
    LBA_OUT_OF_RANGE,
    LUN_NOT_SUPPORTED,
    PARAMETER_LIST_LENGTH,
    READ_ERROR,
    SAVING_NOT_SUPPORTED,
    SENSE_BYTES,
    SPACE_EXHAUSTED,
    WRITE_ERROR,
    WRITE_PROTECTED,
    Sense,
    parse_sense,
)
from partitions.storage.target import (
    Data,
    Discard,
    Refuse,
    ScsiDisk,
    build_unmap_parameters,
)
from tests.partitions.storage_guest import (
    BLOCKS,
    GUEST_PAGES,
    PAGE,
    SIZE,
    TRANSFER_MAX,
    FailingBackend,
    Guest,
    code,
    sense_of,
    succeeded,
)


def test_the_set_up_learns_what_the_disk_is() -> None:
    guest = Guest()
    assert guest.description.capacity.size_bytes == SIZE
    assert guest.description.capacity.block_bytes == 512
    assert guest.description.max_transfer_bytes == TRANSFER_MAX
    assert guest.description.serial == "test"
    assert guest.description.version == 0x0600
    assert guest.description.can_discard


@pytest.mark.parametrize("seed", range(40))
def test_any_mix_of_commands_agrees_with_a_bytearray(seed: int) -> None:
    """Reads, writes and unmaps, in and out of range, from any byte offset in guest pages."""
    rng, guest, model = random.Random(seed), Guest(), bytearray(SIZE)
    memory = guest.memory
    for _ in range(150):
        lba, blocks = rng.randrange(BLOCKS + 2), rng.randrange(0, 40)
        length, start = blocks * 512, rng.randrange(2 * PAGE)
        inside = lba + blocks <= BLOCKS
        at, size = lba * 512, length
        match rng.randrange(3):
            case 0:
                before = bytes(memory)
                answer = guest.run(ReadBlocks(lba, blocks), Direction.READ, length, start=start)
                if inside:
                    assert memory[start : start + size] == model[at : at + size]
                    assert memory[:start] == before[:start], "no byte outside the range is touched"
                    assert memory[start + size :] == before[start + size :]
                else:
                    assert memory == before
            case 1:
                memory[start : start + size] = rng.randbytes(size)
                command = WriteBlocks(lba, blocks, rng.random() < 0.3)
                answer = guest.run(command, Direction.WRITE, length, start=start)
                if inside:
                    model[at : at + size] = memory[start : start + size]
            case _:
                parameters = build_unmap_parameters([(lba, blocks), (0, 0)])
                memory[start : start + len(parameters)] = parameters
                answer = guest.run(Unmap(len(parameters)), Direction.WRITE, len(parameters), start=start)
                length = 0
                if inside:
                    model[at : at + size] = bytes(size)
        if inside:
            assert succeeded(answer)
            assert answer.transfer_bytes == length
        else:
            assert sense_of(answer) == code(LBA_OUT_OF_RANGE)
    assert guest.run(SynchronizeCache()).srb_status == SrbStatus.SUCCESS


def test_commands_that_describe_the_disk() -> None:
    guest = Guest()
    memory = guest.memory

    def ask(command: Command, room: int = 512) -> bytes:
        answer = guest.run(command, Direction.READ, room)
        assert succeeded(answer)
        return bytes(memory[: answer.transfer_bytes])

    inquiry = parse_inquiry(ask(Inquiry(96)))
    assert inquiry is not None
    assert (inquiry.present, inquiry.vendor) == (True, "PARTVSR")
    pages = ask(Inquiry(255, 0x00))
    assert tuple(pages[4:]) == VPD_PAGES
    for page in VPD_PAGES:
        data = ask(Inquiry(255, page))
        assert data[1] == page
        assert len(data) == 4 + int.from_bytes(data[2:4], "big")
    assert ask(Inquiry(255, 0x80))[4:] == b"test"
    assert int.from_bytes(ask(Inquiry(255, 0xB0))[8:12], "big") * 512 == TRANSFER_MAX
    assert ask(Inquiry(255, 0xB1))[4:6] == b"\0\1"
    assert ask(Inquiry(255, 0xB2))[5] & 0x80
    ten, sixteen = parse_capacity_10(ask(ReadCapacity())), parse_capacity_16(ask(ReadCapacity(32, long=True)))
    assert ten is not None
    assert sixteen is not None
    assert ten.size_bytes == sixteen.size_bytes == SIZE
    assert ask(ReportLuns(16)) == bytes([0, 0, 0, 8]) + bytes(12)
    assert ask(ReportLuns(16, 1)) == bytes(8), "no well-known logical units"
    for mode in (ModeSense(0x3F, 192), ModeSense(0x08, 192), ModeSense(0x0A, 192, page_control=2)):
        data = ask(mode)
        assert data[0] + 1 == len(data)
        assert parse_write_protected(data) is False
    long = ask(ModeSense(0x3F, 512, long=True))
    assert int.from_bytes(long[:2], "big") + 2 == len(long)
    caching = ask(ModeSense(0x08, 192, no_block_descriptor=True))
    assert caching[6] & 4, "there is a write cache to be flushed"
    changeable = ask(ModeSense(0x08, 192, page_control=1, no_block_descriptor=True))
    assert not changeable[6], "nothing can be changed"
    assert ask(RequestSense(18))[2] == 0
    assert ask(Inquiry(5)) == ask(Inquiry(96))[:5], "cut to the allocation length"
    assert ask(Inquiry(96), room=7) == ask(Inquiry(96))[:7], "cut to the pages"
    assert succeeded(guest.run(TestUnitReady()))


def test_a_disk_beyond_2_tib_says_so() -> None:
    identity = DiskIdentity(size_bytes=3 << 40, serial="x", max_transfer_bytes=TRANSFER_MAX)
    request = ScsiRequest(direction=1, cdb_length=10, cdb_or_sense=build_cdb(ReadCapacity()))
    small = ScsiDisk(identity).decide(request, 512)
    assert isinstance(small, Data)
    assert parse_capacity_10(small.payload) is None
    cdb = build_cdb(ReadCapacity(32, long=True))
    large = ScsiDisk(identity).decide(ScsiRequest(direction=1, cdb_length=16, cdb_or_sense=cdb), 512)
    assert isinstance(large, Data)
    capacity = parse_capacity_16(large.payload)
    assert capacity is not None
    assert capacity.size_bytes == 3 << 40


@pytest.mark.parametrize(
    ("command", "direction", "length", "sense"),
    [
        (b"\xc1" + bytes(15), Direction.NONE, 0, INVALID_OPCODE),
        (ReadBlocks(BLOCKS, 1), Direction.READ, 512, LBA_OUT_OF_RANGE),
        (ReadBlocks(2**64 - 1, 2), Direction.READ, 1024, LBA_OUT_OF_RANGE),
        (WriteBlocks(BLOCKS - 1, 2), Direction.WRITE, 1024, LBA_OUT_OF_RANGE),
        (SynchronizeCache(BLOCKS + 1, 0), Direction.NONE, 0, LBA_OUT_OF_RANGE),
        (ReadBlocks(0, BLOCKS), Direction.READ, SIZE, INVALID_FIELD_IN_CDB),  # above the maximum transfer
        (ModeSense(0x1D, 192), Direction.READ, 192, INVALID_FIELD_IN_CDB),
        (ModeSense(0x08, 192, page_control=3), Direction.READ, 192, SAVING_NOT_SUPPORTED),
        (Inquiry(255, 0xC0), Direction.READ, 255, INVALID_FIELD_IN_CDB),
        (RequestSense(18, True), Direction.READ, 18, INVALID_FIELD_IN_CDB),
        (Unmap(7), Direction.WRITE, 7, PARAMETER_LIST_LENGTH),
        (Unmap(65535), Direction.WRITE, 65535, PARAMETER_LIST_LENGTH),
    ],
)
def test_what_a_disk_refuses_it_refuses_with_the_right_sense(
    command: Command | bytes, direction: Direction, length: int, sense: Sense
) -> None:
    guest = Guest(memory=bytearray(GUEST_PAGES * PAGE))
    answer = guest.run(command, direction, length)
    assert sense_of(answer) == code(sense)
    assert answer.srb_status & SRB_STATUS_MASK == SrbStatus.ERROR


def test_out_of_range_names_the_first_bad_block() -> None:
    sense = parse_sense(Guest().run(ReadBlocks(BLOCKS - 1, 3), Direction.READ, 1536).sense)
    assert sense is not None
    assert sense.information == BLOCKS


@pytest.mark.parametrize("room", [0, 8, 18, 20, 255])
def test_sense_is_cut_to_the_guests_room(room: int) -> None:
    answer = Guest().run(ReadBlocks(BLOCKS, 1), Direction.READ, 512, sense_length=room)
    assert answer.sense_length == min(room, SENSE_BYTES)
    assert bool(answer.srb_status & SRB_AUTOSENSE_VALID) == (room > 0)
    assert answer.scsi_status == ScsiStatus.CHECK_CONDITION


def test_unmap_is_all_or_nothing() -> None:
    guest = Guest()
    guest.memory[:512] = b"x" * 512
    assert succeeded(guest.run(WriteBlocks(0, 1), Direction.WRITE, 512))
    for ranges, kept in (([(0, 1), (BLOCKS, 1)], True), ([(0, 1), (5, 0), (0, 1)], False)):
        parameters = build_unmap_parameters(ranges)
        guest.memory[: len(parameters)] = parameters
        answer = guest.run(Unmap(len(parameters)), Direction.WRITE, len(parameters))
        assert succeeded(answer) != kept
        guest.run(ReadBlocks(0, 1), Direction.READ, 512)
        assert guest.memory[:512] == (b"x" * 512 if kept else bytes(512))


def test_an_unmap_that_would_take_for_ever_is_refused() -> None:
    identity = DiskIdentity(size_bytes=1 << 40, serial="x", max_transfer_bytes=TRANSFER_MAX)
    blocks = UNMAP_BYTES_MAX // 512
    decision = ScsiDisk(identity).decide_unmap(build_unmap_parameters([(0, blocks), (0, 1)]))
    assert decision == Refuse(SrbStatus.ERROR, INVALID_FIELD_IN_PARAMETERS)
    assert isinstance(ScsiDisk(identity).decide_unmap(build_unmap_parameters([(0, blocks)])), Discard)


@pytest.mark.parametrize(("field_name", "value"), [("lun", 1), ("target", 2), ("path", 3)])
def test_where_there_is_no_disk_inquiry_says_so_and_the_rest_is_refused(field_name: str, value: int) -> None:
    guest = Guest()
    where = {field_name: value}
    answer = guest.run(Inquiry(36), Direction.READ, 36, **where)
    assert succeeded(answer)
    assert guest.memory[0] == 0x7F
    answer = guest.run(ReadBlocks(0, 1), Direction.READ, 512, **where)
    assert sense_of(answer) == code(LUN_NOT_SUPPORTED)
    assert answer.srb_status & SRB_STATUS_MASK == SrbStatus.INVALID_LUN
    assert succeeded(guest.run(ReportLuns(16), Direction.READ, 16, **where))


@pytest.mark.parametrize(
    ("number", "write_sense", "read_sense"),
    [
        (errno.ENOSPC, SPACE_EXHAUSTED, None),
        (errno.EFBIG, SPACE_EXHAUSTED, None),
        (errno.EDQUOT, SPACE_EXHAUSTED, None),
        (errno.EROFS, WRITE_PROTECTED, None),
        (errno.EIO, WRITE_ERROR, READ_ERROR),
    ],
)
def test_a_backends_errno_reaches_the_guest_as_sense(
    number: int, write_sense: Sense, read_sense: Sense | None
) -> None:
    backend = FailingBackend()
    guest = Guest(backend)
    backend.number = number
    assert sense_of(guest.run(WriteBlocks(0, 1), Direction.WRITE, 512)) == code(write_sense)
    assert sense_of(guest.run(SynchronizeCache())) == code(write_sense)
    got = sense_of(guest.run(ReadBlocks(0, 1), Direction.READ, 512))
    assert got == code(read_sense if read_sense is not None else Sense(4, 0x44, 0))
    backend.number = 0
    assert succeeded(guest.run(WriteBlocks(0, 1), Direction.WRITE, 512)), "the disk goes on"


def test_a_read_only_disk_says_so_and_cannot_be_written() -> None:
    descriptor = os.memfd_create("disk")
    os.ftruncate(descriptor, SIZE)
    guest = Guest(DescriptorBackend(descriptor, SIZE, read_only=True))
    assert guest.description.read_only
    assert not guest.description.can_discard
    assert sense_of(guest.run(WriteBlocks(0, 1), Direction.WRITE, 512)) == code(WRITE_PROTECTED)
    assert sense_of(guest.run(Unmap(24), Direction.WRITE, 24)) == code(WRITE_PROTECTED)
    assert succeeded(guest.run(ReadBlocks(0, 1), Direction.READ, 512))
