"""The host's end of a connection: what is withdrawn, how it ends, and who goes on with it."""

from uuid import UUID

import msgpack  # type: ignore[import-untyped]
import pytest

from bus import channel_actions as actions
from bus import channel_messages as messages
from bus.channel_actions import Action
from bus.channel_message_codec import (
    ChannelMessage,
    FeatureFlags,
    Version,
)
from bus.channel_messages import (
    STATUS_CONNECTION_REFUSED,
    STATUS_FAILURE,
    InitiateContact,
    VersionResponse,
)
from bus.channel_server import ChannelServer
from bus.channel_states import TRANSITIONS, ChannelEvent, ChannelState
from bus.gpadl import gpadl_messages
from bus.memory import PAGE_BYTES
from bus.packets import GpaRange
from bus.protocol_errors import LocalProtocolError
from tests.bus.channel_host import DISK, NIC, NIC_SUB, RING, RINGS, connected, opened

# -- withdrawal


def test_a_revoked_open_channel_is_stopped_unmapped_and_only_then_rescinded() -> None:
    host = opened()
    host.receive(gpadl_messages(1, RING + 1, RINGS)[0])  # waits for its mapping
    created_failure = messages.GpadlCreated(1, RING + 1, STATUS_FAILURE)
    assert host.heard(host.server.revoke(1)) == [actions.CloseChannel(1), created_failure]
    assert host.receive(messages.CloseChannel(1)) == []  # the guest cannot know
    assert host.completed(actions.ChannelClosed(1)) == [actions.UnmapGpadl(1, RING)]
    assert host.receive(messages.OpenChannel(1, 5, RING, 0, 4)) == []
    assert host.completed(actions.GpadlUnmapped(RING)) == []
    assert host.completed(actions.GpadlMapped(RING + 1)) == [actions.UnmapGpadl(1, RING + 1)]
    assert host.completed(actions.GpadlUnmapped(RING + 1)) == [messages.RescindChannelOffer(1)]
    assert host.receive(gpadl_messages(1, RING + 2, RINGS)[0]) == [messages.GpadlCreated(1, RING + 2, 0)]
    assert host.receive(messages.GpadlTeardown(1, RING + 2)) == [messages.GpadlTorndown(RING + 2)]
    assert host.receive(messages.GpadlTeardown(1, RING)) == [messages.GpadlTorndown(RING)]
    assert host.receive(messages.RelidReleased(1)) == [actions.ChannelReleased(1)]
    assert host.refuses(messages.RelidReleased(1))


def test_an_open_that_fails_after_a_revoke_or_succeeds_leads_to_the_rescind() -> None:
    for status in (0, STATUS_FAILURE):
        host = connected(DISK)
        host.map(1)
        host.receive(messages.OpenChannel(1, 5, RING, 0, 4))
        assert host.server.revoke(1) == []
        assert host.refuses(messages.RelidReleased(1))  # not before it is closed
        done = host.completed(actions.ChannelOpened(1, status))
        if status == 0:
            assert done == [actions.CloseChannel(1)]
            done = host.completed(actions.ChannelClosed(1))
        assert done == [actions.UnmapGpadl(1, RING)]
        assert host.completed(actions.GpadlUnmapped(RING)) == [messages.RescindChannelOffer(1)]


def test_a_device_that_returns_waits_for_the_guest_to_let_go_of_the_relid() -> None:
    host = connected(DISK)
    assert host.heard(host.server.revoke(1)) == [messages.RescindChannelOffer(1)]
    assert host.server.offer(DISK) == (1, [])
    with pytest.raises(LocalProtocolError):
        host.server.offer(DISK)
    assert host.server.channel_state(1) is ChannelState.REOFFERED
    assert host.server.revoke(1) == []  # and gone once more
    assert host.server.channel_state(1) is ChannelState.REVOKED
    with pytest.raises(LocalProtocolError):
        host.server.revoke(1)
    host.server.offer(DISK)
    (offer,) = host.receive(messages.RelidReleased(1))
    assert isinstance(offer, messages.OfferChannel)
    assert offer.relid == 1
    assert host.server.channel_state(1) is ChannelState.CLOSED


def test_sub_channels_are_rescinded_before_their_primary() -> None:
    host = connected(NIC, NIC_SUB)
    host.map(2)
    host.open(2)
    assert host.server.revoke(2) == [actions.CloseChannel(2)]
    assert host.server.revoke(1) == []  # waits
    host.completed(actions.ChannelClosed(2))
    rescinds = host.completed(actions.GpadlUnmapped(RING))
    assert rescinds == [messages.RescindChannelOffer(2), messages.RescindChannelOffer(1)]


def test_a_sub_channel_is_opened_by_whoever_was_offered_it_with_pages_of_its_own() -> None:
    host = connected(NIC, NIC_SUB, DISK)
    stranger = connected(NIC)
    assert stranger.refuses(messages.OpenChannel(2, 5, RING, 0, 4)), "of another guest"
    host.map(1)
    refused = host.receive(messages.OpenChannel(2, 5, RING, 0, 4))  # pages that were lent for the primary
    assert refused == [messages.OpenChannelResult(2, 5, STATUS_FAILURE)]
    host.map(2, RING + 1)
    host.open(1)
    host.open(2, RING + 1)
    assert host.server.sub_channels(1) == {1: 2}
    assert host.server.sub_channels(3) == host.server.sub_channels(2) == {}
    assert [host.server.primary_of(relid) for relid in (1, 2, 3)] == [1, 1, 3]
    host.server.revoke(2)
    assert host.server.sub_channels(1) == {}
    assert host.receive(messages.OpenChannel(2, 6, RING + 1, 0, 4)) == [], "one that is being withdrawn"


def test_a_guest_may_let_go_of_a_closed_channel_unasked() -> None:
    host = connected(DISK)
    host.map(1)
    assert host.receive(messages.RelidReleased(1)) == [actions.UnmapGpadl(1, RING)]
    assert host.refuses(messages.OpenChannel(1, 5, RING, 0, 4))
    assert host.completed(actions.GpadlUnmapped(RING)) == []
    assert host.server.revoke(1) == [actions.ChannelReleased(1)]


def test_handles_of_a_channel_let_go_of_during_its_revoke_are_free_for_others() -> None:
    host = connected(DISK, NIC)
    host.map(1)
    host.server.revoke(1)
    assert host.receive(gpadl_messages(1, RING + 1, RINGS)[0]) == [messages.GpadlCreated(1, RING + 1, 0)]
    assert host.receive(messages.RelidReleased(1)) == []
    host.map(2, RING + 1)
    assert host.completed(actions.GpadlUnmapped(RING)) == [actions.ChannelReleased(1)]  # and no rescind


# -- ends


@pytest.mark.parametrize("farewell", ["contact", "unload", "death"])
def test_every_end_stops_devices_and_unmaps_memory_before_the_answer(farewell: str) -> None:
    host = opened()
    match farewell:
        case "contact":
            done = host.receive(InitiateContact.create(Version.V5_3, 1))
            answer: list[Action | ChannelMessage] = [
                actions.ConnectionMade(Version.V5_3, FeatureFlags.NONE, 1),
                VersionResponse(1, 0, 4),
            ]
        case "unload":
            done, answer = host.receive(messages.Unload()), [messages.UnloadResponse()]
        case _:
            done, answer = host.heard(host.server.disconnect()), []
    assert done == [actions.ResetConnection(), actions.CloseChannel(1)]
    assert host.refuses(messages.RequestOffers())
    assert host.completed(actions.ChannelClosed(1)) == [actions.UnmapGpadl(1, RING)]
    assert host.completed(actions.GpadlUnmapped(RING)) == answer
    host.connect()
    host.map(1)
    host.open(1)


def test_a_contact_during_a_disconnect_takes_the_place_of_the_first() -> None:
    host = opened()
    host.receive(InitiateContact.create(Version.V3_0))
    assert host.receive(InitiateContact.create(Version.V5_3, 1)) == [actions.ResetConnection()]
    host.completed(actions.ChannelClosed(1))
    made, _ = host.completed(actions.GpadlUnmapped(RING))
    assert made == actions.ConnectionMade(Version.V5_3, FeatureFlags.NONE, 1)


def test_hv_sock_is_asked_for_and_refused_where_a_refusal_can_be_said() -> None:
    request = messages.TlConnectRequest(UUID(int=1), UUID(int=2))
    refusal = messages.TlConnectResult(UUID(int=1), UUID(int=2), STATUS_CONNECTION_REFUSED)
    for version, refused in ((Version.V6_0, [refusal]), (Version.V4_0, [])):
        host = connected(version=version)
        assert host.receive(request) == [actions.ConnectStream(request.endpoint, request.service, None)]
        before = host.server.to_state()
        assert host.heard(host.server.refuse_stream(request.endpoint, request.service)) == refused
        assert host.server.to_state() == before
    assert connected(version=Version.V3_0).refuses(request)


def test_reports_of_what_was_not_asked_for_are_our_own_fault_and_change_nothing() -> None:
    host = opened()
    before = host.server.to_state()
    for completion in (
        actions.ChannelOpened(1),
        actions.ChannelClosed(1),
        actions.ChannelClosed(2),
        actions.ChannelModified(1),
        actions.GpadlMapped(RING),
        actions.GpadlUnmapped(RING),
        actions.GpadlMapped(1),
    ):
        with pytest.raises(LocalProtocolError):
            host.server.completed(completion)
        assert host.server.to_state() == before


# -- takeover


def test_a_successor_knows_what_to_redo_and_what_to_bring_about() -> None:
    host = opened()
    host.offer(NIC)
    host.receive(gpadl_messages(2, 9, RINGS)[0])
    host.receive(gpadl_messages(2, 10, (GpaRange(0, 2 * PAGE_BYTES, bytes(range(16))),))[0])
    saved = msgpack.unpackb(msgpack.packb(host.server.to_state()))
    heir = ChannelServer.from_state(saved)
    assert heir.to_state() == host.server.to_state()
    assert heir.pending() == host.server.pending()
    assert [type(one) for one in heir.pending()] == [actions.MapGpadl, actions.MapGpadl]
    made, rings, channel = heir.standing()
    assert made == actions.ConnectionMade(Version.V5_3, FeatureFlags.NONE, 1)
    assert rings == actions.MapGpadl(1, RING, RINGS)
    assert channel == actions.OpenChannel(1, RING, 4, 0, 0x2001, 1, bytes(120))
    with pytest.raises(ValueError, match="version"):
        ChannelServer.from_state({**saved, "version": 99})


def test_the_snapshot_of_ordinary_memory_is_small() -> None:
    host = connected(DISK)
    host.map(1, ranges=(GpaRange.contiguous(0, 8000 * PAGE_BYTES),))
    assert len(msgpack.packb(host.server.to_state())) < 1000


# -- the table


def test_every_state_can_be_reached_and_left() -> None:
    reached, seen = {ChannelState.CLIENT_RELEASED}, set[ChannelState]()
    while reached - seen:
        state = (reached - seen).pop()
        seen.add(state)
        reached |= {after for (before, _), (after, _) in TRANSITIONS.items() if before is state}
    assert seen == set(ChannelState)
    assert {before for before, _ in TRANSITIONS} == set(ChannelState) - {ChannelState.GONE}


def test_the_guest_may_start_over_in_every_state_and_the_host_withdraw_what_is_offered() -> None:
    for state in set(ChannelState) - {ChannelState.GONE}:
        assert (state, ChannelEvent.RESET) in TRANSITIONS
        withdraw = (ChannelEvent.REVOKE, ChannelEvent.UNOFFER, ChannelEvent.REOFFER)
        assert any((state, event) in TRANSITIONS for event in withdraw)
