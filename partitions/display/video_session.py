"""The host's side of one video channel: which version, where the VRAM is, what of it is shown. No I/O.

    version agreed on -> VRAM location, any time again -> situation, any time again -> dirt

Nothing here has looked at the guest's memory: whether the VRAM is there is the server's business.
"""

import struct
from dataclasses import dataclass
from typing import Final, Self

from partitions.display.display_error import DisplayError
from partitions.display.rectangle import Rectangle, whole
from partitions.display.video_wire import (
    RESOLUTIONS_MAX,
    VERSIONS,
    BiosInfo,
    BiosInfoRequest,
    Capabilities,
    CapabilityRequest,
    Dirt,
    FeatureChange,
    Output,
    PointerPosition,
    PointerShape,
    ResolutionRequest,
    Resolutions,
    Situation,
    SituationAck,
    VersionRequest,
    VersionResponse,
    VramLocation,
    VramLocationAck,
    decode_for_host,
)

DEPTH: Final = 32  # bits of a pixel: blue, green, red, nothing. As all versions from 3.0 on
PIXEL_BYTES: Final = 4
VRAM_BYTES_MAX: Final = 64 << 20  # from the VRAM's first byte to the last one that is shown
SIDE_MIN: Final = 16  # pixels of a screen
_WANTED: Final = FeatureChange(dirt=True, position=False, shape=False, situation=False)
_RECORD: Final = struct.Struct(
    "<BBQIHHI"
)  # what stands, version, VRAM's address, offset, width, height, pitch
RECORD_BYTES: Final = 24  # of a channel's record, as the stack has room for it
_ADDRESS_STANDS: Final = 1
_OUTPUT_STANDS: Final = 2

assert _RECORD.size <= RECORD_BYTES


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a message."""

    answers: tuple[bytes, ...] = ()
    changed: bool = False  # where the picture is, or how large
    dirt: tuple[Rectangle, ...] = ()  # what of the screen is to be looked at again; within it


_NOTHING: Final = Outcome()


@dataclass(slots=True)
class VideoSession:
    width_max: int
    height_max: int
    version: int | None = None
    address: int | None = None  # of the VRAM, in the guest's memory
    output: Output | None = None  # as the guest wants it shown; None: it shows nothing

    def receive(self, payload: bytes) -> Outcome:
        """DisplayError: nothing has changed."""
        message = decode_for_host(payload)
        if isinstance(message, VersionRequest):
            return self._agree(message.version)
        if self.version is None:
            raise DisplayError(f"{type(message).__name__} before a version is agreed on")
        match message:
            case VramLocation(context, gpa):
                self.address, self.output = gpa, None
                return Outcome((VramLocationAck(context).encode(), _WANTED.encode()), changed=True)
            case Situation(context, outputs):
                self.output = self._shown(outputs)
                return Outcome((SituationAck(context).encode(),), changed=True)
            case Dirt() | PointerPosition() | PointerShape():
                return self._hint(message)
            case ResolutionRequest(max_count):
                if not 0 < max_count <= RESOLUTIONS_MAX:
                    raise DisplayError(f"{max_count} resolutions are asked for")
                return Outcome((Resolutions(((self.width_max, self.height_max),)).encode(),))
            case BiosInfoRequest():
                return Outcome((BiosInfo().encode(),))
            case CapabilityRequest():
                return Outcome((Capabilities().encode(),))
        raise AssertionError(message)

    def _agree(self, version: int) -> Outcome:
        accepted = version in VERSIONS
        self.version = version if accepted else None
        self.address = self.output = None
        return Outcome((VersionResponse(version, accepted).encode(),), changed=True)

    def _shown(self, outputs: tuple[Output, ...]) -> Output | None:
        if len(outputs) != 1:
            raise DisplayError(f"{len(outputs)} screens; there is one")
        one = outputs[0]
        if not one.active:
            return None
        if one.depth != DEPTH:
            raise DisplayError(f"{one.depth} bits a pixel; {DEPTH} are shown")
        if not (SIDE_MIN <= one.width <= self.width_max and SIDE_MIN <= one.height <= self.height_max):
            raise DisplayError(
                f"{one.width} x {one.height} pixels; at most {self.width_max} x {self.height_max}"
            )
        if one.pitch < one.width * PIXEL_BYTES or one.vram_bytes > VRAM_BYTES_MAX:
            raise DisplayError(f"a pitch of {one.pitch} bytes, {one.vram_bytes} bytes in all")
        return one

    def _hint(self, message: Dirt | PointerPosition | PointerShape) -> Outcome:
        """Of something that is not shown nothing is to be looked at. A viewer draws its own pointer."""
        if not isinstance(message, Dirt) or self.output is None:
            return _NOTHING
        if message.output != 0:
            raise DisplayError(f"dirt on screen {message.output}; there is screen 0")
        screen = whole(self.output.width, self.output.height)
        inside = (one.within(screen) for one in message.rectangles)
        return Outcome(dirt=tuple(one for one in inside if not one.is_empty))

    def to_record(self) -> bytes:
        """A few bytes, of which a successor makes the same session."""
        stands = _ADDRESS_STANDS if self.address is not None else 0
        one = self.output or Output(False, 0, DEPTH, 0, 0, 0)
        stands |= _OUTPUT_STANDS if self.output is not None else 0
        number = VERSIONS.index(self.version) + 1 if self.version is not None else 0
        address = self.address or 0
        return _RECORD.pack(stands, number, address, one.vram_offset, one.width, one.height, one.pitch)

    @classmethod
    def from_record(cls, width_max: int, height_max: int, record: bytes) -> Self:
        stands, number, address, offset, width, height, pitch = _RECORD.unpack_from(record)
        session = cls(width_max, height_max)
        if 0 < number <= len(VERSIONS):
            session.version = VERSIONS[number - 1]
            session.address = address if stands & _ADDRESS_STANDS else None
            if stands & _OUTPUT_STANDS:
                session.output = Output(True, offset, DEPTH, width, height, pitch)
        return session
