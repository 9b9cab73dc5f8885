"""The synthetic video adapter's messages: pipe packets, all fields packed.

    guest   version request     ->  host   version response
    guest   VRAM location       ->  host   its acknowledgement, by the context that came with it
    guest   situation           ->  host   the same
    guest   dirty rectangles, pointer position and shape       host   which of these it wants
    guest   may ask for supported resolutions, BIOS info, capabilities

A version on this wire has its halves the other way round: minor << 16 | major.

Source: openvmm vm/devices/uidevices/src/video/protocol.rs; Linux drivers/video/fbdev/hyperv_fb.c.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

from partitions.display.display_error import DisplayError
from partitions.display.piped_message import decode_piped, encode_piped, fields
from partitions.display.rectangle import Rectangle


def version(major: int, minor: int) -> int:
    return minor << 16 | major


VERSIONS: Final = tuple(version(3, minor) for minor in (5, 4, 3, 2, 0))  # newest first
OUTPUTS: Final = 1  # that a guest may have; the protocol knows more
RESOLUTIONS_MAX: Final = 64
POINTER_SIDE_MAX: Final = 96
EDID_BYTES: Final = 128

_U32: Final = struct.Struct("<I")
_VERSION_RESPONSE: Final = struct.Struct("<IBB")
_VRAM: Final = struct.Struct("<QBQ")
_CONTEXT: Final = struct.Struct("<Q")
_SITUATION: Final = struct.Struct("<QB")
_OUTPUT: Final = struct.Struct("<BIBIII")
_POSITION: Final = struct.Struct("<BBii")
_SHAPE: Final = struct.Struct("<BBIIII")
_FEATURES: Final = struct.Struct("<BBBB")
_DIRT: Final = struct.Struct("<BB")
_RECTANGLE: Final = struct.Struct("<iiii")
_BIOS: Final = struct.Struct("<I12x")
_RESOLUTIONS: Final = struct.Struct(f"<{EDID_BYTES}sBBB")
_SIZE: Final = struct.Struct("<HH")
_CAPABILITIES: Final = struct.Struct("<I60x")

assert (_VERSION_RESPONSE.size, _VRAM.size, _OUTPUT.size, _POSITION.size) == (6, 17, 18, 10)  # bytes
assert (_SHAPE.size, _RECTANGLE.size, _BIOS.size, _CAPABILITIES.size) == (18, 16, 16, 64)


class VideoMessage(IntEnum):
    VERSION_REQUEST = 1
    VERSION_RESPONSE = 2
    VRAM_LOCATION = 3
    VRAM_LOCATION_ACK = 4
    SITUATION = 5
    SITUATION_ACK = 6
    POINTER_POSITION = 7
    POINTER_SHAPE = 8
    FEATURE_CHANGE = 9
    DIRT = 10
    BIOS_INFO_REQUEST = 11
    BIOS_INFO_RESPONSE = 12
    RESOLUTION_REQUEST = 13
    RESOLUTION_RESPONSE = 14
    CAPABILITY_REQUEST = 15
    CAPABILITY_RESPONSE = 16


@dataclass(frozen=True, slots=True)
class VersionRequest:
    version: int

    def encode(self) -> bytes:
        return encode_piped(VideoMessage.VERSION_REQUEST, _U32.pack(self.version))


@dataclass(frozen=True, slots=True)
class VersionResponse:
    version: int
    accepted: bool
    max_outputs: int = OUTPUTS

    def encode(self) -> bytes:
        body = _VERSION_RESPONSE.pack(self.version, self.accepted, self.max_outputs)
        return encode_piped(VideoMessage.VERSION_RESPONSE, body)


@dataclass(frozen=True, slots=True)
class VramLocation:
    context: int  # the guest's own; comes back in the acknowledgement
    gpa: int | None  # of the first byte; None: the guest gives none

    def encode(self) -> bytes:
        body = _VRAM.pack(self.context, self.gpa is not None, self.gpa or 0)
        return encode_piped(VideoMessage.VRAM_LOCATION, body)


@dataclass(frozen=True, slots=True)
class VramLocationAck:
    context: int

    def encode(self) -> bytes:
        return encode_piped(VideoMessage.VRAM_LOCATION_ACK, _CONTEXT.pack(self.context))


@dataclass(frozen=True, slots=True)
class Output:
    """What one screen shows of the VRAM."""

    active: bool
    vram_offset: int  # bytes
    depth: int  # bits of a pixel
    width: int
    height: int
    pitch: int  # bytes from a row to the next

    @property
    def vram_bytes(self) -> int:
        """From the start of the VRAM to the end of what is shown."""
        return self.vram_offset + self.pitch * self.height


@dataclass(frozen=True, slots=True)
class Situation:
    context: int
    outputs: tuple[Output, ...]

    def encode(self) -> bytes:
        rows = b"".join(
            _OUTPUT.pack(one.active, one.vram_offset, one.depth, one.width, one.height, one.pitch)
            for one in self.outputs
        )
        return encode_piped(VideoMessage.SITUATION, _SITUATION.pack(self.context, len(self.outputs)) + rows)


@dataclass(frozen=True, slots=True)
class SituationAck:
    context: int

    def encode(self) -> bytes:
        return encode_piped(VideoMessage.SITUATION_ACK, _CONTEXT.pack(self.context))


@dataclass(frozen=True, slots=True)
class PointerPosition:
    visible: bool
    output: int
    x: int
    y: int

    def encode(self) -> bytes:
        body = _POSITION.pack(self.visible, self.output, self.x, self.y)
        return encode_piped(VideoMessage.POINTER_POSITION, body)


@dataclass(frozen=True, slots=True)
class PointerShape:
    part: int  # 0xFF: the last one
    argb: bool
    width: int
    height: int
    hot_x: int
    hot_y: int
    pixels: bytes

    def encode(self) -> bytes:
        head = _SHAPE.pack(self.part, self.argb, self.width, self.height, self.hot_x, self.hot_y)
        return encode_piped(VideoMessage.POINTER_SHAPE, head + self.pixels)


@dataclass(frozen=True, slots=True)
class FeatureChange:
    """What the host wants to be told."""

    dirt: bool
    position: bool
    shape: bool
    situation: bool  # now, again

    def encode(self) -> bytes:
        body = _FEATURES.pack(self.dirt, self.position, self.shape, self.situation)
        return encode_piped(VideoMessage.FEATURE_CHANGE, body)


@dataclass(frozen=True, slots=True)
class Dirt:
    """What of the picture has changed."""

    output: int
    rectangles: tuple[Rectangle, ...]  # as they came: perhaps empty, perhaps beyond the screen

    def encode(self) -> bytes:
        rows = b"".join(_RECTANGLE.pack(one.left, one.top, one.right, one.bottom) for one in self.rectangles)
        return encode_piped(VideoMessage.DIRT, _DIRT.pack(self.output, len(self.rectangles)) + rows)


@dataclass(frozen=True, slots=True)
class BiosInfoRequest:
    def encode(self) -> bytes:
        return encode_piped(VideoMessage.BIOS_INFO_REQUEST, b"")


@dataclass(frozen=True, slots=True)
class BiosInfo:
    stop_device: int = 0

    def encode(self) -> bytes:
        return encode_piped(VideoMessage.BIOS_INFO_RESPONSE, _BIOS.pack(self.stop_device))


@dataclass(frozen=True, slots=True)
class ResolutionRequest:
    max_count: int = RESOLUTIONS_MAX

    def encode(self) -> bytes:
        return encode_piped(VideoMessage.RESOLUTION_REQUEST, bytes([self.max_count]))


@dataclass(frozen=True, slots=True)
class Resolutions:
    sizes: tuple[tuple[int, int], ...]  # width, height
    default: int = 0  # which of them
    edid: bytes = bytes(EDID_BYTES)

    def encode(self) -> bytes:
        head = _RESOLUTIONS.pack(self.edid, len(self.sizes), self.default, False)
        rows = b"".join(_SIZE.pack(*size) for size in self.sizes)
        return encode_piped(VideoMessage.RESOLUTION_RESPONSE, head + rows)


@dataclass(frozen=True, slots=True)
class CapabilityRequest:
    def encode(self) -> bytes:
        return encode_piped(VideoMessage.CAPABILITY_REQUEST, b"")


@dataclass(frozen=True, slots=True)
class Capabilities:
    lock_on_disconnect: int = 0

    def encode(self) -> bytes:
        return encode_piped(VideoMessage.CAPABILITY_RESPONSE, _CAPABILITIES.pack(self.lock_on_disconnect))


ToVideoHost: TypeAlias = (
    VersionRequest
    | VramLocation
    | Situation
    | PointerPosition
    | PointerShape
    | Dirt
    | BiosInfoRequest
    | ResolutionRequest
    | CapabilityRequest
)
ToVideoGuest: TypeAlias = (
    VersionResponse | VramLocationAck | SituationAck | FeatureChange | BiosInfo | Resolutions | Capabilities
)


def decode_for_host(payload: bytes) -> ToVideoHost:
    """DisplayError."""
    number, body = decode_piped(payload)
    match number:
        case VideoMessage.VERSION_REQUEST:
            return VersionRequest(*fields(_U32, body))
        case VideoMessage.VRAM_LOCATION:
            context, is_given, gpa = fields(_VRAM, body)
            return VramLocation(context, gpa if is_given else None)
        case VideoMessage.SITUATION:
            context, count = fields(_SITUATION, body)
            rows = [fields(_OUTPUT, body, _SITUATION.size + place * _OUTPUT.size) for place in range(count)]
            return Situation(context, tuple(Output(bool(active), *rest) for active, *rest in rows))
        case VideoMessage.POINTER_POSITION:
            visible, output, x, y = fields(_POSITION, body)
            return PointerPosition(bool(visible), output, x, y)
        case VideoMessage.POINTER_SHAPE:
            return _shape(body)
        case VideoMessage.DIRT:
            output, count = fields(_DIRT, body)
            rows = [fields(_RECTANGLE, body, _DIRT.size + place * _RECTANGLE.size) for place in range(count)]
            return Dirt(output, tuple(Rectangle(*row) for row in rows))
        case VideoMessage.BIOS_INFO_REQUEST:
            return BiosInfoRequest()
        case VideoMessage.RESOLUTION_REQUEST:
            return ResolutionRequest(body[0] if body else 0)
        case VideoMessage.CAPABILITY_REQUEST:
            return CapabilityRequest()
    raise DisplayError(f"video message {number} to the host")


def _shape(body: bytes) -> PointerShape:
    part, argb, width, height, hot_x, hot_y = fields(_SHAPE, body)
    if max(width, height) > POINTER_SIDE_MAX:
        raise DisplayError(f"a pointer of {width} x {height} pixels")
    return PointerShape(part, bool(argb), width, height, hot_x, hot_y, body[_SHAPE.size :])


def decode_for_guest(payload: bytes) -> ToVideoGuest:
    """DisplayError."""
    number, body = decode_piped(payload)
    match number:
        case VideoMessage.VERSION_RESPONSE:
            agreed, accepted, outputs = fields(_VERSION_RESPONSE, body)
            return VersionResponse(agreed, bool(accepted), outputs)
        case VideoMessage.VRAM_LOCATION_ACK:
            return VramLocationAck(*fields(_CONTEXT, body))
        case VideoMessage.SITUATION_ACK:
            return SituationAck(*fields(_CONTEXT, body))
        case VideoMessage.FEATURE_CHANGE:
            return FeatureChange(*(bool(flag) for flag in fields(_FEATURES, body)))
        case VideoMessage.BIOS_INFO_RESPONSE:
            return BiosInfo(*fields(_BIOS, body))
        case VideoMessage.RESOLUTION_RESPONSE:
            edid, count, default, _ = fields(_RESOLUTIONS, body)
            if not 0 < count <= RESOLUTIONS_MAX or default >= count:
                raise DisplayError(f"{count} resolutions, the default is number {default}")
            at = _RESOLUTIONS.size
            sizes = tuple(fields(_SIZE, body, at + place * _SIZE.size) for place in range(count))
            return Resolutions(tuple((width, height) for width, height in sizes), default, edid)
        case VideoMessage.CAPABILITY_RESPONSE:
            return Capabilities(*fields(_CAPABILITIES, body))
    raise DisplayError(f"video message {number} to the guest")
