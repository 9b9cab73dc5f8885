"""The synthetic video adapter: where a guest says that its pixels are; what a host has them look like."""

import mmap
import threading
from contextlib import suppress
from copy import deepcopy
from typing import Final, Protocol

from bus.memory import PAGE_BYTES
from bus.native import GpaMap
from bus.seam import Seam
from partitions.display.conversation import DisplayClosedError
from partitions.display.framebuffer import Framebuffer
from partitions.display.rectangle import RECTANGLES_MAX, Rectangle, whole
from partitions.display.video import Video
from partitions.display.video_session import RECORD_BYTES, VRAM_BYTES_MAX, VideoSession
from partitions.display.video_wire import (
    VERSIONS,
    BiosInfoRequest,
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
    decode_for_guest,
)
from partitions.display.vsp import VideoVsp
from tests.fuzzing.pieces import cut, join
from tests.fuzzing.scripted_channel import INBAND_MARK, ScriptedChannel
from tests.fuzzing.targets import Side, target

_FIRST: Final = 0x100  # guest page
_PAGES: Final = 16
_WIDTH, _HEIGHT = 64, 48  # at most
_ADDRESS: Final = _FIRST * PAGE_BYTES


class _Message(Protocol):
    def encode(self) -> bytes: ...


def _in_band(*messages: _Message) -> bytes:
    """An input."""
    return join([INBAND_MARK + one.encode() for one in messages])


def _guest_seeds() -> list[bytes]:
    shown = Output(True, 0, 32, _WIDTH, _HEIGHT, _WIDTH * 4)
    behind = Output(True, 4096, 32, 16, 17, 1024)
    dirt = Dirt(0, (Rectangle(1, 2, 30, 40), Rectangle(-5, -5, 999, 3), Rectangle(9, 9, 2, 2)))
    first: list[_Message] = [VersionRequest(VERSIONS[0]), ResolutionRequest(), VramLocation(1, _ADDRESS)]
    said = [*first, Situation(2, (shown,)), dirt, Situation(3, (behind,)), dirt]
    asides: list[_Message] = [BiosInfoRequest(), CapabilityRequest(), PointerPosition(True, 0, 5, 5)]
    drawn = PointerShape(0xFF, True, 8, 8, 0, 0, bytes(256))
    huge = Situation(5, (Output(True, 0, 32, 16, 16, 1 << 30),))
    hidden = Situation(4, (Output(False, 0, 0, 0, 0, 0),))
    return [
        _in_band(*said, *asides, drawn, huge, hidden, dirt),
        _in_band(VersionRequest(9), *said, VramLocation(9, None), dirt),
    ]


@target("video", Side.HOST, _guest_seeds)
def host(data: bytes) -> None:
    """Whatever is claimed of the VRAM: what is shown can be read, all of it; what was refused changed nothing."""
    gpa_map, record = GpaMap(), memoryview(bytearray(64))
    gpa_map.add(_FIRST, mmap.mmap(-1, _PAGES * PAGE_BYTES))
    framebuffer = Framebuffer(_WIDTH, _HEIGHT)
    watcher = framebuffer.watch(lambda: None)
    script, channel = ScriptedChannel.of(list(cut(data)))
    vsp = VideoVsp(channel, gpa_map, record, Seam(), framebuffer)
    before = (0, deepcopy(vsp.session), framebuffer.picture)

    def look() -> None:
        nonlocal before
        malformed, session, picture = before
        if vsp.malformed > malformed:
            assert vsp.session == session, "a refused message changed something"
        shown = framebuffer.picture
        if vsp.malformed > malformed and malformed + 1 < script.given:
            assert shown is picture
        assert len(shown.read(whole(shown.width, shown.height))) == shown.width * shown.height * 4
        assert shown.width <= _WIDTH
        assert shown.height <= _HEIGHT
        assert len(watcher.region.parts) <= RECTANGLES_MAX
        assert all(whole(_WIDTH, _HEIGHT).holds(part) for part in watcher.region.parts)
        assert all(not part.is_empty for part in watcher.region.parts)
        output = vsp.session.output
        assert output is None or output.vram_bytes <= VRAM_BYTES_MAX
        noted = bytes(record[40 : 40 + RECORD_BYTES])
        if vsp.malformed == malformed:
            assert VideoSession.from_record(_WIDTH, _HEIGHT, noted) == vsp.session
        before = (vsp.malformed, deepcopy(vsp.session), shown)

    script.between = look
    vsp.serve(threading.Event())
    assert vsp.requests == script.given
    assert framebuffer.picture.pixels is None  # the channel is closed: nothing of the guest's is looked at
    for payload in script.sent:
        decode_for_guest(payload)
    assert len(script.sent) <= 2 * script.given


def _host_seeds() -> list[bytes]:
    said: list[_Message] = [
        VersionResponse(VERSIONS[0], True),
        Resolutions(((32, 24), (_WIDTH, _HEIGHT)), default=1),
        VramLocationAck(1),
        FeatureChange(True, False, False, False),
        SituationAck(2),
        FeatureChange(True, False, False, True),
        SituationAck(2),
    ]
    refused = [VersionResponse(version, False) for version in VERSIONS]
    return [_in_band(*said), _in_band(*refused[:2], *said), _in_band(*refused)]


@target("video", Side.GUEST, _host_seeds)
def guest(data: bytes) -> None:
    """Whatever size the host has in mind: the guest draws inside of its own memory, or not at all."""
    vram = memoryview(bytearray(_WIDTH * _HEIGHT * 4))
    script, channel = ScriptedChannel.of(list(cut(data)))
    try:
        video = Video(channel, vram, _FIRST, None, None)
    except (DisplayClosedError, ValueError):
        return
    assert video.pitch * video.height == len(video.pixels) <= len(vram)
    for _ in range(8):
        video.fill(-3, 5, 1 << 20, 1 << 20, 0xFF00FF)
        with suppress(DisplayClosedError):
            video.dirty(0, 0, 1 << 20, 1 << 20)
    assert len(script.sent) <= len(VERSIONS) + 3 + script.given + 8
