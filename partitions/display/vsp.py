"""The servers of the three devices, each on one opened channel: one loop, three sessions.

A guest's request is carried out and noted in the channel's record before it leaves the ring, so a successor knows where
its predecessor was, and takes a request at most a second time. What a viewer does is sent from the viewers' thread; it
never waits: a guest that does not read misses events, which are counted.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from bus.memory import PAGE_BYTES, PFN_BYTES
from bus.native import Channel, GpaMap, RingClosed, RingError, RingFull
from bus.packets import PacketFlags, PacketType
from bus.seam import Seam, Step
from bus.trace import Hop
from partitions.display.channel_record import read_record, write_record
from partitions.display.display_error import DisplayError
from partitions.display.framebuffer import Framebuffer, Picture
from partitions.display.keyboard_session import KeyboardSession
from partitions.display.mouse_session import MouseSession
from partitions.display.mouse_wire import Buttons
from partitions.display.video_session import VideoSession

_FULL_POLL_S: Final = 0.01  # how often an answer is tried that does not fit into the ring
_FOR_EVER_NS: Final = -1
_INBAND: Final = int(PacketType.INBAND)


class Recorded(Protocol):
    """What the three sessions have in common."""

    def to_record(self) -> bytes: ...


class DisplayVsp:
    """`serve` runs in one thread; `tell` and `statistics` may be called from any."""

    def __init__(self, channel: Channel, record: memoryview, seam: Seam, session: Recorded) -> None:
        self._channel, self._record, self._seam, self._recorded = channel, record, seam, session
        self._lock = threading.Lock()  # of the session, and of sending
        self.requests = self.events = self.malformed = self.missed = 0
        self.waits_for_guest = False
        self._is_over = False  # the record is no longer ours

    def replay(self) -> None:
        """`serve` finds in the ring what was not released, and in the record what was agreed on."""

    def serve(self, stop: threading.Event) -> None:
        """Until `stop` is set or the channel is closed. Raises RingCorrupt: the guest broke the ring."""
        self._begin()
        try:
            while not stop.is_set():
                for kind, flags, identity, _, payload in self._channel.receive_batch(1, _FOR_EVER_NS):
                    self._seam.passing(Step.TAKE)
                    self.requests += 1
                    if not self._take(kind, payload, stop):
                        return
                    if flags & PacketFlags.COMPLETION_REQUESTED and not self._send_all([identity], stop):
                        return
                    self._channel.release()
        except RingClosed:
            pass
        finally:
            with self._lock:
                self._is_over = True
            self._end()

    def _take(self, kind: int, payload: bytes, stop: threading.Event) -> bool:
        """False: told to stop before all was answered."""
        try:
            if kind != _INBAND:
                raise DisplayError(f"packet type {kind}")
            with self._lock:
                answers = self._receive(payload)
                self._note()
        except DisplayError:
            self.malformed += 1
            return True
        self._seam.passing(Step.EXECUTE)
        return self._send_all(answers, stop)

    def _send_all(self, answers: Sequence[bytes | int], stop: threading.Event) -> bool:
        """Each is a message, or the id of a request that is complete. Waits for a guest that does not read."""
        for answer in answers:
            while True:
                try:
                    with self._lock:
                        if isinstance(answer, int):
                            self._channel.send_completion(b"", answer)
                        else:
                            self._channel.send(answer)
                    break
                except RingFull:
                    self.waits_for_guest = True
                    stopped = self._channel.is_closed or stop.wait(_FULL_POLL_S)
                    self.waits_for_guest = False
                    if stopped:
                        return False
        return True

    def tell(self, events: Callable[[], Sequence[bytes]]) -> None:
        """Send what `events` says, if there is room: it is called with the session locked. Never waits."""
        with self._lock:
            if self._is_over or self._channel.is_closed:
                return
            self._channel.stamp(Hop.BACKEND_END)
            for event in events():
                try:
                    self._channel.send(event, self.events + 1)
                    self.events += 1
                except RingFull:
                    self.missed += 1
                except RingError:  # it is closed, or the guest broke it, which the other thread finds out
                    self.missed += 1
                    return
            self._note()

    def _note(self) -> None:
        write_record(self._record, self._recorded.to_record())

    def _receive(self, payload: bytes) -> Sequence[bytes]:
        raise NotImplementedError

    def _begin(self) -> None: ...

    def _end(self) -> None: ...

    def statistics(self) -> dict[str, int]:
        return {
            "requests": self.requests,
            "events": self.events,
            "missed": self.missed,
            "malformed": self.malformed,
        }


class KeyboardVsp(DisplayVsp):
    def __init__(self, channel: Channel, record: memoryview, seam: Seam) -> None:
        self.session: Final = KeyboardSession.from_record(read_record(record))
        super().__init__(channel, record, seam, self.session)

    def _receive(self, payload: bytes) -> Sequence[bytes]:
        return self.session.receive(payload)

    def _begin(self) -> None:
        self.tell(self.session.let_go)  # keys that a predecessor's viewers held

    def press(self, key: int, pressed: bool) -> None:
        self.tell(lambda: self.session.press(key, pressed))


class MouseVsp(DisplayVsp):
    def __init__(self, channel: Channel, record: memoryview, seam: Seam) -> None:
        self.session: Final = MouseSession.from_record(read_record(record))
        super().__init__(channel, record, seam, self.session)

    def _receive(self, payload: bytes) -> Sequence[bytes]:
        return self.session.receive(payload)

    def _begin(self) -> None:
        self.tell(self.session.let_go)

    def move(self, buttons: Buttons, x: int, y: int, wheel: int) -> None:
        self.tell(lambda: self.session.move(buttons, x, y, wheel))


class VideoVsp(DisplayVsp):
    def __init__(
        self, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam, framebuffer: Framebuffer
    ) -> None:
        limits = framebuffer.picture_max
        self.session: Final = VideoSession.from_record(limits.width, limits.height, read_record(record))
        super().__init__(channel, record, seam, self.session)
        self._gpa_map, self._framebuffer = gpa_map, framebuffer
        self.refused = 0  # situations whose VRAM is not where the guest says

    def _begin(self) -> None:
        self._framebuffer.show(self._picture())

    def _end(self) -> None:
        self._framebuffer.show(None)

    def _receive(self, payload: bytes) -> Sequence[bytes]:
        before = self.session.output
        outcome = self.session.receive(payload)
        if outcome.changed:
            picture = self._picture()
            if picture is None and self.session.output is not None:
                self.session.output = before
                self.refused += 1
                raise DisplayError("no such VRAM")
            self._framebuffer.show(picture)
        elif outcome.dirt:
            self._channel.stamp(Hop.BACKEND_BEGIN)
            self._framebuffer.damage(outcome.dirt)
        return outcome.answers

    def _picture(self) -> Picture | None:
        """What the guest wants shown. None: nothing; or it is not one stretch of what it lent to this channel."""
        address, output = self.session.address, self.session.output
        if address is None or output is None:
            return None
        first, offset = divmod(address + output.vram_offset, PAGE_BYTES)
        size = output.pitch * (output.height - 1) + output.width * 4
        pages = -(-(offset + size) // PAGE_BYTES)
        try:
            pfns = b"".join(number.to_bytes(PFN_BYTES, "little") for number in range(first, first + pages))
            views = self._gpa_map.views(offset, size, pfns, False)
        except (LookupError, ValueError, OverflowError):
            return None
        if len(views) != 1:
            return None
        return Picture(output.width, output.height, output.pitch, views[0])

    def statistics(self) -> dict[str, int]:
        picture = self._framebuffer.picture
        shown = {"width": picture.width, "height": picture.height, "refused": self.refused}
        return super().statistics() | shown
