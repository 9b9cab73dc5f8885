"""Every channel-management message, in the order of the type numbers. Encoding: `bus.channel_message_codec`.

    guest: INITIATE_CONTACT           host: VERSION_RESPONSE
           REQUESTOFFERS                    OFFERCHANNEL..., ALLOFFERS_DELIVERED
           GPADL_HEADER, GPADL_BODY...      GPADL_CREATED
           OPENCHANNEL                      OPENCHANNEL_RESULT
           CLOSECHANNEL                     (no reply)
           GPADL_TEARDOWN                   GPADL_TORNDOWN
           RELID_RELEASED             <-    RESCIND_CHANNELOFFER
           UNLOAD                           UNLOAD_RESPONSE

Sources: Linux include/linux/hyperv.h; openvmm vm/devices/vmbus/vmbus_core/src/protocol.rs.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Annotated, Final, Self

from bus.channel_message_codec import (
    U8,
    U16,
    U32,
    U64,
    USER_DATA_BYTES,
    ChannelMessage,
    ChannelMessageType,
    FeatureFlags,
    Guid,
    Rest,
    Side,
    UserData,
    Version,
    message,
)
from bus.synic import FLAGS_PER_SINT, VMBUS_SINT

MAX_CHANNELS: Final = FLAGS_PER_SINT - 1  # relids 1 to 2047; event flag 0 is reserved
NO_INTERRUPT_VP: Final = 0xFFFF_FFFF  # OPENCHANNEL's target VP when the guest will poll
MONITOR_ID_UNUSED: Final = 0xFF
LONG_OPEN_FEATURES: Final = (
    FeatureFlags.GUEST_SPECIFIED_SIGNAL_PARAMETERS | FeatureFlags.CHANNEL_INTERRUPT_REDIRECTION
)

STATUS_SUCCESS: Final = 0
STATUS_FAILURE: Final = 0x8000_FFFF
STATUS_CONNECTION_REFUSED: Final = 0xC000_0236

_T = ChannelMessageType


class ConnectionState(IntEnum):
    """How a version that is supported fared."""

    SUCCESSFUL = 0
    LOW_RESOURCES = 1
    FAILED = 2


class OfferFlags(IntFlag):
    NONE = 0
    ENUMERATE_DEVICE_INTERFACE = 0x1
    CONFIDENTIAL_RING = 0x2
    CONFIDENTIAL_EXTERNAL_MEMORY = 0x4
    REQUIRES_PINNED_MEMORY = 0x8
    NAMED_PIPE = 0x10  # payloads begin with a pipe header
    LOOPBACK = 0x100
    PARENT_OFFER = 0x200
    MONITORED_NOTIFICATION = 0x400
    HV_SOCK = 0x2000


class PipeMode(IntEnum):
    """First u32 of the user data in an offer with OfferFlags.NAMED_PIPE."""

    BYTE = 0
    MESSAGE = 4


PIPE_USER_BYTES: Final = 112
_PIPE_USER_DATA: Final = struct.Struct("<I112sI")
assert _PIPE_USER_DATA.size == USER_DATA_BYTES


def pipe_user_data(mode: PipeMode, user: bytes = b"", *, gpa_direct: bool = False) -> bytes:
    """User data for a named-pipe offer; `user` holds at most 112 bytes of the device's own."""
    if len(user) > PIPE_USER_BYTES:
        raise ValueError(f"{len(user)} user bytes")
    return _PIPE_USER_DATA.pack(mode, user, gpa_direct)


@message(_T.OFFERCHANNEL, Side.HOST, 196)
@dataclass(frozen=True, slots=True)
class OfferChannel(ChannelMessage):
    """A device that the guest may open. Valid until its rescind is answered by RELID_RELEASED."""

    interface: Guid  # selects the driver
    instance: Guid  # identity across re-offers
    flags: Annotated[int, "16xH"]  # OfferFlags, after 16 reserved bytes
    mmio_megabytes: U16
    user_data: UserData
    sub_channel_index: U16  # 0: the primary; others share both GUIDs with it
    mmio_megabytes_optional: U16
    relid: U32  # 1 to MAX_CHANNELS
    monitor_id: U8
    monitor_allocated: U8  # bit 0
    is_dedicated: U16  # bit 0: the connection below is this channel's alone
    connection_id: U32  # what the guest signals


@message(_T.RESCIND_CHANNELOFFER, Side.HOST, 12)
@dataclass(frozen=True, slots=True)
class RescindChannelOffer(ChannelMessage):
    relid: U32


@message(_T.REQUESTOFFERS, Side.GUEST, 8)
@dataclass(frozen=True, slots=True)
class RequestOffers(ChannelMessage):
    pass


@message(_T.ALLOFFERS_DELIVERED, Side.HOST, 8)
@dataclass(frozen=True, slots=True)
class AllOffersDelivered(ChannelMessage):
    pass


@message(_T.OPENCHANNEL, Side.GUEST, 148, 156)
@dataclass(frozen=True, slots=True)
class OpenChannel(ChannelMessage):
    """The long form exists with LONG_OPEN_FEATURES."""

    relid: U32
    open_id: U32  # the result carries it back
    ring_gpadl: U32
    target_vp: U32  # whose event flags the host sets; NO_INTERRUPT_VP: nobody's
    downstream_page_offset: U32  # pages from the GPADL's start to the host-to-guest ring's header
    user_data: UserData = bytes(USER_DATA_BYTES)
    connection_id: U32 | None = None
    event_flag: U16 | None = None
    flags: U16 | None = None  # bit 0: redirect the interrupt

    @classmethod
    def form(cls, data: bytes, version: int, features: FeatureFlags) -> int:
        return cls.sizes[1] if features & LONG_OPEN_FEATURES else cls.sizes[0]


@message(_T.OPENCHANNEL_RESULT, Side.HOST, 20)
@dataclass(frozen=True, slots=True)
class OpenChannelResult(ChannelMessage):
    relid: U32
    open_id: U32
    status: U32


@message(_T.CLOSECHANNEL, Side.GUEST, 12)
@dataclass(frozen=True, slots=True)
class CloseChannel(ChannelMessage):
    relid: U32


@message(_T.GPADL_HEADER, Side.GUEST, 20)
@dataclass(frozen=True, slots=True)
class GpadlHeader(ChannelMessage):
    """First part of a GPA descriptor list. The ranges follow at once, so PFNs are not 8-aligned."""

    relid: U32
    gpadl: U32
    range_buffer_bytes: U16  # of all ranges, in this message and in the bodies
    range_count: U16
    ranges: Rest


@message(_T.GPADL_BODY, Side.GUEST, 16)
@dataclass(frozen=True, slots=True)
class GpadlBody(ChannelMessage):
    message_number: U32  # nobody reads it
    gpadl: U32
    ranges: Rest


@message(_T.GPADL_CREATED, Side.HOST, 20)
@dataclass(frozen=True, slots=True)
class GpadlCreated(ChannelMessage):
    relid: U32
    gpadl: U32
    status: U32


@message(_T.GPADL_TEARDOWN, Side.GUEST, 16)
@dataclass(frozen=True, slots=True)
class GpadlTeardown(ChannelMessage):
    relid: U32
    gpadl: U32


@message(_T.GPADL_TORNDOWN, Side.HOST, 12)
@dataclass(frozen=True, slots=True)
class GpadlTorndown(ChannelMessage):
    gpadl: U32


@message(_T.RELID_RELEASED, Side.GUEST, 12)
@dataclass(frozen=True, slots=True)
class RelidReleased(ChannelMessage):
    relid: U32


@message(_T.INITIATE_CONTACT, Side.GUEST, 40, 56, since=0)
@dataclass(frozen=True, slots=True)
class InitiateContact(ChannelMessage):
    """The long form exists with FeatureFlags.CLIENT_ID, which the message itself asks for."""

    version: U32
    target_vp: U32  # whose message slot the host writes; honoured from 3.0 on
    target: U64  # below 5.0: GPA of the interrupt page; since: SINT u8, VTL u8, u16, features u32
    parent_to_child_page: U64 = 0  # monitor pages; both or neither
    child_to_parent_page: U64 = 0
    client_id: Guid | None = None

    @classmethod
    def create(
        cls,
        version: int,
        target_vp: int = 0,
        features: FeatureFlags = FeatureFlags.NONE,
        *,
        sint: int = VMBUS_SINT,
        interrupt_page: int = 0,
    ) -> Self:
        """A contact without monitor pages. Features are sent from 6.0 on, the SINT from 5.0 on."""
        if version < Version.V5_0:
            return cls(version, target_vp, interrupt_page)
        asked = int(features) if version >= Version.V6_0 else 0
        return cls(version, target_vp, sint | asked << 32)

    @property
    def sint(self) -> int:
        return self.target & 0xFF if self.version >= Version.V5_0 else VMBUS_SINT

    @property
    def vtl(self) -> int:
        return self.target >> 8 & 0xFF if self.version >= Version.V5_0 else 0

    @property
    def features(self) -> FeatureFlags:
        return FeatureFlags(self.target >> 32 if self.version >= Version.V6_0 else 0)

    @classmethod
    def form(cls, data: bytes, version: int, features: FeatureFlags) -> int:
        (asked_version,) = struct.unpack_from("<I", data, 8)
        (asked_features,) = struct.unpack_from("<I", data, 20)
        has_id = asked_version >= Version.V6_0 and asked_features & FeatureFlags.CLIENT_ID
        return cls.sizes[1] if has_id else cls.sizes[0]


@message(_T.VERSION_RESPONSE, Side.HOST, 16, 20, 40, since=0)
@dataclass(frozen=True, slots=True)
class VersionResponse(ChannelMessage):
    """Decode it with the version that was asked for. A refusal has the shortest form always."""

    supported: U8  # 0 or 1
    connection_state: Annotated[int, "B2x"]
    connection_id: U32 = 0  # from 5.0 on: where the guest posts from now on; before: the selected version
    features: U32 | None = None  # from 6.0 on
    parent_to_child_page: Annotated[int, "4xQ"] | None = None  # with SERVER_SPECIFIED_MONITOR_PAGES
    child_to_parent_page: U64 | None = None

    @classmethod
    def form(cls, data: bytes, version: int, features: FeatureFlags) -> int:
        if version < Version.V6_0 or not data[8]:
            return cls.sizes[0]
        if len(data) < cls.sizes[1]:
            return cls.sizes[1]  # and thus too short
        (agreed,) = struct.unpack_from("<I", data, 16)
        return cls.sizes[2] if agreed & FeatureFlags.SERVER_SPECIFIED_MONITOR_PAGES else cls.sizes[1]


@message(_T.UNLOAD, Side.GUEST, 8)
@dataclass(frozen=True, slots=True)
class Unload(ChannelMessage):
    pass


@message(_T.UNLOAD_RESPONSE, Side.HOST, 8)
@dataclass(frozen=True, slots=True)
class UnloadResponse(ChannelMessage):
    pass


@message(_T.OPEN_RESERVED_CHANNEL, Side.GUEST, 28, since=Version.V4_0)
@dataclass(frozen=True, slots=True)
class OpenReservedChannel(ChannelMessage):
    relid: U32
    target_vp: U32
    target_sint: U32
    ring_gpadl: U32
    downstream_page_offset: U32


@message(_T.CLOSE_RESERVED_CHANNEL, Side.GUEST, 20, since=Version.V4_0)
@dataclass(frozen=True, slots=True)
class CloseReservedChannel(ChannelMessage):
    relid: U32
    target_vp: U32
    target_sint: U32


@message(_T.CLOSE_RESERVED_RESPONSE, Side.HOST, 12, since=Version.V4_0)
@dataclass(frozen=True, slots=True)
class CloseReservedResponse(ChannelMessage):
    relid: U32


@message(_T.TL_CONNECT_REQUEST, Side.GUEST, 40, 56, since=Version.V4_0)
@dataclass(frozen=True, slots=True)
class TlConnectRequest(ChannelMessage):
    """hv_sock: the guest connects to a host service. Some guests send the short form after 5.2 too."""

    endpoint: Guid
    service: Guid
    silo: Guid | None = None

    @classmethod
    def form(cls, data: bytes, version: int, features: FeatureFlags) -> int:
        long_form = version >= Version.V5_2 and len(data) >= cls.sizes[1]
        return cls.sizes[1] if long_form else cls.sizes[0]


@message(_T.MODIFYCHANNEL, Side.GUEST, 16, since=Version.V4_1)
@dataclass(frozen=True, slots=True)
class ModifyChannel(ChannelMessage):
    relid: U32
    target_vp: U32


@message(_T.TL_CONNECT_RESULT, Side.HOST, 44, since=Version.V4_1)
@dataclass(frozen=True, slots=True)
class TlConnectResult(ChannelMessage):
    endpoint: Guid
    service: Guid
    status: U32


@message(_T.MODIFYCHANNEL_RESPONSE, Side.HOST, 16, since=Version.V5_3)
@dataclass(frozen=True, slots=True)
class ModifyChannelResponse(ChannelMessage):
    relid: U32
    status: U32


@message(_T.MODIFY_CONNECTION, Side.GUEST, 24, since=Version.V6_0, feature=FeatureFlags.MODIFY_CONNECTION)
@dataclass(frozen=True, slots=True)
class ModifyConnection(ChannelMessage):
    parent_to_child_page: U64
    child_to_parent_page: U64


@message(
    _T.MODIFY_CONNECTION_RESPONSE, Side.HOST, 9, since=Version.V6_0, feature=FeatureFlags.MODIFY_CONNECTION
)
@dataclass(frozen=True, slots=True)
class ModifyConnectionResponse(ChannelMessage):
    connection_state: U8


@message(_T.PAUSE, Side.GUEST, 8, since=Version.V6_0, feature=FeatureFlags.PAUSE_RESUME)
@dataclass(frozen=True, slots=True)
class Pause(ChannelMessage):
    pass


@message(_T.PAUSE_RESPONSE, Side.HOST, 8, since=Version.V6_0, feature=FeatureFlags.PAUSE_RESUME)
@dataclass(frozen=True, slots=True)
class PauseResponse(ChannelMessage):
    pass


@message(_T.RESUME, Side.GUEST, 8, since=Version.V6_0, feature=FeatureFlags.PAUSE_RESUME)
@dataclass(frozen=True, slots=True)
class Resume(ChannelMessage):
    pass
