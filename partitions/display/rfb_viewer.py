"""One viewer: a task that reads what it says, and one that sends what it has not seen.

A viewer gets an update when it has asked for one and there is something to see; while it does not read, what changes is
remembered as a few rectangles. So a slow one costs nobody anything but itself.
"""

from dataclasses import dataclass
from typing import Final

import trio

from partitions.display.devices import KeyboardDevice, MouseDevice, VideoDevice
from partitions.display.framebuffer import Picture, Watcher
from partitions.display.keysyms import ViewerKeys
from partitions.display.mouse_wire import Buttons, to_absolute
from partitions.display.rectangle import whole
from partitions.display.rfb_encoder import Encoder, stripes_of
from partitions.display.rfb_session import Began, Phase, RfbSession, Send
from partitions.display.rfb_wire import (
    Encoding,
    KeyEvent,
    PointerEvent,
    RfbError,
    UpdateRequest,
    rectangle_head,
    update_head,
)

HANDSHAKE_S_MAX: Final = 10.0
SEND_S_MAX: Final = 60.0  # for one stripe; who does not read for so long is sent away
RECEIVE_BYTES: Final = 16 << 10
_WHEEL: Final = {8: 1, 16: -1}  # notches, by bit of a pointer event


@dataclass(frozen=True, slots=True)
class Screen:
    """What a partition has of the three. Any may be missing but the video."""

    name: str  # the partition's
    video: VideoDevice
    keyboard: KeyboardDevice | None
    mouse: MouseDevice | None


class Viewer:
    """Of one connection. `run` is all there is to it."""

    def __init__(self, stream: trio.abc.Stream, screen: Screen, refused: str | None = None) -> None:
        self._stream, self._screen = stream, screen
        picture = screen.video.framebuffer.picture
        self._session = RfbSession(screen.name, picture.width, picture.height, refused)
        self._size = picture.width, picture.height  # as the viewer knows it
        self._keys = ViewerKeys()
        self._buttons = 0
        self._asked = False  # for an update
        self._encoder = Encoder()
        self._news = trio.Event()
        self._began = trio.Event()
        self._sending = trio.Lock()  # held from an update's first byte to its last
        self._at = 0, 0
        self.updates = 0

    async def run(self) -> None:
        """Until it leaves, or says what cannot be: RfbError."""
        token = trio.lowlevel.current_trio_token()

        def wake() -> None:
            """Any thread."""
            token.run_sync_soon(self._wake, idempotent=True)

        watcher = self._screen.video.framebuffer.watch(wake)
        watcher.forget(whole(*self._size))  # also for a viewer that only ever asks for what is new
        try:
            await self._stream.send_all(self._session.greeting())
            with trio.move_on_after(HANDSHAKE_S_MAX) as handshake:
                while not self._began.is_set():
                    if not await self._receive(watcher):
                        return
            if handshake.cancelled_caught:
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_updates, watcher)
                while await self._receive(watcher):
                    pass
                nursery.cancel_scope.cancel()
        finally:
            watcher.close()
            self._let_go()

    def _wake(self) -> None:
        self._news.set()

    # -- what it says

    async def _receive(self, watcher: Watcher) -> bool:
        """False: it has left."""
        data = await self._stream.receive_some(RECEIVE_BYTES)
        for event in self._session.receive(bytes(data)):
            match event:
                case Send(answer):
                    await self._answer(answer)
                case Began():
                    self._began.set()
                case UpdateRequest(incremental, part):
                    if not incremental:
                        watcher.forget(part.within(whole(*self._size)))
                    self._asked = True
                    self._wake()
                case KeyEvent(pressed, keysym):
                    self._press(self._keys.change(keysym, pressed))
                case PointerEvent() as event:
                    self._point(event)
        return bool(data) and self._session.phase is not Phase.REFUSED

    async def _answer(self, data: bytes) -> None:
        """Of the handshake; or a colour map, which may stand between two updates, and not in one."""
        async with self._sending:
            await self._stream.send_all(data)

    def _press(self, changes: list[tuple[int, bool]]) -> None:
        if self._screen.keyboard is not None:
            for key, pressed in changes:
                self._screen.keyboard.press(key, pressed)

    def _point(self, event: PointerEvent) -> None:
        if self._screen.mouse is None:
            return
        width, height = self._size
        x, y = to_absolute(event.x, width), to_absolute(event.y, height)
        buttons = Buttons(0)
        for bit, button in ((1, Buttons.LEFT), (2, Buttons.MIDDLE), (4, Buttons.RIGHT)):
            if event.buttons & bit:
                buttons |= button
        wheel = sum(step for bit, step in _WHEEL.items() if event.buttons & bit and not self._buttons & bit)
        self._buttons = event.buttons
        self._screen.mouse.move(buttons, x, y, wheel)
        self._at = x, y

    def _let_go(self) -> None:
        """Keys and buttons that it held when it left."""
        self._press(self._keys.let_go())
        if self._buttons and self._screen.mouse is not None:
            self._screen.mouse.move(Buttons(0), *self._at)

    # -- what it sees

    async def _send_updates(self, watcher: Watcher) -> None:
        while True:
            self._news = trio.Event()
            picture, has_news = watcher.look()
            if self._asked and (has_news or (picture.width, picture.height) != self._size):
                self._asked = False
                async with self._sending:
                    await self._update(picture, watcher)
            else:
                await self._news.wait()

    async def _update(self, picture: Picture, watcher: Watcher) -> None:
        if (picture.width, picture.height) != self._size:
            if not self._session.may_resize:
                raise RfbError("the screen has another size now, which the viewer cannot be told")
            self._size = picture.width, picture.height
            watcher.forget(whole(*self._size))
            head = rectangle_head(whole(*self._size), Encoding.DESKTOP_SIZE)
            await self._send(update_head(1) + head)
            return
        parts = [stripe for part in watcher.take(picture) for stripe in stripes_of(part)]
        if not parts:
            self._asked = True
            return
        how, pixels = self._session.encoding, self._session.pixel_format
        data = update_head(len(parts))
        for part in parts:
            await self._send(data + self._encoder.encode(picture, part, how, pixels))
            data = b""
        self.updates += 1

    async def _send(self, data: bytes) -> None:
        try:
            with trio.fail_after(SEND_S_MAX):
                await self._stream.send_all(data)
        except trio.TooSlowError:
            raise RfbError(f"the viewer has not read for {SEND_S_MAX:.0f} s") from None
