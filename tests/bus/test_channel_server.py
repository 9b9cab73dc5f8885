"""The host's end of a connection, message by message. What both ends do together is in test_channel_pair."""

from uuid import UUID

import pytest

from bus import channel_actions as actions
from bus import channel_messages as messages
from bus.channel_actions import OfferParameters, SendMessage
from bus.channel_lifecycle import MAX_MOVES, ConnectionStage
from bus.channel_message_codec import (
    FeatureFlags,
    Version,
    message_classes,
)
from bus.channel_messages import (
    MAX_CHANNELS,
    NO_INTERRUPT_VP,
    STATUS_FAILURE,
    InitiateContact,
    OfferFlags,
    VersionResponse,
)
from bus.channel_server import ChannelServer
from bus.gpadl import gpadl_messages
from bus.gpadl_server import MAX_CONNECTION_GPADL_PAGES, MAX_GPADLS
from bus.guids import SCSI
from bus.memory import PAGE_BYTES
from bus.packets import GpaRange
from bus.protocol_errors import LocalProtocolError, RemoteProtocolError
from tests.bus.channel_host import DISK, NIC, NIC_SUB, RING, RINGS, Host, connected, opened

# -- versions


@pytest.mark.parametrize("version", Version)
def test_each_known_version_is_accepted_and_answered_in_its_form(version: Version) -> None:
    host = Host(version)
    made, response = host.receive(InitiateContact.create(version, 1, FeatureFlags(0xFF & ~8)))
    features = (
        FeatureFlags.GUEST_SPECIFIED_SIGNAL_PARAMETERS if version >= Version.V6_0 else FeatureFlags.NONE
    )
    assert made == actions.ConnectionMade(version, features, 1 if version >= Version.V3_0 else 0)
    expected = 4 if version >= Version.V5_0 else version
    agreed = int(features) if version >= Version.V6_0 else None
    assert response == VersionResponse(1, 0, expected, agreed)
    assert host.server.version == version


@pytest.mark.parametrize("version", [0, 0xD, 0x10001, 0x2_0003, 0x50004, 0x60001, 0xFFFF_FFFF])
def test_other_versions_are_refused_briefly_and_end_what_was_before(version: int) -> None:
    host = opened()
    contact = InitiateContact(version, 0, 2)
    assert host.receive(contact) == [actions.ResetConnection(), actions.CloseChannel(1)]
    assert host.completed(actions.ChannelClosed(1)) == [actions.UnmapGpadl(1, RING)]
    (refusal,) = host.server.completed(actions.GpadlUnmapped(RING))
    assert isinstance(refusal, SendMessage)
    assert refusal.payload == VersionResponse(0, 0).encode()
    assert host.server.stage is ConnectionStage.DISCONNECTED


@pytest.mark.parametrize(
    "contact",
    [
        InitiateContact(Version.V5_3, 2, 2),  # a VP that is not there
        InitiateContact(Version.V5_3, 0, 3),  # another SINT
        InitiateContact(Version.V5_3, 0, 2 | 1 << 8),  # another VTL
        InitiateContact(Version.V5_3, 0, 2, 0x1000, 0),  # one monitor page of two
    ],
)
def test_an_impossible_contact_of_a_known_version_fails_with_a_state(contact: InitiateContact) -> None:
    host = Host()
    assert host.receive(contact) == [VersionResponse(1, messages.ConnectionState.FAILED)]
    assert host.server.version is None


def test_nothing_but_contact_is_heard_before_a_version_is_agreed_upon() -> None:
    host = Host()
    for cls in message_classes():
        if cls is not InitiateContact:
            with pytest.raises(RemoteProtocolError):
                host.server.receive(cls.message_type.to_bytes(8, "little") + bytes(200))


# -- offers


def test_offers_come_primaries_first_then_the_end_and_only_once() -> None:
    host = Host()
    assert [host.offer(one) for one in (NIC, NIC_SUB, DISK)] == [1, 2, 3]
    host.receive(InitiateContact.create(Version.V5_3))
    *offers, end = host.receive(messages.RequestOffers())
    assert [offer.relid for offer in offers if isinstance(offer, messages.OfferChannel)] == [1, 3, 2]
    assert end == messages.AllOffersDelivered()
    assert host.refuses(messages.RequestOffers())
    (late,) = host.heard(host.server.offer(OfferParameters(interface=SCSI, instance=UUID(int=9)))[1])
    assert isinstance(late, messages.OfferChannel)
    assert (late.relid, late.is_dedicated, late.connection_id, late.monitor_id) == (4, 1, 0x2004, 0xFF)


def test_flags_that_need_an_unsupported_feature_are_not_offered() -> None:
    host = Host()
    host.offer(OfferParameters(interface=SCSI, instance=UUID(int=1), flags=OfferFlags(0x1F)))
    host.receive(InitiateContact.create(Version.V5_3))
    offer, _ = host.receive(messages.RequestOffers())
    assert isinstance(offer, messages.OfferChannel)
    assert offer.flags == 0x11


def test_what_cannot_be_offered_is_our_own_fault() -> None:
    host = Host()
    with pytest.raises(LocalProtocolError):
        host.offer(NIC_SUB)
    host.offer(NIC)
    with pytest.raises(LocalProtocolError):
        host.offer(NIC)
    host.offer(NIC_SUB)
    with pytest.raises(LocalProtocolError):  # its sub-channel goes first
        host.server.revoke(1)
    with pytest.raises(LocalProtocolError):
        host.server.revoke(9)
    with pytest.raises(ValueError, match="impossible"):
        OfferParameters(interface=SCSI, instance=UUID(int=1), user_data=b"short")


def test_relids_run_out_at_the_named_limit_and_are_not_reused_at_once() -> None:
    server = ChannelServer()
    for number in range(MAX_CHANNELS):
        relid, _ = server.offer(OfferParameters(interface=SCSI, instance=UUID(int=number)))
        assert relid == number + 1
    with pytest.raises(LocalProtocolError):
        server.offer(NIC)
    assert server.revoke(7) == [actions.ChannelReleased(7)]
    assert server.offer(NIC)[0] == 7
    server.revoke(7)
    server.revoke(5)
    assert server.offer(NIC)[0] == 5
    assert server.offer(NIC_SUB)[0] == 7


def test_a_freed_relid_is_not_the_next_one_given_out() -> None:
    """A late signal to the old channel would reach the new one."""
    host = Host()
    assert [host.offer(one) for one in (DISK, NIC)] == [1, 2]
    host.server.revoke(1)
    assert host.offer(DISK) == 3


# -- open and close


def test_a_channel_opens_closes_silently_and_opens_again() -> None:
    host = connected(DISK)
    host.map(1)
    data = bytes(range(120))
    request = messages.OpenChannel(1, 5, RING, 1, 4, data)
    assert host.receive(request) == [actions.OpenChannel(1, RING, 4, 1, 0x2001, 1, data)]
    assert host.refuses(request)
    assert host.refuses(messages.CloseChannel(1))
    assert host.completed(actions.ChannelOpened(1)) == [messages.OpenChannelResult(1, 5, 0)]
    assert host.receive(messages.CloseChannel(1)) == [actions.CloseChannel(1)]
    assert host.refuses(messages.CloseChannel(1))
    assert host.receive(request) == []  # remembered
    assert host.refuses(request)
    assert host.completed(actions.ChannelClosed(1)) == [actions.OpenChannel(1, RING, 4, 1, 0x2001, 1, data)]
    failed = host.completed(actions.ChannelOpened(1, STATUS_FAILURE))
    assert failed == [messages.OpenChannelResult(1, 5, STATUS_FAILURE)]
    host.open(1)


@pytest.mark.parametrize(
    "request_",
    [
        messages.OpenChannel(1, 5, RING + 1, 0, 4),  # another channel's
        messages.OpenChannel(1, 5, 3, 0, 4),  # nobody's
        messages.OpenChannel(1, 5, RING, 0, 0),
        messages.OpenChannel(1, 5, RING, 0, 1),  # no page of data in the first ring
        messages.OpenChannel(1, 5, RING, 0, 7),  # none in the second
        messages.OpenChannel(1, 5, RING, 0, 0xFFFF_FFFF),
        messages.OpenChannel(1, 5, RING, 2, 4),  # a VP that is not there
        messages.OpenChannel(1, 5, RING + 2, 0, 4),  # rings that begin within a page
    ],
)
def test_an_impossible_open_is_answered_and_changes_nothing(request_: messages.OpenChannel) -> None:
    host = connected(DISK, NIC)
    host.map(1)
    host.map(2, RING + 1)
    host.map(1, RING + 2, (GpaRange.contiguous(0x200, 8 * PAGE_BYTES, 8),))
    before = host.server.to_state()
    assert host.receive(request_) == [messages.OpenChannelResult(1, 5, STATUS_FAILURE)]
    assert host.server.to_state() == before
    assert host.receive(messages.OpenChannel(1, 5, RING, NO_INTERRUPT_VP, 6)) != []


def test_signal_parameters_are_the_guests_only_where_negotiated_and_only_possible_ones() -> None:
    host = Host(Version.V6_0, features=int(FeatureFlags.GUEST_SPECIFIED_SIGNAL_PARAMETERS))
    host.offer()
    host.connect()
    host.map(1)
    for connection, flag in ((4, 9), (1 << 24, 9), (0x9000, 0), (0x9000, 2048)):
        refused = host.receive(messages.OpenChannel(1, 5, RING, 0, 4, bytes(120), connection, flag, 0))
        assert refused == [messages.OpenChannelResult(1, 5, STATUS_FAILURE)]
    (request,) = host.receive(messages.OpenChannel(1, 5, RING, 0, 4, bytes(120), 0x9000, 9, 0))
    assert isinstance(request, actions.OpenChannel)
    assert (request.connection_id, request.event_flag) == (0x9000, 9)


def test_interrupts_move_and_the_answer_comes_from_5_3_on() -> None:
    for version in Version:
        host = connected(DISK, version=version)
        host.map(1)
        host.open(1)
        if version < Version.V4_1:
            assert host.refuses(messages.ModifyChannel(1, 1))
            continue
        answered = version >= Version.V5_3
        assert host.receive(messages.ModifyChannel(1, 1)) == [actions.ModifyChannel(1, 1)]
        assert host.server.pending() == [actions.ModifyChannel(1, 1)]
        expected = [messages.ModifyChannelResponse(1, 0)] if answered else []
        assert host.completed(actions.ChannelModified(1)) == expected
        assert [one.target_vp for one in host.server.standing() if isinstance(one, actions.OpenChannel)] == [
            1
        ]
        refusal = [messages.ModifyChannelResponse(1, STATUS_FAILURE)] if answered else []
        assert host.receive(messages.ModifyChannel(1, 9)) == refusal
        for _ in range(MAX_MOVES):
            host.receive(messages.ModifyChannel(1, 0))
        assert host.refuses(messages.ModifyChannel(1, 0))
        host.receive(messages.CloseChannel(1))
        with pytest.raises(LocalProtocolError):  # the moves come first
            host.completed(actions.ChannelClosed(1))


# -- GPADLs


def test_a_gpadl_is_created_used_and_torn_down_only_by_its_own_channel() -> None:
    host = connected(DISK, NIC)
    host.map(1)
    assert host.receive(gpadl_messages(2, RING, RINGS)[0]) == [messages.GpadlCreated(2, RING, STATUS_FAILURE)]
    assert host.refuses(messages.GpadlTeardown(2, RING))
    assert host.refuses(messages.GpadlTeardown(1, RING + 1))
    assert host.receive(messages.GpadlTeardown(1, RING)) == [actions.UnmapGpadl(1, RING)]
    assert host.refuses(messages.GpadlTeardown(1, RING))
    assert host.completed(actions.GpadlUnmapped(RING)) == [messages.GpadlTorndown(RING)]
    host.map(2)


def test_a_gpadl_that_cannot_be_mapped_is_refused_and_its_handle_free_again() -> None:
    host = connected(DISK)
    assert host.receive(gpadl_messages(1, RING, RINGS)[0]) == [actions.MapGpadl(1, RING, RINGS)]
    assert host.refuses(messages.GpadlTeardown(1, RING))  # not created yet
    failed = host.completed(actions.GpadlMapped(RING, STATUS_FAILURE))
    assert failed == [messages.GpadlCreated(1, RING, STATUS_FAILURE)]
    host.map(1)


def test_the_rings_of_an_open_channel_cannot_be_torn_down_but_its_buffers_can() -> None:
    host = opened()
    host.map(1, RING + 1)
    assert host.refuses(messages.GpadlTeardown(1, RING))
    assert host.receive(messages.GpadlTeardown(1, RING + 1)) == [actions.UnmapGpadl(1, RING + 1)]
    host.receive(messages.CloseChannel(1))
    assert host.receive(messages.GpadlTeardown(1, RING)) == []  # waits for the device to stop
    assert host.completed(actions.ChannelClosed(1)) == [actions.UnmapGpadl(1, RING)]


def test_bad_ranges_are_answered_and_stray_bodies_dropped() -> None:
    host = connected(DISK)
    bad = messages.GpadlHeader(1, 5, 16, 1, bytes(16))
    assert host.receive(bad) == [messages.GpadlCreated(1, 5, STATUS_FAILURE)]
    assert host.refuses(messages.GpadlBody(1, 5, bytes(8)))
    assert host.refuses(messages.GpadlHeader(2, 5, 16, 1, bytes(16)))  # no such channel


def test_a_guest_cannot_hold_more_gpadls_or_pages_than_the_limits() -> None:
    host = connected(DISK)
    one_page = (GpaRange.contiguous(0, PAGE_BYTES),)
    for gpadl in range(MAX_GPADLS):
        host.map(1, gpadl, one_page)
    refused = host.receive(gpadl_messages(1, MAX_GPADLS, one_page)[0])
    assert refused == [messages.GpadlCreated(1, MAX_GPADLS, STATUS_FAILURE)]

    host = connected(DISK)
    pages, gpadl = 0, 0
    while pages + 8000 < MAX_CONNECTION_GPADL_PAGES:
        assert host.receive(messages.GpadlHeader(1, gpadl, 8 * 8001, 1, b"")) == []
        pages, gpadl = pages + 8001, gpadl + 1
    refused = host.receive(messages.GpadlHeader(1, gpadl, 8 * 8001, 1, b""))
    assert refused == [messages.GpadlCreated(1, gpadl, STATUS_FAILURE)]
