"""How channel-management messages turn into bytes and back. The messages are in `bus.channel_messages`.

A message is a frozen dataclass whose annotations are its wire layout: `U32`, `Guid` and the others stand for
the Python type and the bytes at once. `@message` derives the layout, checks its size and registers the class.
Each message begins with an 8-byte header, u32 type and u32 zero, and fits the 240 bytes of a SynIC payload.

Some messages grew: later fields follow the earlier ones and are None where they are absent. Bytes behind the
last field that the version knows are ignored, because some guests always post 240.

Sources: Linux include/linux/hyperv.h; openvmm vm/devices/vmbus/vmbus_core/src/protocol.rs.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import Enum, IntEnum, IntFlag
from typing import Annotated, Any, ClassVar, Final, Self, TypeVar, get_args, get_type_hints
from uuid import UUID

from bus.protocol_errors import RemoteProtocolError
from bus.synic import MAX_PAYLOAD_BYTES

HEADER_BYTES: Final = 8
MAX_MESSAGE_BYTES: Final = MAX_PAYLOAD_BYTES
USER_DATA_BYTES: Final = 120


class ChannelMessageError(RemoteProtocolError):
    """The bytes are no message that the protocol allows here."""


class ShortMessage(ChannelMessageError):
    """Fewer bytes than the message type needs."""


class UnknownMessage(ChannelMessageError):
    """A type that does not exist, not in this version, or not in this direction."""


class MalformedMessage(ChannelMessageError):
    """A field has a value that no reader could take; or the message is too long for a SynIC slot."""


class Version(IntEnum):
    """Protocol versions that partvisor speaks: major << 16 | minor."""

    V2_4 = 0x0002_0004
    V3_0 = 0x0003_0000
    V4_0 = 0x0004_0000
    V4_1 = 0x0004_0001
    V5_0 = 0x0005_0000
    V5_1 = 0x0005_0001
    V5_2 = 0x0005_0002
    V5_3 = 0x0005_0003
    V6_0 = 0x0006_0000


class FeatureFlags(IntFlag):
    """Negotiated from 6.0 on; the reply carries the subset that the server supports."""

    NONE = 0
    GUEST_SPECIFIED_SIGNAL_PARAMETERS = 0x1
    CHANNEL_INTERRUPT_REDIRECTION = 0x2
    MODIFY_CONNECTION = 0x4
    CLIENT_ID = 0x8
    CONFIDENTIAL_CHANNELS = 0x10
    PAUSE_RESUME = 0x20
    SERVER_SPECIFIED_MONITOR_PAGES = 0x40
    GPA_PINNING = 0x80


class Side(Enum):
    HOST = "host"
    GUEST = "guest"


class ChannelMessageType(IntEnum):
    OFFERCHANNEL = 1
    RESCIND_CHANNELOFFER = 2
    REQUESTOFFERS = 3
    ALLOFFERS_DELIVERED = 4
    OPENCHANNEL = 5
    OPENCHANNEL_RESULT = 6
    CLOSECHANNEL = 7
    GPADL_HEADER = 8
    GPADL_BODY = 9
    GPADL_CREATED = 10
    GPADL_TEARDOWN = 11
    GPADL_TORNDOWN = 12
    RELID_RELEASED = 13
    INITIATE_CONTACT = 14
    VERSION_RESPONSE = 15
    UNLOAD = 16
    UNLOAD_RESPONSE = 17
    OPEN_RESERVED_CHANNEL = 18
    CLOSE_RESERVED_CHANNEL = 19
    CLOSE_RESERVED_RESPONSE = 20
    TL_CONNECT_REQUEST = 21
    MODIFYCHANNEL = 22
    TL_CONNECT_RESULT = 23
    MODIFYCHANNEL_RESPONSE = 24
    MODIFY_CONNECTION = 25
    MODIFY_CONNECTION_RESPONSE = 26
    PAUSE = 27
    PAUSE_RESPONSE = 28
    RESUME = 29


# -- field types: Annotated[Python type, struct code], in wire order; an "x" in the code is padding
U8 = Annotated[int, "B"]
U16 = Annotated[int, "H"]
U32 = Annotated[int, "I"]
U64 = Annotated[int, "Q"]
Guid = Annotated[UUID, "16s"]
UserData = Annotated[bytes, "120s"]
Rest = Annotated[bytes, ""]  # whatever follows; the last field only

_HEADER: Final = struct.Struct("<I4x")
assert _HEADER.size == HEADER_BYTES


@dataclass(frozen=True, slots=True)
class _Layout:
    """What `@message` made of a class's annotations."""

    names: tuple[str, ...]
    codes: tuple[str, ...]
    is_guid: tuple[bool, ...]
    ends: tuple[int, ...]  # where each field ends, header counted
    has_rest: bool


@dataclass(frozen=True, slots=True)
class ChannelMessage:
    """Base of every message."""

    message_type: ClassVar[ChannelMessageType]
    sender: ClassVar[Side]
    since: ClassVar[int]  # the first version that has it
    feature: ClassVar[FeatureFlags]  # 0, or what must have been negotiated
    sizes: ClassVar[tuple[int, ...]]  # the shortest form first
    _layout: ClassVar[_Layout]

    @classmethod
    def form(cls, data: bytes, version: int, features: FeatureFlags) -> int:
        """Which of `sizes` these bytes must have. Overridden where it depends on more than the class."""
        return cls.sizes[0]

    def encode(self) -> bytes:
        """The message; optional fields that are None are left off its end.

        ValueError if a number does not fit its field, or a None stands before a value.
        """
        layout = self._layout
        values = [getattr(self, name) for name in layout.names]
        rest = values.pop() if layout.has_rest else b""
        while values and values[-1] is None:
            values.pop()
        size = layout.ends[len(values) - 1] if values else HEADER_BYTES
        if size not in self.sizes:
            raise ValueError(f"{type(self).__name__} with {len(values)} fields")
        codes = layout.codes[: len(values)]
        raw = [value.bytes_le if isinstance(value, UUID) else value for value in values]
        for value, code in zip(raw, codes, strict=True):
            if isinstance(value, bytes) and len(value) != struct.calcsize(code):
                raise ValueError(f"{type(self).__name__}: {len(value)} bytes for {code}")
        try:
            body = struct.pack("<" + "".join(codes), *raw)
        except struct.error as error:
            raise ValueError(f"{self!r}: {error}") from None
        encoded = _HEADER.pack(self.message_type) + body + rest
        if len(encoded) > MAX_MESSAGE_BYTES:
            raise ValueError(f"{type(self).__name__} of {len(encoded)} bytes")
        return encoded

    @classmethod
    def decode(cls, data: bytes, version: int, features: FeatureFlags = FeatureFlags.NONE) -> Self:
        """From a whole message of this type. ShortMessage if a field of its form is missing."""
        layout = cls._layout
        if len(data) < cls.sizes[0] or len(data) < (size := cls.form(data, version, features)):
            raise ShortMessage(f"{cls.message_type.name} of {len(data)} bytes")
        count = sum(end <= size for end in layout.ends)
        raw = struct.unpack_from("<" + "".join(layout.codes[:count]), data, HEADER_BYTES)
        values: list[Any] = [
            UUID(bytes_le=value) if is_guid else value
            for value, is_guid in zip(raw, layout.is_guid, strict=False)
        ]
        if layout.has_rest:
            values.append(bytes(data[size:]))
        return cls(*values)


_MESSAGES: dict[ChannelMessageType, type[ChannelMessage]] = {}
_M = TypeVar("_M", bound=ChannelMessage)


def message(
    message_type: ChannelMessageType,
    sender: Side,
    *sizes: int,
    since: int = Version.V2_4,
    feature: FeatureFlags = FeatureFlags.NONE,
) -> Callable[[type[_M]], type[_M]]:
    """Register a message class. `sizes`: its whole length, header included, in each form that it has."""

    def register(cls: type[_M]) -> type[_M]:
        hints = get_type_hints(cls, include_extras=True)
        names, codes, is_guid, ends, end = [], [], [], [], HEADER_BYTES
        has_rest = False
        for field in fields(cls):
            hint = hints[field.name]
            if not hasattr(hint, "__metadata__"):  # "U32 | None": an optional field
                hint = next(part for part in get_args(hint) if hasattr(part, "__metadata__"))
            (code,) = hint.__metadata__
            names.append(field.name)
            if hint == Rest:
                has_rest = True
                continue
            end += struct.calcsize("<" + code)
            codes.append(code)
            is_guid.append(hint == Guid)
            ends.append(end)
        possible = {HEADER_BYTES, *ends} if has_rest or not ends else set(ends)
        assert possible.issuperset(sizes), (cls, sizes, ends)
        assert sizes[-1] == end, (cls, sizes, end)
        cls.message_type, cls.sender, cls.sizes = message_type, sender, sizes
        cls.since, cls.feature = since, feature
        cls._layout = _Layout(tuple(names), tuple(codes), tuple(is_guid), tuple(ends), has_rest)
        assert message_type not in _MESSAGES
        _MESSAGES[message_type] = cls
        return cls

    return register


def message_classes() -> tuple[type[ChannelMessage], ...]:
    """Every message there is, in the order of the type numbers."""
    return tuple(_MESSAGES[number] for number in sorted(_MESSAGES))


def decode_message(
    data: bytes, sender: Side, version: int, features: FeatureFlags = FeatureFlags.NONE
) -> ChannelMessage:
    """The message in a SynIC payload.

    Args:
        data: the payload as it arrived.
        sender: who posted it.
        version: what was negotiated; 0 before that, when only INITIATE_CONTACT exists.
        features: what was negotiated.

    Raises:
        ShortMessage, UnknownMessage, MalformedMessage: nothing else, whatever the bytes.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise MalformedMessage(f"{len(data)} bytes in one message")
    if len(data) < HEADER_BYTES:
        raise ShortMessage(f"{len(data)} bytes")
    (number,) = _HEADER.unpack_from(data)
    try:
        cls = _MESSAGES[ChannelMessageType(number)]
    except ValueError:
        raise UnknownMessage(f"type {number}") from None
    name = cls.message_type.name
    if cls.sender is not sender:
        raise UnknownMessage(f"{name} from the {sender.value}")
    if cls.since > version or cls.feature & ~features:
        raise UnknownMessage(f"{name} in version {version:#x} with features {features:#x}")
    return cls.decode(data, version, features)
