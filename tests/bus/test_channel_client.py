"""The guest's end of a connection, message by message. What both ends do together is in test_channel_pair."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import channel_events as events
from bus import channel_messages as messages
from bus.channel_client import FIRST_GPADL, ChannelClient, ChannelRescinded
from bus.channel_client_states import ClientChannelState, ClientStage
from bus.channel_events import Output, SendMessage
from bus.channel_message_codec import (
    MAX_MESSAGE_BYTES,
    ChannelMessage,
    FeatureFlags,
    Side,
    Version,
    decode_message,
    message_classes,
)
from bus.channel_messages import STATUS_FAILURE, InitiateContact, VersionResponse
from bus.guids import SCSI
from bus.memory import PAGE_BYTES
from bus.packets import GpaRange
from bus.protocol_errors import LocalProtocolError, RemoteProtocolError
from tests.bus.channel_message_strategies import messages_of

RINGS = [GpaRange.contiguous(0x100, 8 * PAGE_BYTES)]


def offer(relid: int) -> messages.OfferChannel:
    return messages.OfferChannel(
        SCSI, UUID(int=relid), 0, 0, bytes(120), 0, 0, relid, 0xFF, 0, 1, 0x2000 | relid
    )


def said(
    out: list[Output], version: int = Version.V5_3, features: int = 0
) -> list[tuple[int, ChannelMessage]]:
    """The messages among the outputs: connection and content."""
    return [
        (one.connection_id, decode_message(one.payload, Side.GUEST, version, FeatureFlags(features)))
        for one in out
        if isinstance(one, SendMessage)
    ]


def connected(*relids: int, version: Version = Version.V5_3) -> ChannelClient:
    client = ChannelClient(newest=version)
    client.start()
    features = 0 if version >= Version.V6_0 else None
    client.receive(VersionResponse(1, 0, 4, features).encode())
    client.request_offers()
    for relid in relids:
        client.receive(offer(relid).encode())
    return client


def opened() -> tuple[ChannelClient, int]:
    client = connected(5)
    gpadl, _ = client.create_gpadl(5, RINGS)
    client.receive(messages.GpadlCreated(5, gpadl, 0).encode())
    client.open(5, gpadl, 4)
    assert client.receive(messages.OpenChannelResult(5, 5, 0).encode()) == [events.Opened(5, 0)]
    return client, gpadl


def view(client: ChannelClient) -> tuple[object, ...]:
    channels = [
        (one.relid, client.channel_state(one.relid), client.gpadls(one.relid)) for one in client.offers
    ]
    return client.stage, client.version, channels


def test_versions_are_tried_from_the_newest_down_each_on_its_connection() -> None:
    client = ChannelClient()
    out = client.start()
    tried = []
    for version in sorted(Version, reverse=True):
        ((connection, contact),) = said(out)
        assert isinstance(contact, InitiateContact)
        tried.append(contact.version)
        assert connection == (4 if version >= Version.V5_0 else 1)
        out = client.receive(VersionResponse(0, 0).encode())
    assert tried == sorted(Version, reverse=True)
    assert out == [events.ConnectionRefused()]
    assert client.stage is ClientStage.DISCONNECTED


def test_an_old_host_without_the_contact_connection_is_tried_with_old_versions() -> None:
    client = ChannelClient()
    client.start()
    ((connection, contact),) = said(client.contact_unreachable())
    assert isinstance(contact, InitiateContact)
    assert (connection, contact.version) == (1, Version.V4_1)
    with pytest.raises(LocalProtocolError):
        client.contact_unreachable()


def test_later_messages_go_where_the_response_says_and_to_1_below_5_0() -> None:
    for version, connection in ((Version.V5_3, 0x77), (Version.V4_1, 1)):
        client = ChannelClient(newest=version)
        client.start()
        out = client.receive(VersionResponse(1, 0, 0x77).encode())
        assert out == [events.Connected(version, FeatureFlags.NONE)]
        assert said(client.request_offers()) == [(connection, messages.RequestOffers())]


def test_a_supported_version_in_a_bad_state_is_a_refusal() -> None:
    client = ChannelClient(newest=Version.V5_3)
    client.start()
    assert client.receive(VersionResponse(1, 2).encode()) == [events.ConnectionRefused(2)]


def test_features_that_nobody_asked_for_are_not_believed() -> None:
    client = ChannelClient()
    client.start()
    for features in (1, 1 << 20):
        with pytest.raises(RemoteProtocolError):
            client.receive(VersionResponse(1, 0, 4, features).encode())
    assert client.stage is ClientStage.CONTACTING


def test_a_channel_opens_and_closes_and_its_rings_come_back() -> None:
    client, gpadl = opened()
    assert gpadl == FIRST_GPADL
    with pytest.raises(LocalProtocolError):
        client.teardown_gpadl(gpadl)
    assert said(client.modify(5, 1)) == [(4, messages.ModifyChannel(5, 1))]
    assert client.receive(messages.ModifyChannelResponse(5, 0).encode()) == [events.Modified(5, 0)]
    assert said(client.close(5)) == [(4, messages.CloseChannel(5))]
    assert said(client.teardown_gpadl(gpadl)) == [(4, messages.GpadlTeardown(5, gpadl))]
    assert client.receive(messages.GpadlTorndown(gpadl).encode()) == [events.GpadlTornDown(gpadl)]
    assert client.gpadls(5) == []


def test_refusals_by_the_host_leave_the_channel_closed_and_the_handle_gone() -> None:
    client = connected(5)
    gpadl, _ = client.create_gpadl(5, RINGS)
    failed = client.receive(messages.GpadlCreated(5, gpadl, STATUS_FAILURE).encode())
    assert failed == [events.GpadlCreated(gpadl, STATUS_FAILURE)]
    again, _ = client.create_gpadl(5, RINGS)
    assert again != gpadl
    client.receive(messages.GpadlCreated(5, again, 0).encode())
    client.open(5, again, 4, user_data=b"hello")
    out = client.receive(messages.OpenChannelResult(5, 5, STATUS_FAILURE).encode())
    assert out == [events.Opened(5, STATUS_FAILURE)]
    assert client.channel_state(5) is ClientChannelState.CLOSED
    ((_, request),) = said(client.open(5, again, 4, user_data=b"hello"))
    assert request == messages.OpenChannel(5, 5, again, 0, 4, b"hello" + bytes(115))


def test_the_long_open_is_sent_where_it_was_negotiated() -> None:
    wanted = FeatureFlags.GUEST_SPECIFIED_SIGNAL_PARAMETERS
    client = ChannelClient(features=wanted)
    client.start()
    client.receive(VersionResponse(1, 0, 4, int(wanted)).encode())
    client.receive(offer(5).encode())
    gpadl, _ = client.create_gpadl(5, RINGS)
    client.receive(messages.GpadlCreated(5, gpadl, 0).encode())
    ((_, request),) = said(client.open(5, gpadl, 4), Version.V6_0, wanted)
    assert request == messages.OpenChannel(5, 5, gpadl, 0, 4, bytes(120), 0x2005, 5, 0)


def test_an_idle_channel_is_released_at_its_rescind_and_one_in_use_by_close() -> None:
    client = connected(6)
    out = client.receive(messages.RescindChannelOffer(6).encode())
    assert out[0] == events.Rescinded(6, in_use=False)
    assert said(out) == [(4, messages.RelidReleased(6))]
    client, gpadl = opened()
    assert client.receive(messages.RescindChannelOffer(5).encode()) == [events.Rescinded(5, in_use=True)]
    with pytest.raises(RemoteProtocolError):
        client.receive(messages.RescindChannelOffer(5).encode())
    for attempt in (lambda: client.open(5, gpadl, 4), lambda: client.create_gpadl(5, RINGS)):
        with pytest.raises(ChannelRescinded):
            attempt()
    assert client.teardown_gpadl(gpadl) == [events.GpadlTornDown(gpadl)]  # nothing is sent
    assert said(client.close(5)) == [(4, messages.RelidReleased(5))]
    assert client.channel_state(5) is None
    assert client.receive(offer(5).encode()) == [events.Offered(offer(5))]


def test_an_answer_to_an_open_that_a_rescind_overtook_opens_nothing() -> None:
    client = connected(5)
    gpadl, _ = client.create_gpadl(5, RINGS)
    client.receive(messages.GpadlCreated(5, gpadl, 0).encode())
    client.open(5, gpadl, 4)
    assert client.receive(messages.RescindChannelOffer(5).encode()) == [events.Rescinded(5, in_use=True)]
    assert client.receive(messages.OpenChannelResult(5, 5, 0).encode()) == []
    assert client.channel_state(5) is ClientChannelState.RESCINDED


def test_messages_that_crossed_ours_are_ignored() -> None:
    client = connected(5)
    before = view(client)
    for message in (
        messages.RescindChannelOffer(9),
        messages.OpenChannelResult(9, 9, 0),
        messages.GpadlCreated(9, 9, 0),
        messages.GpadlTorndown(9),
        messages.ModifyChannelResponse(9, 0),
    ):
        assert client.receive(message.encode()) == []
    assert view(client) == before


def test_what_makes_no_sense_is_the_hosts_fault_and_changes_nothing() -> None:
    client, gpadl = opened()
    before = view(client)
    for message in (
        offer(5),
        offer(0),
        offer(2048),
        messages.OpenChannelResult(5, 5, 0),
        messages.GpadlCreated(5, gpadl, 0),
        messages.GpadlTorndown(gpadl),
        VersionResponse(1, 0, 4),
        messages.UnloadResponse(),
        messages.RelidReleased(5),
    ):
        with pytest.raises(RemoteProtocolError):
            client.receive(message.encode())
        assert view(client) == before


def test_unload_forgets_everything_and_hears_nothing_but_the_answer() -> None:
    client, _ = opened()
    assert said(client.unload()) == [(4, messages.Unload())]
    assert client.offers == []
    for data in (b"", b"junk", offer(7).encode(), messages.RescindChannelOffer(5).encode()):
        assert client.receive(data) == []
    assert client.receive(messages.UnloadResponse().encode()) == [events.Unloaded()]
    assert client.stage is ClientStage.DISCONNECTED
    with pytest.raises(LocalProtocolError):
        client.request_offers()


def test_what_we_must_not_do_is_refused_here_and_changes_nothing() -> None:
    client, gpadl = opened()
    before = view(client)
    for attempt in (
        lambda: client.request_offers(),
        lambda: client.open(5, gpadl, 4),
        lambda: client.open(9, gpadl, 4),
        lambda: client.close(9),
        lambda: client.modify(9, 0),
        lambda: client.teardown_gpadl(gpadl),
        lambda: client.teardown_gpadl(1),
        lambda: client.create_gpadl(9, RINGS),
    ):
        with pytest.raises(LocalProtocolError):
            attempt()
        assert view(client) == before
    with pytest.raises(ValueError, match="GPA ranges"):
        client.create_gpadl(5, [])
    assert view(client) == before


@given(st.lists(st.binary(max_size=MAX_MESSAGE_BYTES + 10), max_size=20))
def test_arbitrary_bytes_raise_the_typed_error_and_change_nothing(blobs: list[bytes]) -> None:
    client, _ = opened()
    before = view(client)
    for blob in blobs:
        with pytest.raises(RemoteProtocolError):
            client.receive(blob)
        assert view(client) == before


@given(data=st.data())
def test_any_host_message_is_an_event_or_the_typed_error(data: st.DataObject) -> None:
    client, _ = opened()
    host_messages = [cls for cls in message_classes() if cls.sender is Side.HOST]
    for _ in range(data.draw(st.integers(1, 6))):
        before = view(client)
        message = data.draw(messages_of(data.draw(st.sampled_from(host_messages))))
        try:
            client.receive(message.encode())
        except RemoteProtocolError:
            assert view(client) == before
