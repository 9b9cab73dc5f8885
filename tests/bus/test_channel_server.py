"""The host's end of a connection, message by message. What both ends do together is in test_channel_pair."""

import random
from uuid import UUID

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import channel_actions as actions
from bus import channel_messages as messages
from bus.channel_actions import Action, OfferParameters, SendMessage
from bus.channel_lifecycle import MAX_MOVES, ConnectionStage
from bus.channel_message_codec import (
    MAX_MESSAGE_BYTES,
    ChannelMessage,
    FeatureFlags,
    Side,
    Version,
    decode_message,
    message_classes,
)
from bus.channel_messages import (
    MAX_CHANNELS,
    NO_INTERRUPT_VP,
    STATUS_CONNECTION_REFUSED,
    STATUS_FAILURE,
    InitiateContact,
    OfferFlags,
    VersionResponse,
)
from bus.channel_server import ChannelServer
from bus.channel_states import TRANSITIONS, ChannelEvent, ChannelState
from bus.gpadl import gpadl_messages
from bus.gpadl_server import MAX_CONNECTION_GPADL_PAGES, MAX_GPADLS
from bus.guids import NETWORK, SCSI
from bus.memory import PAGE_BYTES
from bus.packets import GpaRange
from bus.protocol_errors import LocalProtocolError, RemoteProtocolError
from tests.bus.channel_message_strategies import messages_of

DISK = OfferParameters(interface=SCSI, instance=UUID(int=1))
NIC = OfferParameters(interface=NETWORK, instance=UUID(int=2))
NIC_SUB = OfferParameters(interface=NETWORK, instance=UUID(int=2), sub_channel_index=1)
RINGS = (GpaRange.contiguous(0x100, 8 * PAGE_BYTES),)
RING = 0xE1E10


class Host:
    """A server and what it sent, decoded. Actions other than messages are returned as they are."""

    def __init__(self, version: Version = Version.V5_3, **settings: int) -> None:
        self.server = ChannelServer(vp_count=settings.get("vp_count", 2))
        self.version, self.features = version, FeatureFlags(settings.get("features", 0))

    def heard(self, done: list[Action]) -> list[Action | ChannelMessage]:
        return [
            decode_message(one.payload, Side.HOST, self.version, self.features)
            if isinstance(one, SendMessage)
            else one
            for one in done
        ]

    def receive(self, message: ChannelMessage) -> list[Action | ChannelMessage]:
        return self.heard(self.server.receive(message.encode()))

    def completed(self, completion: actions.Completion) -> list[Action | ChannelMessage]:
        return self.heard(self.server.completed(completion))

    def refuses(self, message: ChannelMessage) -> bool:
        """Whether the message is the guest's fault; then nothing may have changed."""
        before = self.server.to_state()
        try:
            self.server.receive(message.encode())
        except RemoteProtocolError:
            assert self.server.to_state() == before
            return True
        return False

    def connect(self) -> None:
        contact = InitiateContact.create(self.version, 1, self.features)
        *_, made, response = self.receive(contact)
        target_vp = 1 if self.version >= Version.V3_0 else 0
        assert made == actions.ConnectionMade(self.version, self.features, target_vp)
        assert isinstance(response, VersionResponse)
        assert response.supported
        self.receive(messages.RequestOffers())

    def offer(self, parameters: OfferParameters = DISK) -> int:
        return self.server.offer(parameters)[0]

    def map(self, relid: int, gpadl: int = RING, ranges: tuple[GpaRange, ...] = RINGS) -> None:
        for message in gpadl_messages(relid, gpadl, ranges):
            done = self.receive(message)
        assert done == [actions.MapGpadl(relid, gpadl, ranges)]
        assert self.completed(actions.GpadlMapped(gpadl)) == [messages.GpadlCreated(relid, gpadl, 0)]

    def open(self, relid: int, gpadl: int = RING) -> None:
        (request,) = self.receive(messages.OpenChannel(relid, 77, gpadl, 0, 4))
        assert isinstance(request, actions.OpenChannel)
        assert self.completed(actions.ChannelOpened(relid)) == [messages.OpenChannelResult(relid, 77, 0)]


def connected(*offers: OfferParameters, version: Version = Version.V5_3) -> Host:
    host = Host(version)
    for parameters in offers:
        host.offer(parameters)
    host.connect()
    return host


def opened() -> Host:
    host = connected(DISK)
    host.map(1)
    host.open(1)
    return host


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


# -- hostile guests


@given(st.lists(st.binary(max_size=MAX_MESSAGE_BYTES + 10), max_size=20))
def test_arbitrary_bytes_raise_the_typed_error_and_change_nothing(blobs: list[bytes]) -> None:
    host = opened()
    for blob in blobs:
        before = host.server.to_state()
        try:
            host.server.receive(blob)
        except RemoteProtocolError:
            assert host.server.to_state() == before


@pytest.mark.parametrize("seed", range(60))
def test_random_well_formed_and_mutated_messages_never_break_the_server(seed: int) -> None:
    """Small numbers, so that they meet; completions at random. Every action gets exactly one answer."""
    rng = random.Random(seed)
    server = ChannelServer(vp_count=2)
    instances = [UUID(int=number) for number in range(1, 4)]
    for instance in instances:
        server.offer(OfferParameters(interface=SCSI, instance=instance))
    waiting: list[Action] = []
    classes = [cls for cls in message_classes() if cls.sender is Side.GUEST]
    for _ in range(600):
        done: list[Action] = []
        before = server.to_state()
        try:
            match rng.random():
                case draw if draw < 0.60:
                    cls = rng.choice(classes)
                    body = b"".join(
                        rng.choice((0, 1, 1, 2, 3, 4, 16, 24)).to_bytes(4, "little") for _ in range(58)
                    )
                    data = cls.message_type.to_bytes(8, "little") + body
                    if cls is InitiateContact or cls is messages.Unload:
                        if rng.random() < 0.7:
                            continue
                        data = InitiateContact.create(rng.choice(list(Version)), 0).encode()
                    if cls is messages.GpadlHeader:
                        gpadl, pages = rng.randrange(4), rng.randrange(1, 9)
                        ranges = [GpaRange.contiguous(0, pages * PAGE_BYTES)]
                        data = gpadl_messages(rng.randrange(1, 4), gpadl, ranges)[0].encode()
                    if cls is messages.OpenChannel and rng.random() < 0.8:
                        relid, gpadl = rng.randrange(1, 4), rng.randrange(4)
                        data = messages.OpenChannel(relid, 1, gpadl, 0, rng.randrange(6)).encode()
                    if rng.random() < 0.1:
                        data = data[: rng.randrange(len(data))]
                    done = server.receive(data[:MAX_MESSAGE_BYTES])
                case draw if draw < 0.63:
                    done = server.revoke(rng.randrange(1, 5))
                case draw if draw < 0.66:
                    done = server.offer(OfferParameters(interface=SCSI, instance=rng.choice(instances)))[1]
                case draw if draw < 0.67:
                    server = ChannelServer.from_state(msgpack.unpackb(msgpack.packb(before)))
                    assert server.to_state() == before
                case _ if waiting:
                    action = waiting.pop(rng.randrange(len(waiting)))
                    done = server.completed(answer_to(action, waiting, rng))
        except (RemoteProtocolError, LocalProtocolError):
            assert server.to_state() == before
        waiting += [one for one in done if isinstance(one, ASYNCHRONOUS)]
        assert sorted(map(repr, waiting)) == sorted(map(repr, server.pending()))
    done = server.disconnect()
    while waiting := waiting + [one for one in done if isinstance(one, ASYNCHRONOUS)]:
        done = server.completed(answer_to(waiting.pop(0), waiting, rng))
    assert server.stage is ConnectionStage.DISCONNECTED
    assert server.pending() == server.standing() == []


ASYNCHRONOUS = (
    actions.MapGpadl,
    actions.UnmapGpadl,
    actions.OpenChannel,
    actions.CloseChannel,
    actions.ModifyChannel,
)


def answer_to(action: Action, waiting: list[Action], rng: random.Random) -> actions.Completion:
    """What reports the action; a stop is put off until the moves of its channel have been reported."""
    status = rng.choice((0, 0, STATUS_FAILURE))
    match action:
        case actions.MapGpadl(_, gpadl):
            return actions.GpadlMapped(gpadl, status)
        case actions.UnmapGpadl(_, gpadl):
            return actions.GpadlUnmapped(gpadl)
        case actions.OpenChannel(relid):
            return actions.ChannelOpened(relid, status)
        case actions.ModifyChannel(relid):
            return actions.ChannelModified(relid, status)
        case actions.CloseChannel(relid):
            for other in waiting:
                if isinstance(other, actions.ModifyChannel) and other.relid == relid:
                    waiting.remove(other)
                    waiting.append(action)
                    return actions.ChannelModified(relid, status)
            return actions.ChannelClosed(relid)
    raise AssertionError(action)


@given(data=st.data())
def test_any_guest_message_is_an_answer_or_the_typed_error(data: st.DataObject) -> None:
    host = opened()
    cls = data.draw(st.sampled_from([cls for cls in message_classes() if cls.sender is Side.GUEST]))
    before = host.server.to_state()
    try:
        host.server.receive(data.draw(messages_of(cls)).encode())
    except RemoteProtocolError:
        assert host.server.to_state() == before
