"""Channel messages: layouts against byte vectors, round trips of all of them, and nothing but typed errors for junk."""

from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bus import channel_messages as messages
from bus.channel_message_codec import (
    HEADER_BYTES,
    MAX_MESSAGE_BYTES,
    ChannelMessage,
    ChannelMessageError,
    ChannelMessageType,
    FeatureFlags,
    MalformedMessage,
    ShortMessage,
    Side,
    UnknownMessage,
    Version,
    decode_message,
    message_classes,
)
from bus.channel_messages import InitiateContact, OfferChannel, OpenChannel, VersionResponse
from bus.guids import SCSI
from tests.bus.channel_message_strategies import messages_of

ALL_FEATURES = FeatureFlags(0xFF)
# Lengths of whole messages, by type number.
SIZES = {
    1: (196,),
    2: (12,),
    3: (8,),
    4: (8,),
    5: (148, 156),
    6: (20,),
    7: (12,),
    8: (20,),
    9: (16,),
    10: (20,),
    11: (16,),
    12: (12,),
    13: (12,),
    14: (40, 56),
    15: (16, 20, 40),
    16: (8,),
    17: (8,),
    18: (28,),
    19: (20,),
    20: (12,),
    21: (40, 56),
    22: (16,),
    23: (44,),
    24: (16,),
    25: (24,),
    26: (9,),
    27: (8,),
    28: (8,),
    29: (8,),
}


def wire_version(message: ChannelMessage) -> tuple[int, FeatureFlags]:
    """What must have been negotiated for the message to be read back in the form that it has."""
    match message:
        case OpenChannel(connection_id=None):
            return Version.V6_0, ALL_FEATURES & ~messages.LONG_OPEN_FEATURES
        case VersionResponse(features=None):
            return Version.V5_3, FeatureFlags.NONE
        case messages.TlConnectRequest(silo=None):
            return Version.V4_1, FeatureFlags.NONE
    return Version.V6_0, ALL_FEATURES


def test_every_type_has_one_class_and_its_known_size() -> None:
    assert {cls.message_type: cls.sizes for cls in message_classes()} == SIZES
    assert set(SIZES) == set(ChannelMessageType)


@pytest.mark.parametrize(
    ("message", "vector"),
    [
        (
            InitiateContact(Version.V5_3, 0, 2, 0x100_0000, 0x100_1000),
            "0e 00 00 00 00 00 00 00 03 00 05 00 00 00 00 00 02 00 00 00 00 00 00 00 00 00 00 01 00 00 00 00"
            "00 10 00 01 00 00 00 00",
        ),
        (VersionResponse(1, 0, 4), "0f 00 00 00 00 00 00 00 01 00 00 00 04 00 00 00"),
        (VersionResponse(1, 0, 4, 1), "0f 00 00 00 00 00 00 00 01 00 00 00 04 00 00 00 01 00 00 00"),
        (messages.RelidReleased(5), "0d 00 00 00 00 00 00 00 05 00 00 00"),
        (messages.GpadlTorndown(0xE1E10), "0c 00 00 00 00 00 00 00 10 1e 0e 00"),
        (
            messages.TlConnectResult(UUID(int=0), SCSI, messages.STATUS_CONNECTION_REFUSED),
            "17 00 00 00 00 00 00 00"
            + "00" * 16
            + "d9 63 61 ba a1 04 29 4d b6 05 72 e2 ff b1 dc 7f 36 02 00 c0",
        ),
    ],
)
def test_byte_vectors(message: ChannelMessage, vector: str) -> None:
    assert message.encode() == bytes.fromhex(vector)
    version, features = wire_version(message)
    assert decode_message(bytes.fromhex(vector), message.sender, version, features) == message


def test_offer_fields_stand_where_the_wire_has_them() -> None:
    offer = OfferChannel(
        interface=SCSI,
        instance=UUID("00112233-4455-6677-8899-aabbccddeeff"),
        flags=0x11,
        mmio_megabytes=8,
        user_data=bytes(range(120)),
        sub_channel_index=3,
        mmio_megabytes_optional=4,
        relid=2047,
        monitor_id=0xFF,
        monitor_allocated=0,
        is_dedicated=1,
        connection_id=0x27FF,
    )
    data = offer.encode()
    assert len(data) == 196
    assert data[8:24] == SCSI.bytes_le
    assert data[24:40] == offer.instance.bytes_le
    assert data[40:56] == bytes(16)
    assert data[56:60] == b"\x11\x00\x08\x00"
    assert data[60:180] == bytes(range(120))
    assert data[180:] == bytes.fromhex("0300 0400 ff070000 ff 00 0100 ff270000")


def test_open_and_contact_fields_stand_where_the_wire_has_them() -> None:
    data = OpenChannel(1, 2, 3, 4, 5, bytes(range(120)), 6, 7, 1).encode()
    assert data[8:28] == bytes.fromhex("01000000 02000000 03000000 04000000 05000000")
    assert data[28:148] == bytes(range(120))
    assert data[148:] == bytes.fromhex("06000000 0700 0100")
    contact = InitiateContact.create(Version.V6_0, 1, FeatureFlags.GPA_PINNING, sint=2)
    assert contact.encode()[16:24] == bytes.fromhex("02 00 0000 80000000")
    assert (contact.sint, contact.vtl, contact.features) == (2, 0, FeatureFlags.GPA_PINNING)
    old = InitiateContact.create(Version.V4_0, interrupt_page=0x1234_5000)
    assert old.encode()[16:24] == bytes.fromhex("0050341200000000")
    assert (old.sint, old.features) == (2, FeatureFlags.NONE)


@pytest.mark.parametrize("cls", message_classes(), ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_every_message_survives_the_wire(cls: type[ChannelMessage], data: st.DataObject) -> None:
    message = data.draw(messages_of(cls))
    if isinstance(message, VersionResponse) and message.features is not None:
        # The form follows from what it says: a refusal is short, monitor pages come with their feature.
        monitor = FeatureFlags.SERVER_SPECIFIED_MONITOR_PAGES
        with_pages = message.parent_to_child_page is not None
        agreed = message.features | monitor if with_pages else message.features & ~monitor
        pages = (message.parent_to_child_page, message.child_to_parent_page)
        message = VersionResponse(1, message.connection_state, message.connection_id, agreed, *pages)
    version, features = wire_version(message)
    encoded = message.encode()
    assert len(encoded) in cls.sizes or cls in (messages.GpadlHeader, messages.GpadlBody)
    assert decode_message(encoded, cls.sender, version, features) == message


@pytest.mark.parametrize("cls", message_classes(), ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_a_message_cut_short_is_refused_and_trailing_bytes_are_ignored(
    cls: type[ChannelMessage], data: st.DataObject
) -> None:
    message = data.draw(messages_of(cls))
    encoded = message.encode()
    version, features = wire_version(message)
    cut = data.draw(st.integers(0, cls.sizes[0] - 1))
    with pytest.raises(ShortMessage):
        decode_message(encoded[:cut], cls.sender, version, features)
    if not cls._layout.has_rest and not isinstance(message, VersionResponse):
        junk = data.draw(st.binary(max_size=MAX_MESSAGE_BYTES - len(encoded)))
        if isinstance(message, messages.TlConnectRequest) and message.silo is None:
            version = Version.V4_1
        assert decode_message(encoded + junk, cls.sender, version, features) == message


def test_the_long_forms_are_demanded_where_they_were_negotiated() -> None:
    short = OpenChannel(1, 1, 1, 0, 4).encode()
    decode_message(short, Side.GUEST, Version.V6_0, FeatureFlags.NONE)
    with pytest.raises(ShortMessage):
        decode_message(short, Side.GUEST, Version.V6_0, FeatureFlags.GUEST_SPECIFIED_SIGNAL_PARAMETERS)
    accepted = VersionResponse(1, 0, 4).encode()
    decode_message(accepted, Side.HOST, Version.V5_3)
    with pytest.raises(ShortMessage):
        decode_message(accepted, Side.HOST, Version.V6_0)
    decode_message(VersionResponse(0, 0).encode(), Side.HOST, Version.V6_0)  # a refusal stays short


@given(
    data=st.binary(max_size=300),
    sender=st.sampled_from(Side),
    version=st.sampled_from([0, *Version]),
    features=st.integers(0, 0xFFFF_FFFF).map(FeatureFlags),
)
def test_arbitrary_bytes_raise_the_typed_error_or_decode(
    data: bytes, sender: Side, version: int, features: FeatureFlags
) -> None:
    try:
        message = decode_message(data, sender, version, features)
    except ChannelMessageError:
        return
    assert message.sender is sender
    assert len(data) >= message.sizes[0]


@given(number=st.integers(0, 32), junk=st.binary(max_size=MAX_MESSAGE_BYTES - HEADER_BYTES), data=st.data())
@example(number=5, junk=bytes(232), data=None)
def test_likely_types_with_junk_bodies_raise_the_typed_error_or_decode(
    number: int, junk: bytes, data: st.DataObject | None
) -> None:
    version = Version.V6_0 if data is None else data.draw(st.sampled_from([0, *Version]))
    for sender in Side:
        try:
            decode_message(number.to_bytes(8, "little") + junk, sender, version, ALL_FEATURES)
        except ChannelMessageError:
            continue


@pytest.mark.parametrize("cls", message_classes(), ids=lambda cls: cls.__name__)
def test_messages_of_a_later_version_or_the_wrong_side_are_unknown(cls: type[ChannelMessage]) -> None:
    data = cls.message_type.to_bytes(8, "little") + bytes(232)
    other = Side.GUEST if cls.sender is Side.HOST else Side.HOST
    with pytest.raises(UnknownMessage):
        decode_message(data, other, Version.V6_0, ALL_FEATURES)
    for version in (0, *Version):
        if version < cls.since:
            with pytest.raises(UnknownMessage):
                decode_message(data, cls.sender, version, ALL_FEATURES)
        elif not cls.feature:
            assert decode_message(data, cls.sender, version, ALL_FEATURES).message_type is cls.message_type
    if cls.feature:
        with pytest.raises(UnknownMessage):
            decode_message(data, cls.sender, Version.V6_0, FeatureFlags.NONE)


def test_only_contact_messages_exist_before_a_version_does() -> None:
    assert {cls for cls in message_classes() if cls.since == 0} == {InitiateContact, VersionResponse}


def test_too_long_messages_are_malformed_either_way() -> None:
    with pytest.raises(MalformedMessage):
        decode_message(bytes(MAX_MESSAGE_BYTES + 1), Side.GUEST, Version.V6_0)
    with pytest.raises(ValueError, match="241 bytes"):
        messages.GpadlBody(1, 1, bytes(241 - 16)).encode()


@pytest.mark.parametrize(
    "message",
    [
        messages.RelidReleased(1 << 32),
        messages.RelidReleased(-1),
        OpenChannel(1, 1, 1, 0, 4, bytes(119)),
        OpenChannel(1, 1, 1, 0, 4, bytes(120), None, 5, None),
        OpenChannel(1, 1, 1, 0, 4, bytes(120), 7),
        VersionResponse(1, 0, 4, None, 1, 2),
    ],
)
def test_a_message_that_fits_no_form_is_not_encoded(message: ChannelMessage) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each has its own words
        message.encode()


def test_pipe_user_data_has_the_pipe_flags_last() -> None:
    data = messages.pipe_user_data(messages.PipeMode.MESSAGE, b"abc", gpa_direct=True)
    assert data == b"\x04\0\0\0abc" + bytes(109) + b"\x01\0\0\0"
    with pytest.raises(ValueError, match="113"):
        messages.pipe_user_data(messages.PipeMode.BYTE, bytes(113))
