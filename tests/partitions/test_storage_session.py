"""storvsp's packets and the server's negotiation, against the order that the protocol fixes."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions.storage.protocol import (
    PACKET_BYTES,
    PACKET_BYTES_BEFORE_5_1,
    ChannelProperties,
    MalformedPacket,
    NtStatus,
    Operation,
    Packet,
    ScsiRequest,
    build_sub_channel_count,
    build_version,
    parse_version,
)
from partitions.storage.session import (
    SUPPORTED_VERSIONS,
    Execute,
    Session,
    SessionState,
    SnapshotError,
    load_session,
    save_session,
)

u8, u16, u32 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32))
PROPERTIES = ChannelProperties(max_transfer_bytes=65536)

requests = st.builds(
    ScsiRequest,
    srb_status=u8,
    scsi_status=u8,
    port=u8,
    path=u8,
    target=u8,
    lun=u8,
    cdb_length=u8,
    sense_length=u8,
    direction=u8,
    transfer_bytes=u32,
    cdb_or_sense=st.binary(min_size=20, max_size=20),
    queue_tag=u8,
    queue_action=u8,
    srb_flags=u32,
    timeout_s=u32,
    queue_sort_key=u32,
)


@given(requests)
def test_an_srb_survives_building_and_parsing(request: ScsiRequest) -> None:
    assert ScsiRequest.parse(request.build()) == request
    assert len(request.cdb) <= 16
    assert len(request.sense) <= 20


@given(st.builds(Packet, u32, u32, u32, st.binary(min_size=52, max_size=52), st.just(PACKET_BYTES)))
def test_a_packet_survives_building_and_parsing(packet: Packet) -> None:
    assert Packet.parse(packet.build()) == packet


@given(st.binary(max_size=80))
def test_any_bytes_are_a_packet_or_malformed_and_the_reply_is_as_long_as_the_request(payload: bytes) -> None:
    try:
        packet = Packet.parse(payload)
    except MalformedPacket:
        assert len(payload) < PACKET_BYTES_BEFORE_5_1
    else:
        assert packet.size_bytes == (64 if len(payload) >= 64 else 48)
        reply = packet.reply(NtStatus.SUCCESS)
        assert len(reply.build()) == packet.size_bytes
        assert reply.operation == Operation.COMPLETE_IO


def test_the_version_query_has_the_documented_bytes() -> None:
    packet = Packet(Operation.QUERY_PROTOCOL_VERSION, 1, 0, build_version(0x0600))
    want = bytes.fromhex("09 00 00 00 01 00 00 00 00 00 00 00 00 06 00 00").ljust(PACKET_BYTES, b"\0")
    assert packet.build() == want


def ready_session() -> Session:
    session = Session(PROPERTIES)
    for operation, body in (
        (Operation.BEGIN_INITIALIZATION, b""),
        (Operation.QUERY_PROTOCOL_VERSION, build_version(0x0600)),
        (Operation.QUERY_PROPERTIES, b""),
        (Operation.END_INITIALIZATION, b""),
    ):
        reply = session.receive(Packet(operation, 1, 0, body.ljust(52, b"\0")))
        assert isinstance(reply, Packet)
        assert reply.status == NtStatus.SUCCESS
    return session


def test_the_documented_order_leads_to_ready() -> None:
    session = ready_session()
    assert session.state is SessionState.READY
    assert session.version == 0x0600


def test_an_unknown_version_is_refused_and_an_older_one_may_follow() -> None:
    session = Session(PROPERTIES)
    session.receive(Packet(Operation.BEGIN_INITIALIZATION))
    for version, status in ((0x0700, NtStatus.REVISION_MISMATCH), (0x0501, NtStatus.SUCCESS)):
        body = build_version(version).ljust(52, b"\0")
        reply = session.receive(Packet(Operation.QUERY_PROTOCOL_VERSION, 1, 0, body))
        assert isinstance(reply, Packet)
        assert reply.status == status
        assert parse_version(reply.body) == version
    assert session.version == 0x0501


def test_properties_are_told_and_sub_channels_refused() -> None:
    session = ready_session()
    for count, status in ((0, NtStatus.SUCCESS), (1, NtStatus.INVALID_PARAMETER)):
        body = build_sub_channel_count(count).ljust(52, b"\0")
        reply = session.receive(Packet(Operation.CREATE_SUB_CHANNELS, 1, 0, body))
        assert isinstance(reply, Packet)
        assert reply.status == status
    fresh = Session(PROPERTIES, SessionState.VERSIONED, 0x0600)
    reply = fresh.receive(Packet(Operation.QUERY_PROPERTIES, 1, 0, bytes(52)))
    assert isinstance(reply, Packet)
    assert ChannelProperties.parse(reply.body) == PROPERTIES


_LEGAL = {
    SessionState.CREATED: {Operation.BEGIN_INITIALIZATION},
    SessionState.BEGUN: {Operation.QUERY_PROTOCOL_VERSION},
    SessionState.VERSIONED: {Operation.QUERY_PROPERTIES},
    SessionState.DESCRIBED: {Operation.END_INITIALIZATION, Operation.CREATE_SUB_CHANNELS},
    SessionState.READY: {
        Operation.EXECUTE_SRB,
        Operation.CREATE_SUB_CHANNELS,
        Operation.RESET_LUN,
        Operation.RESET_ADAPTER,
        Operation.RESET_BUS,
    },
}


@pytest.mark.parametrize("state", list(SessionState))
@pytest.mark.parametrize("operation", list(Operation))
def test_what_comes_in_the_wrong_order_changes_nothing(state: SessionState, operation: Operation) -> None:
    session = Session(PROPERTIES, state, 0x0600)
    reply = session.receive(Packet(operation, 1, 0, build_version(0x0600).ljust(52, b"\0")))
    if operation in _LEGAL[state]:
        return
    assert isinstance(reply, Packet)
    known = any(operation in legal for legal in _LEGAL.values())
    assert reply.status == (NtStatus.INVALID_DEVICE_STATE if known else NtStatus.INVALID_DEVICE_REQUEST)
    assert (session.state, session.version) == (state, 0x0600)


@given(
    st.lists(
        st.builds(
            Packet, st.integers(0, 20), u32, u32, st.binary(min_size=36, max_size=52), st.just(PACKET_BYTES)
        )
    )
)
def test_no_sequence_of_packets_breaks_the_session_and_each_state_can_be_taken_over(
    packets: list[Packet],
) -> None:
    session = Session(QUEUES)
    for packet in packets:
        step = session.receive(packet)
        assert isinstance(step, Packet | Execute)
        assert not isinstance(step, Execute) or session.state is SessionState.READY
        assert Session.restore(QUEUES, session.snapshot()) == session


QUEUES = ChannelProperties(max_sub_channels=3, multi_channel=True, max_transfer_bytes=65536)


@given(
    st.sampled_from(list(SessionState)), st.lists(st.integers(0, 5), min_size=1), st.booleans(), st.booleans()
)
def test_sub_channels_are_granted_up_to_the_disks_once_it_is_described(
    state: SessionState, counts: list[int], is_sub_channel: bool, replaying: bool
) -> None:
    """In each state, on a primary and on one of them; a refusal changes nothing."""
    version = 0 if state in (SessionState.CREATED, SessionState.BEGUN) else 0x0600
    session = Session(QUEUES, state, version, is_sub_channel=is_sub_channel, replaying=replaying)
    granted = 0
    for count in counts:
        before = replace(session)
        reply = session.receive(
            Packet(Operation.CREATE_SUB_CHANNELS, 1, 0, build_sub_channel_count(count).ljust(52, b"\0"))
        )
        assert isinstance(reply, Packet)
        if is_sub_channel or state not in (SessionState.DESCRIBED, SessionState.READY):
            assert reply.status == int(NtStatus.INVALID_DEVICE_STATE) == 0xC0000184
        elif count > QUEUES.max_sub_channels:
            assert reply.status == int(NtStatus.INVALID_PARAMETER) == 0xC000000D
        else:
            assert reply.status == NtStatus.SUCCESS
            granted = max(granted, count)
        if reply.status != NtStatus.SUCCESS:
            assert session == before
    assert (session.state, session.version, session.sub_channels) == (state, version, granted)
    word = memoryview(bytearray(4))
    save_session(word, session)
    saved = load_session(word)
    assert saved == session.snapshot()
    successor = Session.restore(QUEUES, saved)
    assert (successor.state, successor.sub_channels) == (state, granted)


def test_a_sub_channel_executes_from_its_first_packet_and_takes_no_set_up() -> None:
    session = Session.of_sub_channel(QUEUES)
    for operation in Operation:
        step = session.receive(Packet(operation, 1, 0, ScsiRequest().build().ljust(52, b"\0")))
        allowed = _LEGAL[SessionState.READY] - {Operation.CREATE_SUB_CHANNELS}
        if operation in allowed:
            assert isinstance(step, Execute) or step.status == NtStatus.SUCCESS
        else:
            assert isinstance(step, Packet)
            assert step.status in (NtStatus.INVALID_DEVICE_STATE, NtStatus.INVALID_DEVICE_REQUEST)
    assert session == Session.of_sub_channel(QUEUES)


@pytest.mark.parametrize(
    "saved",
    [
        {},
        {"snapshot": 2, "state": "ready", "version": 0x0600},
        {"snapshot": 1, "state": "gone", "version": 0x0600},
        {"snapshot": 1, "state": "ready", "version": 0x0700},
        {"snapshot": 1, "state": "ready", "version": "6.0"},
        {"snapshot": 1, "state": "created", "version": 0x0600},
        {"snapshot": 1, "state": "ready", "version": 0x0600, "more": 1},
        {"snapshot": 1, "state": "ready", "version": 0x0600, "sub_channels": 1},
    ],
)
def test_a_snapshot_that_is_none_is_refused(saved: dict[str, object]) -> None:
    with pytest.raises(SnapshotError):
        Session.restore(PROPERTIES, saved)


def test_all_supported_versions_are_the_documented_ones() -> None:
    assert {0x0200, 0x0402, 0x0501, 0x0600} == SUPPORTED_VERSIONS
