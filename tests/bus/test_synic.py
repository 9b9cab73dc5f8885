"""SynIC slots and numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.channel_messages import VersionResponse
from bus.guids import SCSI, vsock_port, vsock_service
from bus.synic import (
    CHANNEL_MESSAGE,
    FLAGS_PER_SINT,
    MAX_PAYLOAD_BYTES,
    SINTS,
    SLOT_BYTES,
    SynicError,
    SynicMessage,
    channel_connection,
    page_flag,
    slot_offset,
)


def test_the_slot_header_vector() -> None:
    slot = SynicMessage(CHANNEL_MESSAGE, 4, VersionResponse(1, 0, 4).encode()).encode()
    assert slot[:16] == bytes.fromhex("01 00 00 00 10 00 00 00 04 00 00 00 00 00 00 00")
    assert len(slot) == SLOT_BYTES
    assert slot[32:] == bytes(SLOT_BYTES - 32)


@given(
    message_type=st.integers(1, 0xFFFF_FFFF),
    sender=st.integers(0, (1 << 64) - 1),
    payload=st.binary(max_size=MAX_PAYLOAD_BYTES),
    pending=st.booleans(),
)
def test_messages_survive_the_slot(message_type: int, sender: int, payload: bytes, pending: bool) -> None:
    message = SynicMessage(message_type, sender, payload, pending)
    assert SynicMessage.decode(message.encode()) == message


@given(st.binary(min_size=SLOT_BYTES, max_size=SLOT_BYTES))
def test_arbitrary_slots_are_a_message_or_empty_or_a_typed_error(slot: bytes) -> None:
    try:
        message = SynicMessage.decode(slot)
    except SynicError:
        assert slot[4] > MAX_PAYLOAD_BYTES
        return
    assert (message is None) == (slot[:4] == bytes(4))


def test_impossible_messages_cannot_be_made() -> None:
    for arguments in (
        (0, 0, b""),
        (1 << 32, 0, b""),
        (1, 1 << 64, b""),
        (1, 0, bytes(MAX_PAYLOAD_BYTES + 1)),
    ):
        with pytest.raises(SynicError):
            SynicMessage(*arguments)
    with pytest.raises(SynicError):
        SynicMessage.decode(bytes(SLOT_BYTES - 1))


def test_flags_and_slots_are_numbered_without_gap_or_overlap() -> None:
    assert [slot_offset(sint) for sint in range(SINTS)] == list(range(0, 4096, 256))
    flags = [page_flag(sint, flag) for sint in range(SINTS) for flag in (0, FLAGS_PER_SINT - 1)]
    assert flags == sorted(set(flags))
    assert flags[-1] == 4096 * 8 - 1
    for sint, flag in ((-1, 0), (SINTS, 0), (0, -1), (0, FLAGS_PER_SINT)):
        with pytest.raises(SynicError):
            page_flag(sint, flag)
    with pytest.raises(SynicError):
        slot_offset(SINTS)


def test_channel_connections_are_told_apart_from_the_shared_ones() -> None:
    assert channel_connection(5) == 0x2005
    assert len({channel_connection(relid) for relid in range(1, 2048)}) == 2047
    for relid in (0, 2048):
        with pytest.raises(SynicError):
            channel_connection(relid)


@given(st.integers(0, 0xFFFF_FFFF))
def test_vsock_ports_and_service_guids_are_the_same_thing(port: int) -> None:
    assert vsock_port(vsock_service(port)) == port
    assert vsock_port(SCSI) is None
    assert str(vsock_service(1)) == "00000001-facb-11e6-bd58-64006a7986d3"
