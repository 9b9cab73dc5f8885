"""The set-up of a network channel, both sides, without a channel: what is legal when, and what a liar gets."""

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitions.net import nvsp, rndis
from partitions.net.errors import NetProtocolError
from partitions.net.handshake import AdapterDescription, Ask, Begin, Control, Lent, Say, Steps, set_up
from partitions.net.nvsp import MalformedNvsp, Version
from partitions.net.rndis import MalformedRndis, Oid
from partitions.net.server_session import RECORD_AT, Adapter, Phase, ServerSession
from tests.partitions.test_net_wire import any_of, any_rndis

MAC = bytes.fromhex("00155d010203")
ADAPTER = Adapter(MAC, 9000)
RECEIVE, SEND = Lent(0xE1E11, 1 << 20), Lent(0xE1E12, 1 << 18)
_SIZES = {RECEIVE.gpadl: RECEIVE.size_bytes, SEND.gpadl: SEND.size_bytes, 7: 4096}


def buffer_bytes(gpadl: int) -> int:
    return _SIZES[gpadl]


def answer(session: ServerSession, ask: Ask) -> bytes:
    """What a server with this session says."""
    match ask:
        case Say(payload):
            reply = session.hear(nvsp.decode_message(payload, nvsp.GUEST_MESSAGES), buffer_bytes)
            return b"" if reply is None else reply.encode(session.message_bytes)
        case Begin():
            return b""
        case Control(data):
            said = session.control(rndis.decode_message(data, rndis.GUEST_MESSAGES))
            assert said is not None
            return said.encode()


def walk(steps: Steps, hear: Callable[[Ask], bytes]) -> AdapterDescription:
    ask = next(steps)
    while True:
        if isinstance(ask, Say):
            assert len(ask.payload) in (28, 40)
        try:
            ask = steps.send(hear(ask))
        except StopIteration as stop:
            description: AdapterDescription = stop.value
            return description


def run(session: ServerSession, mtu: int, twist: Callable[[int, bytes], bytes]) -> AdapterDescription:
    """`twist(number, reply)`: what becomes of each answer on its way."""
    numbers = count()
    return walk(set_up(RECEIVE, SEND, mtu), lambda ask: twist(next(numbers), answer(session, ask)))


def honestly(number: int, reply: bytes) -> bytes:
    return reply


@pytest.mark.parametrize(("wanted", "found"), [(1500, 1500), (576, 576), (9000, 9000), (65521, 9000)])
def test_both_sides_agree(wanted: int, found: int) -> None:
    session = ServerSession(ADAPTER)
    description = run(session, wanted, honestly)
    assert (description.mtu, description.mac, description.link_up) == (found, MAC, True)
    assert description.version is session.version is Version.V61
    assert session.takes_frames
    assert session.receive is not None
    assert session.receive.piece_bytes >= found + 14 + 44
    assert description.section_bytes >= found + 14 + 44


@pytest.mark.parametrize("known", list(Version))
def test_an_older_server_is_asked_until_it_knows_the_version(known: Version) -> None:
    session = ServerSession(ADAPTER)

    def hear(ask: Ask) -> bytes:
        if isinstance(ask, Say):
            message = nvsp.decode_message(ask.payload, nvsp.GUEST_MESSAGES)
            if isinstance(message, nvsp.Init) and message.version > known:
                return nvsp.InitComplete(0xFFFFFFFF, 34, nvsp.Status.NONE).encode(28)
        return answer(session, ask)

    assert walk(set_up(RECEIVE, SEND), hear).version is session.version is known


@settings(max_examples=150)
@given(st.integers(0, 12), st.binary(max_size=60), st.booleans(), st.integers(0, 50))
def test_a_server_that_lies_once_is_an_error_or_harmless(at: int, lie: bytes, mixed: bool, cut: int) -> None:
    """In the place of any answer, or over its head: NetProtocolError, or an adapter inside the buffers."""

    def twist(number: int, reply: bytes) -> bytes:
        if number != at:
            return reply
        return (reply[: cut % (len(reply) + 1)] + lie) if mixed else lie

    try:
        found = run(ServerSession(ADAPTER), 1500, twist)
    except NetProtocolError:
        return
    assert found.section_bytes * found.sections <= SEND.size_bytes
    assert found.frame_bytes_max + 44 <= found.section_bytes
    assert found.packets_max >= 1


any_message = st.one_of([any_of(kind) for kind in nvsp.GUEST_MESSAGES.values()])
likely = st.one_of(
    st.builds(lambda v: nvsp.Init(v, v), st.sampled_from(list(Version))),
    st.builds(nvsp.NdisConfig, st.sampled_from([0, 590, 1514, 65535, 70000]), st.just(0)),
    st.builds(
        nvsp.SendReceiveBuffer,
        st.sampled_from([RECEIVE.gpadl, SEND.gpadl, 7, 8]),
        st.sampled_from([0xCAFE, 1]),
    ),
    st.builds(
        nvsp.SendSendBuffer, st.sampled_from([RECEIVE.gpadl, SEND.gpadl, 7, 8]), st.sampled_from([0, 1])
    ),
    st.builds(nvsp.RevokeReceiveBuffer, st.sampled_from([0xCAFE, 1])),
    st.builds(nvsp.RevokeSendBuffer, st.sampled_from([0, 1])),
    st.builds(rndis.Initialize, st.just(1), st.sampled_from([1, 1, 2]), st.just(0)),
    st.builds(rndis.Set, st.just(2), st.sampled_from([*Oid]), st.sampled_from([b"", b"\x0d\0\0\0"])),
    st.builds(rndis.Query, st.just(3), st.sampled_from([*Oid, 5])),
    st.builds(rndis.Halt, st.just(0)),
)


@settings(max_examples=150)
@given(st.lists(likely | any_message | any_rndis, max_size=30))
def test_whatever_a_guest_says_is_answered_or_refused_and_what_is_refused_changes_nothing(
    messages: list[nvsp.Message | rndis.Message],
) -> None:
    session, record = ServerSession(ADAPTER), memoryview(bytearray(64))
    for message in messages:
        before = copy.copy(session)
        try:
            if isinstance(message, nvsp.Message):
                session.hear(message, buffer_bytes)
            else:
                session.control(message)
        except (MalformedNvsp, MalformedRndis):
            assert session == before
        # what frames rest on is there whenever frames flow
        if session.takes_frames:
            assert session.phase is Phase.READY
            assert session.receive is not None
        if session.receive is not None:
            assert session.receive.pieces * session.receive.piece_bytes <= _SIZES[session.receive.gpadl]
            assert session.receive.piece_bytes >= session.frame_bytes_max + 44
        if session.send is not None:
            assert session.send.pieces * session.send.piece_bytes <= _SIZES[session.send.gpadl]
        # and a successor finds all of it
        session.save(record)
        loaded = ServerSession.load(ADAPTER, record, buffer_bytes)
        same = ("phase", "version", "receive", "send", "packet_filter", "generation", "takes_frames")
        if session.version is not None:
            assert [getattr(loaded, name) for name in same] == [getattr(session, name) for name in same]
            assert loaded.mtu == session.mtu


@given(st.binary(min_size=20, max_size=20))
def test_any_record_is_a_session_that_holds_together(data: bytes) -> None:
    record = bytearray(64)
    record[RECORD_AT : RECORD_AT + 20] = data
    session = ServerSession.load(ADAPTER, memoryview(record), buffer_bytes)
    assert not session.takes_frames or session.receive is not None


def test_what_is_said_twice_is_answered_alike() -> None:
    """A successor of the server hears again what was answered before."""
    session = ServerSession(ADAPTER)

    def hear(ask: Ask) -> bytes:
        first = answer(session, ask)
        if not (isinstance(ask, Say) and ask.payload[0] == nvsp.Type.INIT):
            assert answer(session, ask) == first
        return first

    walk(set_up(RECEIVE, SEND, 1500), hear)
    assert session.generation == 1


def test_the_link_is_told_as_it_is() -> None:
    session = ServerSession(replace(ADAPTER, link_up=False))
    assert not run(session, 1500, honestly).link_up
    assert session.link(up=True).status == rndis.Status.MEDIA_CONNECT
    assert session.link(up=False).status == rndis.Status.MEDIA_DISCONNECT


@pytest.mark.parametrize(
    "cut",
    [
        nvsp.ReceiveBufferComplete(1, 1, 0, 1792, RECEIVE.size_bytes // 1792 + 1, 0),
        nvsp.ReceiveBufferComplete(1, 1, RECEIVE.size_bytes, 1792, 1, 0),
        nvsp.ReceiveBufferComplete(1, 1, 0, 60, 10, 600),
        nvsp.ReceiveBufferComplete(1, 2, 0, 1792, 10, 0),
        nvsp.ReceiveBufferComplete(2, 1, 0, 1792, 10, 0),
        nvsp.ReceiveBufferComplete(1, 1, 0, 1792, 0, 0),
        nvsp.SendBufferComplete(1, SEND.size_bytes + 8),
        nvsp.SendBufferComplete(1, 56),
        nvsp.SendBufferComplete(2, 6144),
    ],
)
def test_a_buffer_cut_into_what_it_is_not_is_refused(cut: nvsp.Message) -> None:
    place = (
        4 if isinstance(cut, nvsp.SendBufferComplete) else 3
    )  # the answers: INIT, two that have none, the buffers
    with pytest.raises(NetProtocolError):
        run(ServerSession(ADAPTER), 1500, lambda number, reply: cut.encode() if number == place else reply)


def test_the_mtu_stays_as_the_buffers_were_cut() -> None:
    session = ServerSession(ADAPTER)
    run(session, 1500, honestly)
    with pytest.raises(MalformedNvsp):
        session.hear(nvsp.NdisConfig(9014, 0), buffer_bytes)
    assert session.mtu == 1500
