"""The three devices at both ends of a real channel: honest, dying, and lying on either side."""

import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.memory import PAGE_BYTES
from bus.native import Channel, GpaMap, RingError
from bus.packets import encode_pipe
from bus.seam import Seam
from partitions.display import conversation
from partitions.display.conversation import DisplayClosedError
from partitions.display.framebuffer import Framebuffer
from partitions.display.keyboard import Keyboard
from partitions.display.keyboard_wire import KeyboardRequest, KeyboardResponse, Keystroke
from partitions.display.mouse import Mouse
from partitions.display.mouse_wire import Buttons, DeviceInfo, MouseReport, MouseResponse
from partitions.display.piped_message import encode_piped
from partitions.display.rectangle import Rectangle, whole
from partitions.display.video import Video
from partitions.display.video_wire import (
    VERSIONS,
    Dirt,
    FeatureChange,
    Output,
    Resolutions,
    Situation,
    SituationAck,
    VersionRequest,
    VersionResponse,
    VramLocation,
    VramLocationAck,
)
from partitions.display.vsp import DisplayVsp, KeyboardVsp, MouseVsp, VideoVsp
from partitions.emulated.scan_codes import KEYS
from tests.partitions.storage_pair import FIRST_GPFN, JOIN_S, guest_end, host_end
from tests.patience import WAIT_S, until

RING_BYTES = 4 * PAGE_BYTES
RINGS = 2 * (PAGE_BYTES + RING_BYTES)
VRAM_PAGES = 64
VRAM_GPFN = FIRST_GPFN + RINGS // PAGE_BYTES


@dataclass
class Pair:
    """A guest's channel, and a server in a thread; `succeed` has another one take over."""

    guest: Channel
    memory: mmap.mmap
    bells: tuple[int, int]
    make: Callable[["Pair", Channel], DisplayVsp]
    record: memoryview = field(default_factory=lambda: memoryview(bytearray(64)))
    framebuffer: Framebuffer = field(default_factory=lambda: Framebuffer(160, 120))
    gpa_map: GpaMap = field(default_factory=GpaMap)
    failures: list[BaseException] = field(default_factory=list)
    vsp: Any = None
    _host: Channel | None = None
    _thread: threading.Thread | None = None
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def vram(self) -> memoryview:
        return memoryview(self.memory)[RINGS:]

    def start(self) -> None:
        host = host_end(self.memory, RING_BYTES, *self.bells, "block")
        vsp, stop = self.make(self, host), threading.Event()

        def serve() -> None:
            try:
                vsp.serve(stop)
            except (RingError, Exception) as error:
                self.failures.append(error)

        self._host, self.vsp, self._stop = host, vsp, stop
        self._thread = threading.Thread(target=serve, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        if self._host is not None:
            self._host.close()
        if self._thread is not None:
            self._thread.join(JOIN_S)
            assert not self._thread.is_alive()

    def succeed(self) -> None:
        self.end()
        self.start()


@contextmanager
def pair(make: Callable[[Pair, Channel], DisplayVsp] | None) -> Iterator[Pair]:
    """None: nobody serves."""
    memory = mmap.mmap(-1, RINGS + VRAM_PAGES * PAGE_BYTES)
    bells = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    guest = guest_end(memory, RING_BYTES, *bells)
    both = Pair(guest, memory, bells, make or keyboard)
    both.gpa_map.add(FIRST_GPFN, memory)
    if make is not None:
        both.start()
    try:
        yield both
    finally:
        both.end()
        guest.close()
        for bell in bells:
            os.close(bell)


def keyboard(both: Pair, host: Channel) -> KeyboardVsp:
    return KeyboardVsp(host, both.record, Seam())


def mouse(both: Pair, host: Channel) -> MouseVsp:
    return MouseVsp(host, both.record, Seam())


def video(both: Pair, host: Channel) -> VideoVsp:
    return VideoVsp(host, both.gpa_map, both.record, Seam(), both.framebuffer)


def test_keys_arrive_in_order_and_go_up_when_their_server_dies() -> None:
    with pair(keyboard) as both:
        guest = Keyboard(both.guest)
        typed = ""
        for key, pressed in (
            (0x2A, True),
            (KEYS["a"], True),
            (KEYS["a"], False),
            (0x2A, False),
            (0x02, True),
        ):
            both.vsp.press(key, pressed)
            stroke = guest.read(WAIT_S)
            assert stroke is not None
            assert (stroke.key, stroke.is_break) == (key, not pressed)
            typed += guest.typed(stroke)
        assert typed == "A1"
        guest.light(4)
        until(lambda: both.vsp.session.leds == 4)
        both.succeed()
        stroke = guest.read(WAIT_S)  # the guest says nothing new, and is told that the key is up
        assert stroke is not None
        assert (stroke.key, stroke.is_break) == (0x02, True)
        assert both.vsp.session.leds == 4
        both.vsp.press(KEYS["up"], True)
        assert guest.read(WAIT_S) == Keystroke.of_key(KEYS["up"], True)
        assert both.failures == []


def test_a_mouse_goes_on_where_it_was() -> None:
    with pair(mouse) as both:
        guest = Mouse(both.guest)
        assert guest.info == DeviceInfo()
        until(lambda: both.vsp.session.acknowledged)
        both.vsp.move(Buttons.LEFT, 100, 200, 0)
        assert guest.read(WAIT_S) == MouseReport(Buttons.LEFT, 100, 200)
        both.succeed()
        assert guest.read(WAIT_S) == MouseReport(Buttons(0), 100, 200)
        both.vsp.move(Buttons.MIDDLE, 1, 2, -1)
        assert guest.read(WAIT_S) == MouseReport(Buttons.MIDDLE, 1, 2, -1)
        both.vsp.tell(lambda: [MouseReport(Buttons(0), 3, 4).encode()] * 2000)
        assert both.vsp.missed > 0  # a guest that does not read stops nobody
        assert both.failures == []


def test_a_screen_shows_the_guests_own_pages_and_its_successor_does() -> None:
    with pair(video) as both:
        guest = Video(both.guest, both.vram, VRAM_GPFN, None, None)
        assert (guest.width, guest.height) == (160, 120)
        woken = threading.Event()
        watcher = both.framebuffer.watch(woken.set)
        guest.fill(150, 110, 50, 50, 0x0A0B0C)
        guest.dirty(150, 110, 50, 50)
        until(woken.is_set)
        (part,) = watcher.take(both.framebuffer.picture)
        assert part == Rectangle(150, 110, 160, 120)
        assert both.framebuffer.picture.read(part) == bytes.fromhex("0c0b0a00") * 100
        pixels = both.framebuffer.picture.pixels
        assert pixels is not None
        assert pixels.readonly
        both.succeed()
        until(lambda: both.framebuffer.picture.pixels is not None)
        assert both.framebuffer.picture.read(part) == bytes.fromhex("0c0b0a00") * 100
        guest.resize(32, 16)
        assert (both.framebuffer.picture.width, both.framebuffer.picture.height) == (32, 16)
        with pytest.raises(ValueError, match="VRAM"):
            guest.resize(160, 1200)
        assert both.failures == []
    assert both.framebuffer.picture.pixels is None  # closed: nothing of the guest's is looked at any more


def test_vram_that_is_not_the_guests_to_show_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pair(video) as both:
        guest = Video(both.guest, both.vram, VRAM_GPFN, 64, 48)
        beyond = FIRST_GPFN + (RINGS // PAGE_BYTES) + VRAM_PAGES - 1
        for number, gpa in enumerate((0, beyond * PAGE_BYTES, 2**64 - 1, (1 << 52) - 4096), 1):
            guest._conversation.send(VramLocation(9, gpa).encode())
            guest._conversation.wait_for(VramLocationAck)
            guest._conversation.send(Situation(7, (Output(True, 0, 32, 64, 48, 256),)).encode())
            until(lambda number=number: both.vsp.statistics()["refused"] == number)  # type: ignore[misc]
            with monkeypatch.context() as patch:
                patch.setattr(conversation, "ANSWER_S_MAX", 0.05)
                with pytest.raises(DisplayClosedError):
                    guest._conversation.wait_for(SituationAck)
            assert both.framebuffer.picture.pixels is None
        assert both.vsp.statistics()["refused"] == 4
        guest._tell_location()
        guest.resize(64, 48)
        assert both.framebuffer.picture.pixels is not None


HOSTILE = st.one_of(
    st.binary(max_size=64),
    st.binary(max_size=64).map(lambda body: encode_piped(5, body)),
    st.binary(max_size=64).map(lambda body: encode_piped(10, body)),
    st.binary(max_size=64).map(encode_pipe),
    st.sampled_from(
        [
            VersionRequest(VERSIONS[0]).encode(),
            VramLocation(1, VRAM_GPFN * PAGE_BYTES).encode(),
            VramLocation(1, None).encode(),
            Situation(1, (Output(True, 4, 32, 64, 48, 260),)).encode(),
            Situation(1, (Output(True, 2**32 - 1, 32, 64, 48, 2**32 - 1),)).encode(),
            Dirt(0, (Rectangle(-(2**31), -5, 2**31 - 1, 9),)).encode(),
            KeyboardRequest(0x10000).encode(),
        ]
    ),
)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([keyboard, mouse, video]), st.lists(HOSTILE, max_size=20))
def test_a_hostile_guest_brings_no_server_down(
    make: Callable[[Pair, Channel], DisplayVsp], said: list[bytes]
) -> None:
    with pair(make) as both:
        seen: list[Rectangle] = []
        watcher = both.framebuffer.watch(lambda: None)
        for payload in said:
            both.guest.send(payload)
        until(lambda: both.vsp.requests == len(said) and not both._host.has_work)  # type: ignore[union-attr]
        picture = both.framebuffer.picture
        seen += watcher.take(picture)
        assert all(whole(picture.width, picture.height).holds(part) for part in seen)
        assert len(picture.read(whole(picture.width, picture.height))) == picture.width * picture.height * 4
        assert both.failures == []


ANSWERS = st.one_of(
    st.binary(max_size=64),
    st.binary(max_size=64).map(encode_pipe),
    st.sampled_from(
        [
            KeyboardResponse(True).encode(),
            Keystroke(3).encode(),
            MouseResponse(1, True).encode(),
            DeviceInfo(report_descriptor=b"\0").encode(),
            MouseReport(Buttons.LEFT, 9, 9).encode(),
            VersionResponse(VERSIONS[0], True).encode(),
            Resolutions(((64, 48),)).encode(),
            Resolutions(((65535, 65535),)).encode(),
            VramLocationAck(1).encode(),
            SituationAck(2).encode(),
            FeatureChange(False, True, True, True).encode(),
        ]
    ),
)
OPENERS: list[Callable[[Pair], Any]] = [
    lambda both: Keyboard(both.guest).read(0),
    lambda both: Mouse(both.guest).read(0),
    lambda both: Video(both.guest, both.vram, VRAM_GPFN, None, None).dirty(0, 0, 9, 9),
]


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(OPENERS), st.lists(ANSWERS, max_size=12))
def test_a_hostile_host_can_refuse_a_guest_and_nothing_else(
    use: Callable[[Pair], Any], answers: list[bytes]
) -> None:
    """Whatever it says, the guest's program gets its device, or one of two errors, in bounded time."""
    with pair(None) as both, pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversation, "ANSWER_S_MAX", 0.01)
        host = host_end(both.memory, RING_BYTES, *both.bells, "block")
        try:
            for answer in answers:
                host.send(answer)
            use(both)
        except (DisplayClosedError, ValueError):
            pass
        finally:
            host.close()
