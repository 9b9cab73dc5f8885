"""What packets say of their frames: a VLAN tag ends up on the frame, offloads that nobody offered are refused."""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions.net.frames import packet_header, unpack_frames
from partitions.net.packet_information import InformationType, encode_vlan, information_of, received_with
from partitions.net.rndis import HEAD_BYTES, MalformedRndis

FRAME = bytes(range(64))


def packet(frame: bytes, information: bytes) -> bytes:
    """With its information behind the header, and the frame behind that."""
    offset = 36
    length = 44 + len(information) + len(frame)
    head = (1, length, offset + len(information), len(frame), 0, 0, 0, offset, len(information), 0, 0)
    return struct.pack("<11I", *head) + information + frame


@given(st.integers(0, 4095), st.integers(0, 7), st.booleans(), st.booleans())
def test_a_tag_that_is_asked_for_is_on_the_frame(
    identifier: int, priority: int, eligible: bool, first: bool
) -> None:
    tagged = packet(FRAME, encode_vlan(identifier, priority, eligible))
    plain = packet_header(len(FRAME)) + FRAME
    frames: list[memoryview] = []
    unpack_frames(memoryview(tagged + plain if first else plain + tagged), 1518, frames)
    control = priority << 13 | eligible << 12 | identifier
    wanted = FRAME[:12] + struct.pack(">HH", 0x8100, control) + FRAME[12:]
    assert [bytes(frame) for frame in frames] == ([wanted, FRAME] if first else [FRAME, wanted])


def record(kind: int, value: int) -> bytes:
    return struct.pack("<IIII", 16, kind, 12, value)


@pytest.mark.parametrize(
    "information", [record(InformationType.LARGE_SEND, 1), record(InformationType.CHECKSUM, 0b00101)]
)
def test_an_offload_that_was_not_offered_is_refused_and_the_frames_before_it_stay(information: bytes) -> None:
    frames: list[memoryview] = []
    data = packet_header(len(FRAME)) + FRAME + packet(FRAME, information)
    with pytest.raises(MalformedRndis):
        unpack_frames(memoryview(data), 1518, frames)
    assert [bytes(frame) for frame in frames] == [FRAME]


def test_what_says_nothing_of_a_frame_changes_nothing() -> None:
    """A checksum that is not asked for, a type nobody knows, what is internal to one side."""
    information = record(InformationType.CHECKSUM, 0b00001) + record(77, 5) + record(1 << 31 | 6, 5 << 4)
    frames: list[memoryview] = []
    unpack_frames(memoryview(packet(FRAME, information)), 1518, frames)
    assert [bytes(frame) for frame in frames] == [FRAME]


@given(st.integers(0, 4095), st.sampled_from([0, 0b00101, 0b11111]))
def test_a_guest_gets_the_tag_back_and_takes_no_offence_at_checksums(identifier: int, checksums: int) -> None:
    information = record(InformationType.CHECKSUM, checksums) + encode_vlan(identifier)
    data = memoryview(packet(FRAME, information))
    frame = received_with(data, memoryview(FRAME), 36, len(information))
    assert bytes(frame[12:16]) == struct.pack(">HH", 0x8100, identifier)


@given(
    st.binary(max_size=100),
    st.lists(st.tuples(*[st.integers(0, 40) | st.integers(0, 2**32 - 1)] * 3), max_size=20),
    st.integers(0, 120) | st.integers(0, 2**32 - 1),
    st.integers(0, 400) | st.integers(0, 2**32 - 1),
)
def test_any_information_is_understood_or_refused(
    rest: bytes, records: list[tuple[int, int, int]], offset: int, length: int
) -> None:
    body = b"".join(struct.pack("<III", *one) + rest[:4] for one in records) + rest
    data = memoryview(bytes(HEAD_BYTES + 36) + body)
    with contextlib.suppress(MalformedRndis):
        found = information_of(data, offset, length)
        assert offset + length + HEAD_BYTES <= len(data)
        assert all(not number >> 31 for number in found)
