"""A guest that lies: about its pages, its lengths, its CDBs. It hurts its own request and nothing else."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitions.storage.identity import (
    DiskIdentity,
)
from partitions.storage.protocol import (
    Direction,
    NtStatus,
    Operation,
    Packet,
    ScsiRequest,
    SrbStatus,
)
from partitions.storage.scsi import (
    Command,
    Inquiry,
    ReadBlocks,
    Unmap,
    WriteBlocks,
    build_cdb,
)
from partitions.storage.target import (
    Action,
    Data,
    Discard,
    Read,
    ReadParameters,
    Refuse,
    ScsiDisk,
    Write,
)
from tests.partitions.storage_guest import (
    BLOCKS,
    FIRST_GPFN,
    GUEST_PAGES,
    SIZE,
    TRANSFER_MAX,
    Guest,
    gpa_range,
    succeeded,
)

_IDENTITY = DiskIdentity(size_bytes=SIZE, serial="x", max_transfer_bytes=TRANSFER_MAX)

any_request = st.builds(
    lambda **fields: ScsiRequest(**fields),  # the others as they usually are
    path=st.sampled_from([0, 0, 0, 1]),
    target=st.sampled_from([0, 0, 0, 255]),
    lun=st.sampled_from([0, 0, 0, 3]),
    cdb_length=st.integers(0, 255),
    sense_length=st.integers(0, 255),
    direction=st.integers(0, 255) | st.integers(0, 2),
    transfer_bytes=st.integers(0, 2**32 - 1),
    cdb_or_sense=st.one_of(
        st.binary(min_size=20, max_size=20),
        st.tuples(
            st.sampled_from([0x28, 0x2A, 0x88, 0x8A, 0x08, 0x0A, 0x12, 0x1A, 0x5A, 0x42, 0x9E]),
            st.binary(min_size=19, max_size=19),
        ).map(lambda pair: bytes([pair[0]]) + pair[1]),
    ),
)


@settings(max_examples=500)
@given(any_request, st.integers(0, TRANSFER_MAX * 2), st.booleans())
def test_whatever_is_asked_no_action_leaves_the_disk_or_the_pages(
    request: ScsiRequest, data_bytes: int, read_only: bool
) -> None:
    identity = DiskIdentity(size_bytes=SIZE, serial="x", max_transfer_bytes=TRANSFER_MAX, read_only=read_only)
    action: Action = ScsiDisk(identity).decide(request, data_bytes)
    match action:
        case Read(offset, length) | Write(offset, length):
            assert 0 <= offset <= offset + length <= SIZE
            assert offset % 512 == length % 512 == 0
            assert length <= min(data_bytes, TRANSFER_MAX)
            assert length == 0 or request.direction == (
                Direction.READ if isinstance(action, Read) else Direction.WRITE
            )
            assert not (read_only and isinstance(action, Write))
        case ReadParameters(length):
            assert length <= data_bytes
            assert not read_only
        case Data(payload):
            assert len(payload) <= data_bytes
        case Discard():
            raise AssertionError("a discard without parameters")
        case _:
            pass


@given(st.binary(min_size=8, max_size=100))
def test_whatever_unmap_lists_no_discard_leaves_the_disk(parameters: bytes) -> None:
    decision = ScsiDisk(_IDENTITY).decide_unmap(parameters)
    if isinstance(decision, Discard):
        assert all(0 <= at <= at + size <= SIZE and size > 0 for at, size in decision.ranges)
    else:
        assert isinstance(decision, Refuse)


@pytest.mark.parametrize(
    ("extra", "transfer"),
    [
        (b"", 512),  # in-band, but bytes are asked for
        (struct.pack("<II", 0, 0), 512),  # no range
        (struct.pack("<II", 0, 1), 512),  # one range announced, none there
        (struct.pack("<IIIIQ", 0, 2, 512, 0, FIRST_GPFN) * 2, 512),  # two ranges
        (struct.pack("<IIIIQ", 0, 2**32 - 1, 512, 0, FIRST_GPFN), 512),
        (gpa_range(0, 256, [FIRST_GPFN]), 512),  # pages for half of it
        (gpa_range(0, 0, [FIRST_GPFN]), 512),
        (gpa_range(4096, 512, [FIRST_GPFN, FIRST_GPFN]), 512),  # offset outside its page
        (gpa_range(2**32 - 1, 2**32 - 1, [FIRST_GPFN]), 512),  # overflows 32 bits
        (gpa_range(0, 2**32 - 512, [FIRST_GPFN]), 512),  # far more than its PFNs cover
        (gpa_range(4000, 512, [FIRST_GPFN]), 512),  # the second page is missing
        (gpa_range(0, 512, [FIRST_GPFN - 1]), 512),  # not our page
        (gpa_range(4000, 512, [FIRST_GPFN, 2**64 - 1]), 512),
        (gpa_range(0, 512, [FIRST_GPFN + GUEST_PAGES]), 512),
        (gpa_range(0, 512, [FIRST_GPFN]), 2**32 - 1),
    ],
)
@pytest.mark.parametrize("reading", [True, False])
def test_pages_that_are_not_the_guests_fail_that_request_only(
    extra: bytes, transfer: int, reading: bool
) -> None:
    guest = Guest()
    before, disk_before = bytes(guest.memory), read_all(guest)
    command: Command = ReadBlocks(0, 1) if reading else WriteBlocks(0, 1)
    cdb = build_cdb(command)
    request = ScsiRequest(
        cdb_length=len(cdb),
        direction=Direction.READ if reading else Direction.WRITE,
        transfer_bytes=transfer,
        cdb_or_sense=cdb,
    )
    guest.memory[:] = before
    status, answer = guest.send(request, extra)
    assert status == NtStatus.INVALID_PARAMETER
    assert answer.srb_status == SrbStatus.INVALID_REQUEST
    assert answer.transfer_bytes == 0
    assert guest.memory == before
    assert guest.executor.counters.malformed == 1
    assert read_all(guest) == disk_before, "and the next request works"


def read_all(guest: Guest) -> bytes:
    data = b""
    for lba in range(0, BLOCKS, 64):
        assert succeeded(guest.run(ReadBlocks(lba, 64), Direction.READ, TRANSFER_MAX))
        data += bytes(guest.memory[:TRANSFER_MAX])
    return data


@pytest.mark.parametrize("command", [ReadBlocks(0, 2), WriteBlocks(0, 2)])
def test_more_blocks_than_pages_is_a_data_overrun(command: Command) -> None:
    direction = Direction.READ if isinstance(command, ReadBlocks) else Direction.WRITE
    answer = Guest().run(command, direction, 1023)
    assert (answer.srb_status, answer.transfer_bytes) == (SrbStatus.DATA_OVERRUN, 0)


def test_more_pages_than_blocks_moves_the_blocks_and_says_how_much() -> None:
    guest = Guest()
    guest.memory[:] = b"m" * len(guest.memory)
    answer = guest.run(ReadBlocks(0, 1), Direction.READ, 2048)
    assert succeeded(answer)
    assert answer.transfer_bytes == 512
    assert guest.memory[512:] == b"m" * (len(guest.memory) - 512)


@pytest.mark.parametrize(
    ("command", "direction"),
    [
        (ReadBlocks(0, 1), Direction.WRITE),
        (ReadBlocks(0, 1), Direction.NONE),
        (WriteBlocks(0, 1), Direction.READ),
        (Inquiry(36), Direction.WRITE),
        (Unmap(24), Direction.READ),
    ],
)
def test_the_wrong_direction_is_an_invalid_request(command: Command, direction: Direction) -> None:
    guest = Guest()
    answer = guest.run(command, direction, 512)
    assert answer.srb_status == SrbStatus.INVALID_REQUEST


@pytest.mark.parametrize("cdb_length", [0, 17, 255])
def test_a_cdb_length_that_is_a_lie_is_an_invalid_request(cdb_length: int) -> None:
    answer = Guest().run(ReadBlocks(0, 1), Direction.READ, 512, cdb_length=cdb_length)
    assert answer.srb_status == SrbStatus.INVALID_REQUEST


@settings(max_examples=300)
@given(st.binary(max_size=80), st.binary(max_size=64))
def test_no_packet_stops_the_server(extra: bytes, payload: bytes) -> None:
    guest = Guest()
    answer = guest.executor.execute(extra, payload)
    assert len(answer) in (48, 64)
    assert Packet.parse(answer).operation == Operation.COMPLETE_IO
    assert succeeded(guest.run(ReadBlocks(0, 1), Direction.READ, 512))


@settings(max_examples=300)
@given(any_request, st.binary(max_size=64) | st.just(gpa_range(0, 4096, [FIRST_GPFN])))
def test_no_srb_stops_the_server(request: ScsiRequest, extra: bytes) -> None:
    guest = Guest()
    guest.send(request, extra)
    assert succeeded(guest.run(ReadBlocks(0, 1), Direction.READ, 512))


def test_a_guest_older_than_5_1_gets_replies_of_48_bytes() -> None:
    guest = Guest()
    cdb = build_cdb(ReadBlocks(0, 1))
    request = ScsiRequest(cdb_length=len(cdb), direction=1, transfer_bytes=512, cdb_or_sense=cdb)
    packet = Packet(Operation.EXECUTE_SRB, 1, 0, request.build()[:36], size_bytes=48)
    status, answer = guest.send(request, gpa_range(0, 512, [FIRST_GPFN]), packet)
    assert status == NtStatus.SUCCESS
    assert succeeded(answer)
