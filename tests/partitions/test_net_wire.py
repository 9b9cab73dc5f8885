"""NVSP and RNDIS on the wire: known bytes, all values there and back, and nothing but typed errors for the rest."""

import contextlib
import dataclasses
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions.net import nvsp, rndis
from partitions.net.frames import (
    ETHERNET_HEADER_BYTES,
    FramePacker,
    packet_bytes,
    packet_header,
    unpack_frames,
)
from partitions.net.nvsp import MalformedNvsp
from partitions.net.rndis import MalformedRndis

u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
_WIDTHS = {"H": u16, "I": u32, "Q": u64}
FRAME_BYTES_MAX = 1518


def any_of(kind: type[nvsp.Message]) -> st.SearchStrategy[nvsp.Message]:
    """By the letters of its form: what it says is what it packs."""
    letters = [letter for letter in kind.FORM.format if letter in _WIDTHS]
    assert len(letters) == len(dataclasses.fields(kind))
    return st.builds(kind, *(_WIDTHS[letter] for letter in letters))


nvsp_kinds = sorted(
    {*nvsp.GUEST_MESSAGES.values(), *nvsp.SERVER_MESSAGES.values()}, key=lambda kind: kind.TYPE
)
any_info = st.binary(max_size=rndis.INFO_BYTES_MAX)
any_rndis = st.one_of(
    st.builds(rndis.Initialize, u32, u32, u32, u32),
    st.builds(rndis.InitializeComplete, *[u32] * 11),
    st.builds(rndis.Halt, u32),
    st.builds(rndis.KeepAlive, u32),
    st.builds(rndis.KeepAliveComplete, u32, u32),
    st.builds(rndis.Query, u32, u32, any_info),
    st.builds(rndis.Set, u32, u32, any_info),
    st.builds(rndis.QueryComplete, u32, u32, any_info),
    st.builds(rndis.SetComplete, u32, u32),
    st.builds(rndis.IndicateStatus, u32, u32, u32),
)
ALL_RNDIS = {**rndis.GUEST_MESSAGES, **rndis.SERVER_MESSAGES}


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (nvsp.Init(0x60001, 0x60001), "01 00 00 00 01 00 06 00 01 00 06 00"),
        (nvsp.InitComplete(0xFFFFFFFF, 34, 1), "02 00 00 00 ff ff ff ff 22 00 00 00 01 00 00 00"),
        (nvsp.NdisConfig(1514, 8), "7d 00 00 00 ea 05 00 00 00 00 00 00 08 00 00 00 00 00 00 00"),
        (nvsp.SendReceiveBuffer(0xE1E11, 0xCAFE), "65 00 00 00 11 1e 0e 00 fe ca 00 00"),
        (
            nvsp.ReceiveBufferComplete(1, 1, 0, 1792, 3, 5376),
            "66 00 00 00 01 00 00 00 01 00 00 00 00 00 00 00 00 07 00 00 03 00 00 00 00 15 00 00",
        ),
        (nvsp.SendRndisPacket(1, 0xFFFFFFFF, 0), "6b 00 00 00 01 00 00 00 ff ff ff ff 00 00 00 00"),
        (nvsp.RndisPacketComplete(5), "6c 00 00 00 05 00 00 00"),
    ],
)
def test_nvsp_messages_have_these_bytes_and_are_filled_with_zeros(message: nvsp.Message, text: str) -> None:
    head = bytes.fromhex(text)
    assert message.encode(28) == head.ljust(28, b"\0")
    assert message.encode() == head.ljust(40, b"\0")


def test_rndis_messages_have_these_bytes() -> None:
    assert rndis.Initialize(1).encode() == bytes.fromhex(
        "02 00 00 00 18 00 00 00 01 00 00 00 01 00 00 00 00 00 00 00 00 40 00 00"
    )
    assert rndis.QueryComplete(7, 0, bytes.fromhex("00155d010203")).encode() == bytes.fromhex(
        "04 00 00 80 1e 00 00 00 07 00 00 00 00 00 00 00 06 00 00 00 10 00 00 00 00 15 5d 01 02 03"
    )
    assert rndis.IndicateStatus(0x4001000B).encode() == bytes.fromhex(
        "07 00 00 00 14 00 00 00 0b 00 01 40 00 00 00 00 00 00 00 00"
    )
    header = packet_header(60)
    assert struct.unpack("<11I", header) == (1, 104, 36, 60, 0, 0, 0, 0, 0, 0, 0)


@given(st.one_of([any_of(kind) for kind in nvsp_kinds]), st.sampled_from([28, 32, 40]))
def test_nvsp_there_and_back(message: nvsp.Message, size: int) -> None:
    assert type(message).decode(message.encode(size)[4:]) == message


@given(any_rndis, st.binary(max_size=8))
def test_rndis_there_and_back_whatever_padding_follows(message: rndis.Message, padding: bytes) -> None:
    assert rndis.decode_message(message.encode() + padding, ALL_RNDIS) == message


@given(st.binary(max_size=64), st.sampled_from([0, *nvsp.GUEST_MESSAGES, *nvsp.SERVER_MESSAGES]))
def test_any_nvsp_bytes_are_a_message_or_a_typed_error(body: bytes, number: int) -> None:
    payload = number.to_bytes(4, "little") + body
    for table in (nvsp.GUEST_MESSAGES, nvsp.SERVER_MESSAGES):
        for data in (payload, body):
            try:
                message = nvsp.decode_message(data, table)
            except MalformedNvsp:
                continue
            assert type(message) in table.values()


@given(st.binary(max_size=64), st.sampled_from([0, *ALL_RNDIS]), u32 | st.integers(0, 80))
def test_any_rndis_bytes_are_a_message_or_a_typed_error(body: bytes, number: int, length: int) -> None:
    for data in (struct.pack("<II", number, length) + body, body):
        try:
            message = rndis.decode_message(data, ALL_RNDIS)
        except MalformedRndis:
            continue
        assert len(getattr(message, "info", b"")) <= len(body)


any_frame = st.binary(min_size=ETHERNET_HEADER_BYTES, max_size=300)


@given(st.lists(any_frame, min_size=1, max_size=40), st.integers(45, 320), st.integers(1, 64))
def test_frames_in_sections_come_out_as_they_went_in(frames: list[bytes], room8: int, most: int) -> None:
    """Whatever the room of a section and the limit of its packets, in order, none left out."""
    packer, section, found = FramePacker(FRAME_BYTES_MAX, most), memoryview(bytearray(room8 * 8)), []
    start = 0
    while start < len(frames):
        count, used = packer.pack(section, frames, start)
        assert 1 <= count <= most
        assert (
            used == sum(packet_bytes(len(frame)) for frame in frames[start : start + count]) <= len(section)
        )
        taken: list[memoryview] = []
        unpack_frames(section[:used], FRAME_BYTES_MAX, taken)
        found += [bytes(frame) for frame in taken]
        start += count
    assert found == frames


@given(st.integers(0, 40).filter(lambda size: size < ETHERNET_HEADER_BYTES) | st.integers(1519, 9000))
def test_a_frame_of_an_impossible_length_is_refused_and_those_before_it_are_packed(size: int) -> None:
    packer, section = FramePacker(FRAME_BYTES_MAX, 8), memoryview(bytearray(16384))
    frames = [bytes(60), bytes(size)]
    assert packer.pack(section, frames, 0)[0] == 1
    with pytest.raises(ValueError, match="a frame of"):
        packer.pack(section, frames, 1)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([1, 1, 1, 2, 9]),
            u32 | st.integers(0, 200),
            u32 | st.integers(0, 80),
            u32 | st.integers(0, 90),
        )
    ),
    st.binary(max_size=200),
)
def test_any_bytes_in_a_section_are_frames_inside_it_or_a_typed_error(
    heads: list[tuple[int, int, int, int]], rest: bytes
) -> None:
    data = (
        b"".join(struct.pack("<IIII", *head) + rest[: index * 8] for index, head in enumerate(heads)) + rest
    )
    frames: list[memoryview] = []
    with contextlib.suppress(MalformedRndis):
        unpack_frames(memoryview(data), FRAME_BYTES_MAX, frames)
    assert all(ETHERNET_HEADER_BYTES <= len(frame) <= FRAME_BYTES_MAX + 4 for frame in frames)  # with its tag
    assert sum(map(len, frames)) <= len(data) + 4 * len(frames)


@pytest.mark.parametrize(
    "head",
    [
        (1, 104, 36, 61),  # one byte past its message
        (1, 104, 35, 60),  # over its own header
        (1, 104, 2**32 - 8, 60),
        (1, 104, 36, 13),  # shorter than an Ethernet header
        (1, 105, 36, 60),  # past the section
        (1, 43, 36, 60),
        (2, 104, 36, 60),
    ],
)
def test_a_packet_that_leaves_its_message_is_none(head: tuple[int, int, int, int]) -> None:
    frames: list[memoryview] = []
    good = packet_header(60) + bytes(60)
    with pytest.raises(MalformedRndis):
        unpack_frames(memoryview(good + struct.pack("<IIII", *head) + bytes(88)), FRAME_BYTES_MAX, frames)
    assert len(frames) == 1
